"""The example cases of the first screen: phantoms whose truth is known, because it was drawn.

cases.json says what to draw; `ctfm gallery` draws it into examples/ while the page is already there, or before a release.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from uploads import UploadError

HERE = Path(__file__).parent
DRAWING = "drawing"  # a file in examples/ for as long as it is drawn
MAX_WAIT_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """`findings` is what was drawn; `folder` is where the scan is, or will be."""

    key: str
    findings: tuple[str, ...]
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / f"{self.key}.zip"

    @property
    def picture(self) -> Path:
        """Shipped with the page, so that it is there before the scan is drawn: docs/space_pictures.py takes it again."""
        return HERE / "static" / f"case_{self.key}.png"

    def wait(self) -> Path:
        """The scan, as soon as it is drawn.

        Raises:
            UploadError: it is not there, and nobody draws it.
        """
        until = time.monotonic() + MAX_WAIT_SECONDS
        while not self.path.is_file():
            if time.monotonic() > until or not (self.folder / DRAWING).is_file():
                raise UploadError("error_not_drawn")
            time.sleep(0.3)
        return self.path


def load_cases(folder: Path) -> list[Case]:
    listed = json.loads((HERE / "cases.json").read_text())
    return [Case(key=row["key"], findings=tuple(row["findings"]), folder=folder) for row in listed]
