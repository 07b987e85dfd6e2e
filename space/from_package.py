"""What the Space shares with the package: which voxels lie in the body, and how like the training a scan is.

Of `ctfm` where that is installed. A Space has no `ctfm`; there release/release.py puts copies of both files beside this one.
"""

try:
    from ctfm.body import find_body_patches, find_inside, join_crops, label_pieces, split_crops
    from ctfm.gate import Gate, Judged, distances, load_gate, scan_features
except ImportError:
    from body import (  # type: ignore[reportMissingImports]
        find_body_patches,
        find_inside,
        join_crops,
        label_pieces,
        split_crops,
    )
    from gate import Gate, Judged, distances, load_gate, scan_features  # type: ignore[reportMissingImports]

__all__ = [
    "Gate",
    "Judged",
    "distances",
    "find_body_patches",
    "find_inside",
    "join_crops",
    "label_pieces",
    "load_gate",
    "scan_features",
    "split_crops",
]
