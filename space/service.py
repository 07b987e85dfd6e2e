"""What the page and the API both do with an upload: take it, read it or find it in memory, analyse it, delete it."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis import Analyser, Analysis
from loading import Weights
from uploads import Scan, ScanCache, Upload, UploadError, read_scan, scan_key, sweep, take

MAX_AGE_SECONDS = (
    15 * 60.0
)  # of a file that nobody touched: an upload that was never read, a download that was never fetched

Report = Callable[[float, str], object]


def say_nothing(share: float, stage: str) -> None:
    """For callers without a progress bar."""


class Service:
    """One for the whole process: the model, the scans in memory, and the folder of temporary files."""

    def __init__(self, weights: Weights, work: Path, gallery: Path | None = None) -> None:
        self.weights, self.work = weights, work
        self.made = work / "made"  # what the Space wrote itself: the only folder of `work` that is served
        self.analyser = Analyser(weights, gallery)
        self.cache = ScanCache()

    def receive(self, paths: Sequence[str], keep: bool = False) -> Upload:
        return take(paths, self.work, keep)

    def read(self, upload: Upload, number: int | None = None, keeps_upload: bool = False) -> tuple[Scan | None, bool]:
        """The scan of an upload, and whether it was in memory already; None where a series has to be chosen.

        The files are deleted unless they are needed for that choice, or for another one (`keeps_upload`).

        Raises:
            UploadError: it cannot be read; its files are gone then, too.
        """
        scan = self.cache.get(scan_key(upload, number))
        if scan is not None:
            if not keeps_upload and not upload.series:
                upload.delete()
            return scan, True
        try:
            scan = read_scan(upload, number, self.weights.volume, time.perf_counter)
        except UploadError:
            if not keeps_upload:
                upload.delete()
            raise
        if scan is None:
            return None, False
        self.cache.put(scan)
        if not upload.series:
            upload.delete()
        return scan, False

    def scan(self, key: str | None) -> Scan:
        scan = self.cache.get(key)
        if scan is None:
            raise UploadError("error_no_scan")
        return scan

    def analysed(self, key: str | None) -> tuple[Scan, Analysis]:
        scan = self.scan(key)
        if scan.analysis is None:
            raise UploadError("error_no_analysis")
        return scan, scan.analysis

    def open(
        self, paths: Sequence[str], number: int | None = None, report: Report = say_nothing, keep: bool = False
    ) -> tuple[Scan, Analysis]:
        """Upload -> analysed scan in one step, for callers that cannot be asked for a series."""
        upload = self.receive(paths, keep)
        try:
            report(0.0, "stage_read")
            scan, _ = self.read(upload, number)
            if scan is None:
                raise UploadError("error_choose_series", f"0 … {len(upload.series) - 1}")
        finally:
            upload.delete()
        return scan, self.analyser.analyse(scan, report)

    def start_sweeping(self, every_seconds: float = 60.0) -> None:
        """Deletes in the background, for as long as the process lives, what was left behind."""

        def go_on() -> None:
            while True:
                time.sleep(every_seconds)
                sweep(self.work, time.time(), MAX_AGE_SECONDS)

        threading.Thread(target=go_on, daemon=True, name="sweep").start()
