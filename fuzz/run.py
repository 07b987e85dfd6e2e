"""Fuzzes one target, or each in a process of its own: python -m ctfm.fuzz.run [TARGET] --seconds 60

With atheris (pip install ".[fuzz]") guided by coverage, else by the project's own mutations. What a target raised, or ran
out of time or memory with, stays in runs/fuzz/TARGET/findings; a run with findings ends with 1.
"""

import argparse
import hashlib
import logging
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

MAX_SECONDS = 20  # for one input; sound ones take milliseconds
MAX_BYTES = 8 * 2**30  # of address space, torch's included
FOLDER = Path("runs/fuzz")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", help="dicom_series, nifti, pdf, ...; all of them by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=None, help="of the mutations; the time by default")
    given = parser.parse_args(arguments)
    seed = given.seed if given.seed is not None else int(time.time())
    if given.target is None:
        return _run_all(given.seconds, seed)
    logging.disable(logging.CRITICAL)  # what parsers say of the damage
    folder = FOLDER / given.target
    (folder / "findings").mkdir(parents=True, exist_ok=True)
    if find_spec("atheris") is not None:
        return _run_atheris(given.target, given.seconds, seed, folder)
    print("atheris is not installed: the project's own mutations, without coverage")
    return _run_mutations(given.target, given.seconds, seed, folder)


def _run_all(seconds: int, seed: int) -> int:
    from .targets import TARGETS

    failed = []
    for name in TARGETS:
        command = [sys.executable, "-m", "ctfm.fuzz.run", name, "--seconds", str(seconds), "--seed", str(seed)]
        print(f"{name}: {seconds} s", flush=True)
        if subprocess.run(command, check=False).returncode:  # a decoder that ends its process is a finding, too
            failed.append(name)
    print(f"findings: {', '.join(failed)}; see {FOLDER}" if failed else "no findings")
    return 1 if failed else 0


def _run_atheris(name: str, seconds: int, seed: int, folder: Path) -> int:
    import atheris  # pyright: ignore[reportMissingImports, reportMissingModuleSource] -- optional

    with atheris.instrument_imports(include=["ctfm", "pydicom", "pypdf", "docx"]):  # pyright: ignore[reportAttributeAccessIssue]
        from .targets import TARGETS
    target = TARGETS[name]
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for content in target.seeds():
        (corpus / hashlib.sha1(content).hexdigest()).write_bytes(content)
    words = ['"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in target.words]
    (folder / "words.dict").write_text("\n".join(words) + "\n")
    scratch = tempfile.TemporaryDirectory(
        prefix="ctfm-fuzz-"
    )  # libFuzzer ends the process: left to the system otherwise

    def test_one_input(content: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=scratch.name) as place:
            target.check(content, Path(place))

    options = [f"-max_total_time={seconds}", f"-seed={seed % 2**31}", f"-timeout={MAX_SECONDS}", "-rss_limit_mb=4096"]
    options += [f"-dict={folder / 'words.dict'}", f"-artifact_prefix={folder / 'findings'}/", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", "-verbosity=0", str(corpus)], test_one_input)
    atheris.Fuzz()  # ends the process with its verdict
    return 0


def _run_mutations(name: str, seconds: int, seed: int, folder: Path) -> int:
    from .mutate import mutate
    from .targets import TARGETS

    target = TARGETS[name]
    chance, seeds = random.Random(seed), target.seeds()
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    signal.signal(signal.SIGALRM, _too_long)
    end, num_runs, num_found = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        content = mutate(chance, seeds, target.words)
        last = folder / "last"  # a decoder that ends the process leaves it
        last.write_bytes(content)
        signal.alarm(MAX_SECONDS)
        try:
            with tempfile.TemporaryDirectory(prefix="ctfm-fuzz-") as place:
                target.check(content, Path(place))
        except Exception:  # anything but the reader's own error is what is looked for
            signal.alarm(0)
            found = folder / "findings" / hashlib.sha1(content).hexdigest()
            found.write_bytes(content)
            traceback.print_exc()
            print(found)
            num_found += 1
        finally:
            signal.alarm(0)
        num_runs += 1
    last.unlink(missing_ok=True)
    print(f"{name}: {num_runs} inputs, {num_found} findings (seed {seed})")
    return 1 if num_found else 0


def _too_long(*_: object) -> None:
    raise TimeoutError(f"one input took more than {MAX_SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
