"""The programs that prepare scans, pretrain and fine-tune; never imported by the Hub files."""

from importlib.util import find_spec

from .. import CTFMModel  # noqa: F401 - registers the Auto classes, by which processors find their parts
from ..installation import how_to_install

# Of the extra [train], as they are imported. Looked for here and not where each is used, so that a notebook, a launcher and a
# program all say the same, and before hours of reading scans.
LIBRARIES = (
    "accelerate",
    "datasets",
    "fsspec",
    "jaxtyping",
    "matplotlib",
    "openpyxl",
    "peft",
    "PIL",
    "pyarrow",
    "rich",
    "scipy",
    "sklearn",
    "tensorboard",
    "tokenizers",
    "tyro",
)

if missing := [name for name in LIBRARIES if find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"{', '.join(missing)} not installed. Training, evaluation and release need the extra [train]: run "
        f"{how_to_install('train')}.",
        name=missing[0],
    )
