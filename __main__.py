"""`ctfm COMMAND ...`: every program of the project. Each is the `main(arguments)` of a module that COMMANDS names.

Nothing is imported before a command is chosen, so that `ctfm --help` waits for neither numpy nor torch. Launchers start the
same programs: `torchrun -m ctfm pretrain ...`, `accelerate launch -m ctfm finetune ...`.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

# Group -> the extra that its commands need, and command -> (module, what it does).
COMMANDS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "Scans": (
        "io",
        {
            "inspect": ("inspection", "what is in a scan, what was checked and what was repaired"),
            "embed": ("embedding", "features of scans, as safetensors, and a manifest"),
            "segment": ("clinical.segment", "organs as label maps on a scan's own voxels, with their names"),
            "worklist": ("clinical.worklist", "studies ranked by what a checkpoint says, with a page"),
            "demo": ("demo", "the main job on one scan, with pictures"),
        },
    ),
    "Hospitals": (
        "clinical",
        {
            "report": ("clinical.report", "scans to DICOM SR, SEG and PDF and to FHIR"),
            "listen": ("clinical.listen", "a DICOM node that takes studies, works them and stores the results back"),
        },
    ),
    "Search": (
        "search",
        {
            "index": ("vector_index", "an index of embedded scans"),
            "search": ("search", "scans like a text, a scan or a region of one"),
        },
    ),
    "Serving": (
        "onnx",
        {
            "export-onnx": ("onnx_export", "a checkpoint as ONNX, in a folder that Triton serves"),
        },
    ),
    "Training": (
        "train",
        {
            "phantom": ("phantom.dataset", "draw synthetic patients: scans, label maps, findings and reports"),
            "prepare": ("train.prepare", "scans, reports and label maps to shards, once"),
            "pretrain": ("train.pretrain", "a recipe from end to end; the same command resumes it"),
            "probe": ("train.table_probe", "a table of scans to a trained head on frozen features, in minutes"),
            "finetune": ("train.finetune", "a checkpoint and labels to a model of findings or of voxels"),
            "export": ("train.checkpoint", "any checkpoint of a run to a folder that from_pretrained loads"),
            "plan": ("train.plan", "storage, hours and cost of the largest recipe on 250,000 scans"),
        },
    ),
    "Evaluation": (
        "train",
        {
            "evaluate": ("evaluate.evaluate", "metrics of a checkpoint with 95 % intervals, by a protocol"),
            "probe-checkpoints": ("evaluate.probe", "how much features know of the labels, while a run goes on"),
            "learning-curve": ("evaluate.learning", "probes of every checkpoint of a run, and their curve"),
            "nodules": ("evaluate.nodules", "what features say about lung nodules, beside their diameter alone"),
            "organs": ("evaluate.organs", "overlap of segmented organs with label maps of real scans"),
            "real-scans": ("evaluate.real_scans", "a sanity check on a few real scans, with pictures"),
        },
    ),
    "Release": (
        "train",
        {
            "convert-spectre": ("release.convert_spectre", "SPECTRE's published weights to a CTFM checkpoint"),
            "record": ("release.record", "a finished run to the folder of its checkpoint"),
            "split-weights": ("release.split_weights", "the text tower of a folder to a file of its own"),
            "card": ("release.card", "the figures of the model card from its metrics"),
            "code": ("release.code_files", "copy the package's code into the folders of the checkpoints"),
            "gallery": ("phantom.gallery", "phantoms that the Space shows, encoded by a checkpoint"),
            "release": ("release.release", "publish models and Space to the Hub; --dry-run shows what would go"),
        },
    ),
    "Trial reports": (
        "reporting",
        {
            "report-check": ("reporting.command", "what a clinical-trial report leaves out"),
        },
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 if all is done; 1 if some inputs failed or a check of the command refused; 2 if an argument, an input or a library is
        unusable, which a line on stderr names.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help"):
        print(format_help())
        return 0
    if name == "--version":
        print(f"ctfm {importlib.metadata.version('ctfm')}")
        return 0
    for extra, commands in COMMANDS.values():
        if name in commands:
            return run(name, commands[name][0], extra, rest)
    print(f"{format_help()}\n\nctfm: " + (f"no command {name!r}" if name else "which command?"), file=sys.stderr)
    return 2


def format_help() -> str:
    lines = ["usage: ctfm COMMAND ...", "       ctfm COMMAND --help", "       ctfm --version"]
    for group, (_, commands) in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name:18}{line}" for name, (_, line) in commands.items())]
    return "\n".join(lines)


def run(name: str, module: str, extra: str, arguments: Sequence[str]) -> int:
    try:
        program = importlib.import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "ctfm":
            raise
        from .installation import how_to_install

        print(
            f'ctfm {name}: "{error.name}" is not installed. It needs the extra [{extra}]: run {how_to_install(extra)}.',
            file=sys.stderr,
        )
        return 2
    from .errors import TableError
    from .volume_scan_ctfm import AmbiguousSeriesError, VolumeError

    try:
        return program.main(arguments)
    except AmbiguousSeriesError as error:
        print(f"ctfm: {error}\nChoose one with --series UID.", file=sys.stderr)
    except (VolumeError, TableError, OSError) as error:  # a scan, a table, or a folder or checkpoint that is not there
        print(f"ctfm: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
