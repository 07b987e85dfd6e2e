"""`ctfm ...`: the command line over the public API.

ctfm inspect SCAN [--json]        what is in a scan, what was checked and repaired; exit code 2 where it cannot be read
ctfm embed SCAN... --out DIR      features of every scan, as safetensors, and a manifest
ctfm demo [SCAN] [--out DIR]      the main job on one scan, with pictures
ctfm report-check FILE            what a clinical-trial report leaves out

Imports come with the command that needs them, so that --help and inspect wait for neither torch nor transformers.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoints" / "default"
UNTRAINED = "untrained"
SPACINGS = ("scan", "fine", "coarse", "native")  # SPACING_PRESETS of image_processing_ctfm.py


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["report-check"]:
        from .reporting.command import main as check_report

        return check_report(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="ctfm",
        description=str(__doc__).rpartition("\n\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    default = str(DEFAULT_CHECKPOINT) if DEFAULT_CHECKPOINT.is_dir() else UNTRAINED

    inspecting = commands.add_parser("inspect", help="what is in a scan, what was checked and repaired")
    inspecting.add_argument("scan", type=Path)
    inspecting.add_argument("--json", action="store_true", help="print JSON")
    inspecting.add_argument("--series", help="which series, where there are several")

    embedding = commands.add_parser("embed", help="features of scans, as safetensors, and a manifest")
    embedding.add_argument(
        "scans", type=Path, nargs="+", metavar="SCAN", help="DICOM folder, zip, NIfTI, ...; or a folder of them"
    )
    embedding.add_argument("--out", type=Path, required=True)
    embedding.add_argument("--dense", action="store_true", help="also the features of every patch")

    showing = commands.add_parser("demo", help="the main job on one scan, with pictures")
    showing.add_argument("scan", type=Path, nargs="?", help="a synthetic phantom when left out")
    showing.add_argument("--out", type=Path, default=Path("demo"))
    showing.add_argument("--series", help="which series, where there are several")

    for command in (embedding, showing):
        command.add_argument("--model", default=default, help="checkpoint folder or Hub id (%(default)s)")
        command.add_argument("--spacing", choices=SPACINGS, help="instead of the checkpoint's own")
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    from .volume_scan_ctfm import AmbiguousSeriesError, VolumeError

    try:
        if options.command == "inspect":
            from .inspection import inspect

            return inspect(options.scan, options.series, options.json)
        if options.command == "embed":
            from .embedding import embed

            return embed(options.scans, options.out, options.model, options.spacing, options.dense)
        from .demo import demo

        return demo(options.scan, options.out, options.model, options.series, options.spacing)
    except AmbiguousSeriesError as error:
        print(f"ctfm: {error}\nChoose one with --series UID.", file=sys.stderr)
    except (VolumeError, OSError) as error:  # a scan, or a folder or checkpoint that is not there
        print(f"ctfm: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
