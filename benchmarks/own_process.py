"""What a benchmark's own process has used so far."""

import resource
from pathlib import Path


def cpu_seconds() -> float:
    """Of all threads, in user and kernel mode."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def status_bytes(name: str) -> int:
    """A memory figure of /proc/self/status (Linux): VmRSS is what is held now, VmHWM the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
