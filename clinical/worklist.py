"""`ctfm worklist`: studies of a folder, or of a DICOMweb server, ranked."""

from collections.abc import Sequence
from pathlib import Path

from ..worklist import main as rank_folder
from .extra import need_extra


def main(arguments: Sequence[str] | None = None) -> int:
    return rank_folder(arguments, fetch)


def fetch(source: str, folder: Path) -> Path:
    """The CT series of a DICOMweb server, below `folder`; a folder stays where it is.

    Raises:
        OSError: the server cannot be reached, or [clinical] is not installed.
    """
    if "://" not in source:
        return Path(source)
    with need_extra():
        from .dicomweb import fetch as fetch_series
    return fetch_series(source, folder)
