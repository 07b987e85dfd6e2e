"""For whoever hosts the Space: `/health` says that it serves and which weights, `/metrics` counts calls, in Prometheus' text
format.

Neither holds anything of a scan or a visitor: functions, how they ended and how long they took, and what is in memory.
"""

import resource
import sys
import threading
from collections import Counter

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from service import Service

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"  # of Prometheus


class Calls:
    """How often every function of the page and the API ended, how, and the seconds that it took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: Counter[tuple[str, str]] = Counter()
        self._seconds: Counter[str] = Counter()

    def add(self, function: str, outcome: str, seconds: float) -> None:
        """`outcome` is "done", "refused" (told in words why), "failed" (an error of the Space) or "cancelled"."""
        with self._lock:
            self._ended[function, outcome] += 1
            self._seconds[function] += seconds  # type: ignore[assignment]

    def lines(self) -> list[str]:
        with self._lock:
            ended, seconds = sorted(self._ended.items()), sorted(self._seconds.items())
        return [
            "# HELP ctfm_space_calls_total Calls by function and how they ended.",
            "# TYPE ctfm_space_calls_total counter",
            *(f'ctfm_space_calls_total{{function="{name}",outcome="{how}"}} {n}' for (name, how), n in ended),
            "# HELP ctfm_space_call_seconds_total Seconds that calls took, by function.",
            "# TYPE ctfm_space_call_seconds_total counter",
            *(f'ctfm_space_call_seconds_total{{function="{name}"}} {value:.3f}' for name, value in seconds),
        ]


def peak_memory() -> int:
    """Bytes that the process held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def hosting_routes(service: Service, calls: Calls) -> list[Route]:
    def health(request: Request) -> Response:
        weights = service.weights
        return JSONResponse({"status": "ok", "model": weights.name, "answers_findings": weights.gate is not None})

    def metrics(request: Request) -> Response:
        gauges = (
            ("ctfm_space_scans_in_memory", "Scans that a second look finds again.", len(service.cache)),
            ("ctfm_space_peak_memory_bytes", "Most memory that the process has held.", peak_memory()),
        )
        lines = calls.lines()
        for name, told, value in gauges:
            lines += [f"# HELP {name} {told}", f"# TYPE {name} gauge", f"{name} {value}"]
        return PlainTextResponse("\n".join(lines) + "\n", headers={"Content-Type": TEXT_FORMAT})

    return [Route("/health", health), Route("/metrics", metrics)]
