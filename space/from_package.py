"""What the Space shares with the package: which voxels lie in the body, and how like the training a scan is.

Of `ctfm` where that is installed. A Space has no `ctfm`; there release/release.py puts copies of both files beside this one.
"""

from importlib.util import find_spec

if find_spec("ctfm") is not None:
    from ctfm.body import (  # type: ignore[reportMissingImports]
        find_body_patches,
        find_inside,
        join_crops,
        label_pieces,
        split_crops,
    )
    from ctfm.gate import Gate, Judged, distances, load_gate, scan_features  # type: ignore[reportMissingImports]
else:
    from body import find_body_patches, find_inside, join_crops, label_pieces, split_crops
    from gate import Gate, Judged, distances, load_gate, scan_features

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
