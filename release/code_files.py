"""Code of the package -> the folder of a checkpoint, so that the folder loads as it stands with `trust_remote_code=True`.

    ctfm code        (or: make code)

writes the files beside the weights of checkpoints/default and reporting/checkpoints/default. They are copies, byte for byte:
edit the file in the package, then run this. Copies and not links, because the loader and `save_pretrained` copy what lies in a
folder, and writing to a link would change the package.
"""

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from ..configuration_ctfm import CTFMConfig

ROOT = Path(__file__).parent.parent
REPORT_CLASSES = {
    "config.json": {
        "AutoConfig": "configuration_trialreport.TrialReportConfig",
        "AutoModel": "modeling_trialreport.TrialReportForSentenceLabels",
    },
    "processor_config.json": {"AutoProcessor": "processing_trialreport.TrialReportProcessor"},
}


def copy_code(classes: Iterable[str], source: Path, folder: Path) -> None:
    """The files of `"module"` or `"module.Class"` names, and every sibling that they import, directly or not.

    Raises:
        FileNotFoundError: `source` lacks one.
    """
    files = {source / f"{name.split('.')[0]}.py" for name in classes}
    files |= {Path(found) for file in files for found in get_relative_import_files(file)}
    for file in sorted(files):
        shutil.copyfile(file, folder / file.name)


def add_to_json(file: Path, facts: Mapping[str, Mapping]) -> None:
    ordered = {name: dict(sorted(fact.items())) for name, fact in facts.items()}  # as save_pretrained writes them
    file.write_text(json.dumps(json.loads(file.read_text()) | ordered, indent=2) + "\n")


def write_model_code(folder: Path, root: Path = ROOT) -> None:
    """Code of the CT model, and in config.json which class each Auto class and each pipeline task loads."""
    config = CTFMConfig()
    named = {"auto_map": config.auto_map, "custom_pipelines": config.custom_pipelines}
    add_to_json(folder / "config.json", named)
    copy_code(config.auto_map.values(), root, folder)


def write_report_code(folder: Path, root: Path = ROOT) -> None:
    """Code of the trial-report model, in the same way."""
    for name, classes in REPORT_CLASSES.items():
        add_to_json(folder / name, {"auto_map": classes})
        copy_code(classes.values(), root / "reporting", folder)


def main(arguments: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog="ctfm code", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    model, report = ROOT / "checkpoints" / "default", ROOT / "reporting" / "checkpoints" / "default"
    for file in (*model.glob("*.py"), *report.glob("*.py")):
        file.unlink()  # one that the package no longer has
    write_model_code(model)
    write_report_code(report)
    return 0
