"""Folder as its publisher laid it out -> `ScanSource`s: where each scan lies and what is said about it.

Nothing is read here but names and tables. A layout that keeps several reconstructions of one scan gives them one `group`;
`prepare` takes the one with the highest `preference` unless asked for all.
"""

import ast
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import TableError
from ..volume_studies_ctfm import ENDINGS, find_scans
from .table_files import read_table

CT_RATE_NAME = re.compile(r"((train|valid)_\d+)_([a-z]+)_(\d+)\.nii\.gz")
# 25,692 scans have 50,188 reconstructions; files under *_fixed were corrected by the authors (their data_correction_note).
CT_RATE_SPLITS = {
    "train": ("train", "train"),
    "valid": ("validation", "valid"),
}  # our name and the reports', the labels'

SPLITS = ("train", "validation", "test")  # the only names of splits past this file
SPELLINGS = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}
LABELS = {"1": 1.0, "yes": 1.0, "true": 1.0, "present": 1.0, "0": 0.0, "no": 0.0, "false": 0.0, "absent": 0.0}
TABLE_COLUMNS = ("path", "patient", "split", "report", "region", "series_uid", "segmentation")  # no findings


@dataclass(frozen=True, kw_only=True)
class StatedFacts:
    """What a table beside the scans says about a file's values and geometry.

    Args:
        slope, intercept: of the rescale that the file may or may not have gone through; None where nothing is said.
        spacing: mm, `(depth, height, width)`.
        header_is_right: the publisher corrected the file, so where both differ, the table is what is wrong.
    """

    slope: float | None = None
    intercept: float | None = None
    spacing: tuple[float, float, float] | None = None
    header_is_right: bool = False


@dataclass(frozen=True, kw_only=True)
class ScanSource:
    """One scan to prepare.

    Args:
        path: what `read_volume` opens; series_uid: which series of it.
        name: distinguishes the scan in its data set on any machine; patient: who it is of; neither is written anywhere in
            the clear.
        labels: finding -> 1 present, 0 absent; what is not stated is missing.
        split: of `SPLITS`, or empty.
        group: scans of one group are reconstructions of one scan; empty where a layout does not say.
        segmentation: a label map on the scan's voxels.
        refused: why the publisher's own lists leave this scan out.
    """

    path: Path
    name: str
    patient: str
    series_uid: str | None = None
    group: str = ""
    preference: tuple[float, ...] = ()
    report: str = ""
    labels: dict[str, float] = field(default_factory=dict)
    split: str = ""
    region: str = ""
    stated: StatedFacts = StatedFacts()
    segmentation: Path | None = None
    refused: str = ""


# --- any folder, any table -----------------------------------------------------------------------------------------------


def find_folder(root: Path) -> list[ScanSource]:
    """A folder of studies: each file with a scan's ending is one, and so is each series of a folder of other files. The
    folder directly under `root` is the patient."""
    return [
        ScanSource(path=path, series_uid=uid, name=f"{_inside(root, path)}#{uid or ''}", patient=_first(root, path))
        for path, uid in find_scans(root)
    ]


def find_csv(table: Path) -> list[ScanSource]:
    """A table with the columns path (relative to it) and, as far as known, report, patient, split (train, validation, test),
    region, series_uid, segmentation (the path of a label map, whose labels structures.json beside the table names:
    `{"1": "liver"}`). Every other column is a finding's label: 1 or 0, yes or no, true or false; empty where not stated.

    Raises:
        TableError: there is no column path, or a split or a label is none of these.
    """
    rows, sources = read_table(table, "path"), []
    for number, row in enumerate(rows, 2):
        uid = row.get("series_uid") or None
        place = f"{table.name}, row {number}"
        sources.append(
            ScanSource(
                path=table.parent / row["path"],
                series_uid=uid,
                name=f"{row['path']}#{uid or ''}",
                patient=row.get("patient") or row["path"],
                report=row.get("report", ""),
                split=read_split(row.get("split", ""), place),
                region=row.get("region", ""),
                labels=read_labels({k: v for k, v in row.items() if k not in TABLE_COLUMNS}, place),
                segmentation=table.parent / row["segmentation"] if row.get("segmentation") else None,
            )
        )
    return sources


# --- published layouts ---------------------------------------------------------------------------------------------------


def find_ct_rate(root: Path) -> list[ScanSource]:
    """CT-RATE as on the Hub: dataset/{train,valid}[_fixed]/train_1/train_1_a/train_1_a_1.nii.gz and its tables. The last
    number is the reconstruction: of one scan the one with the thinnest slices comes first, then the first number."""
    root = root / "dataset" if (root / "dataset").is_dir() else root
    sources = []
    for split, (long_name, short_name) in CT_RATE_SPLITS.items():
        texts = ("Findings_EN", "Impressions_EN")
        reports = _by(root / f"radiology_text_reports/{long_name}_reports.csv", "VolumeName", *texts)
        stated = _by(root / f"metadata/{long_name}_metadata.csv", "VolumeName")
        labels = _labels_by(root / f"multi_abnormality_labels/{short_name}_predicted_labels.csv", "VolumeName")
        no_chest = root / f"metadata/no_chest_{split}.txt"
        left_out = {Path(line).name for line in no_chest.read_text().split()} if no_chest.is_file() else set()
        for folder in (root / split, root / f"{split}_fixed"):
            for path in sorted(folder.rglob("*.nii.gz")):
                match = CT_RATE_NAME.fullmatch(path.name)
                if match is None:
                    continue
                facts = _ct_rate_facts(stated.get(path.name, {}), folder.name.endswith("_fixed"))
                text = reports.get(path.name, {})
                depth = facts.spacing[0] if facts.spacing else float("inf")
                sources.append(
                    ScanSource(
                        path=path,
                        name=_inside(root, path),
                        patient=match[1],
                        group=f"{match[1]}_{match[3]}",
                        preference=(float(facts.header_is_right), -depth, -float(match[4])),
                        report=_sections(findings=text.get("Findings_EN"), impression=text.get("Impressions_EN")),
                        labels=labels.get(path.name, {}),
                        split=long_name,
                        region="chest",
                        stated=facts,
                        refused="the publisher lists it as no chest scan" if path.name in left_out else "",
                    )
                )
    return sources


def _ct_rate_facts(row: dict[str, str], is_fixed: bool) -> StatedFacts:
    spacing = None
    if row.get("XYSpacing") and row.get("ZSpacing"):
        in_plane = ast.literal_eval(row["XYSpacing"])
        height, width = in_plane if isinstance(in_plane, list | tuple) else (in_plane, in_plane)
        spacing = (float(row["ZSpacing"]), float(height), float(width))
    slope, intercept = (float(row[name]) if row.get(name) else None for name in ("RescaleSlope", "RescaleIntercept"))
    return StatedFacts(slope=slope, intercept=intercept, spacing=spacing, header_is_right=is_fixed)


def find_merlin(root: Path) -> list[ScanSource]:
    """Merlin as Stanford AIMI hands it out: merlin_data/*.nii.gz, reports_final*.xlsx (study id, Findings, Impressions,
    Split), zero_shot_findings_disease_cls.csv (1 found, 0 negated, -1 not mentioned). One series a study; the patient is
    not published, so a study stands for one."""
    root = root / "merlinabdominalctdataset" if (root / "merlinabdominalctdataset").is_dir() else root
    tables = sorted([*root.glob("reports_final*.xlsx"), *root.glob("reports_final*.csv")])
    reports = _by(tables[-1] if tables else None, "study id", "Findings", "Impressions", "Split")
    labels = _labels_by(root / "zero_shot_findings_disease_cls.csv", "study id", unstated=("-1",))
    sources = []
    for path in _scans_in(root / "merlin_data"):
        study = _stem(path)
        text = reports.get(study, {})
        sources.append(
            ScanSource(
                path=path,
                name=_inside(root, path),
                patient=study,
                report=_sections(findings=text.get("Findings"), impression=text.get("Impressions")),
                labels=labels.get(study, {}),
                split=read_split(text.get("Split", ""), "Merlin's table of reports"),
                region="abdomen",
            )
        )
    return sources


def find_inspect(root: Path) -> list[ScanSource]:
    """INSPECT as Stanford AIMI hands it out: CTPA/<image_id>.nii.gz, and study_mapping, impressions, labels and splits as
    dated .tsv, joined by impression_id."""
    mapping = _by(_latest(root, "study_mapping_*.tsv"), "image_id", "impression_id", "person_id")
    texts = _by(_latest(root, "impressions_*.tsv"), "impression_id", "impressions")
    # Outcomes are "Censored" where a patient was not followed long enough.
    labels = _labels_by(_latest(root, "labels_*.tsv"), "impression_id", unstated=("censored",))
    splits = _by(_latest(root, "splits_*.tsv"), "impression_id", "split")
    sources = []
    for path in _scans_in(root / "CTPA"):
        study = mapping.get(_stem(path), {})
        key = study.get("impression_id", "")
        sources.append(
            ScanSource(
                path=path,
                name=_inside(root, path),
                patient=study.get("person_id") or _stem(path),
                report=_sections(findings=None, impression=texts.get(key, {}).get("impressions")),
                labels=labels.get(key, {}),
                split=read_split(splits.get(key, {}).get("split", ""), "INSPECT's table of splits"),
                region="chest",
            )
        )
    return sources


def find_nlst(root: Path) -> list[ScanSource]:
    """NLST as TCIA hands it out: <patient>/<study>/<series>/*.dcm, no reports. The series of a study are reconstructions
    of one breath hold: the one with the most slices comes first."""
    root = root / "NLST" if (root / "NLST").is_dir() else root
    return [
        ScanSource(
            path=path,
            series_uid=uid,
            name=f"{_inside(root, path)}#{uid or ''}",
            patient=_first(root, path),
            group="/".join(path.relative_to(root).parts[:2]),
            preference=(float(sum(1 for _ in path.iterdir())) if path.is_dir() else 0.0,),
            region="chest",
        )
        for path, uid in find_scans(root)
    ]


def find_rad_chestct(root: Path) -> list[ScanSource]:
    """RAD-ChestCT as on Zenodo (6406114): <id>.npz in any folder, img{train,valid,test}_Abnormality_and_Location_Labels.csv
    with a column for each abnormality*location, CT_Scan_Metadata_Complete_35747.csv for the patient. An abnormality is found
    where any of its locations has it; names are those of CT-RATE, joined as HLIP does. No reports are public."""
    patients = _by(next(root.rglob("CT_Scan_Metadata_Complete_*.csv"), None), "NoteAcc_DEID", "MRN_DEID")
    scans = {path.stem: path for path in sorted(root.rglob("*.npz"))}
    sources = []
    for split in ("train", "valid", "test"):
        table = _labels_by(next(root.rglob(f"img{split}_Abnormality_and_Location_Labels.csv"), None), "NoteAcc_DEID")
        for name in sorted(table.keys() & scans.keys()):
            found: dict[str, float] = {}
            for column, value in table[name].items():
                for label in RAD_CHESTCT_NAMES.get(column.split("*")[0], ()):
                    found[label] = max(found.get(label, 0.0), value)
            patient = patients.get(name, {}).get("MRN_DEID") or name
            sources.append(
                ScanSource(
                    path=scans[name],
                    name=name,
                    patient=patient,
                    labels=found,
                    split=SPELLINGS.get(split, split),
                    region="chest",
                )
            )
    return sources


RAD_CHESTCT_NAMES: dict[str, tuple[str, ...]] = {
    "emphysema": ("Emphysema",),
    "atelectasis": ("Atelectasis",),
    "nodule": ("Lung nodule",),
    "opacity": ("Lung opacity",),
    "fibrosis": ("Pulmonary fibrotic sequela",),
    "pleural_effusion": ("Pleural effusion",),
    "bronchial_wall_thickening": ("Peribronchial thickening",),
    "consolidation": ("Consolidation",),
    "bronchiectasis": ("Bronchiectasis",),
    "septal_thickening": ("Interlobular septal thickening",),
    "cardiomegaly": ("Cardiomegaly",),
    "pericardial_effusion": ("Pericardial effusion",),
    "calcification": ("Coronary artery wall calcification", "Arterial wall calcification"),
    "hernia": ("Hiatal hernia",),
}

LAYOUTS: dict[str, Callable[[Path], list[ScanSource]]] = {
    "folder": find_folder,
    "csv": find_csv,
    "ct-rate": find_ct_rate,
    "merlin": find_merlin,
    "inspect": find_inspect,
    "nlst": find_nlst,
    "rad-chestct": find_rad_chestct,
}


# --- tables and names ----------------------------------------------------------------------------------------------------


def read_split(text: str, place: str) -> str:
    """`SPLITS`, however a table spells them.

    >>> read_split("valid", "table.csv, row 2")
    'validation'

    Raises:
        TableError: it is another word.
    """
    word = text.strip().lower()
    word = SPELLINGS.get(word, word)
    if word and word not in SPLITS:
        raise TableError(f'{place}: split "{text}" is none of {", ".join(SPLITS)}; leave it empty for a scan of none.')
    return word


def read_labels(columns: Mapping[str, str], place: str, unstated: Collection[str] = ()) -> dict[str, float]:
    """Column -> 1 or 0; what is empty, or one of the words in `unstated`, is left out.

    >>> read_labels({"Lung nodule": "yes", "Ascites": "0", "Cyst": ""}, "table.csv, row 2")
    {'Lung nodule': 1.0, 'Ascites': 0.0}

    Raises:
        TableError: a cell holds anything else. It is not repeated: a column that is no finding's may name the patient.
    """
    labels = {}
    for name, text in columns.items():
        word = text.strip().lower()
        word = re.sub(r"\.0+$", "", word)  # a spreadsheet's 1.0
        if not word or word in unstated:
            continue
        if word not in LABELS:
            raise TableError(
                f'{place}: column "{name}" holds no label. A finding\'s column holds 1 or 0, yes or no, true or false, or '
                f"nothing where it is not stated; remove columns of anything else. Other columns: {', '.join(TABLE_COLUMNS)}."
            )
        labels[name] = LABELS[word]
    return labels


def _by(path: Path | None, key: str, *needed: str) -> dict[str, dict[str, str]]:
    """Rows by one column, the first of equals; no rows where there is no table."""
    found: dict[str, dict[str, str]] = {}
    if path is not None and path.is_file():
        rows = read_table(path, key, *needed)
        for row in rows:
            found.setdefault(row[key], row)
    return found


def _labels_by(path: Path | None, key: str, unstated: Collection[str] = ()) -> dict[str, dict[str, float]]:
    """Labels by one column; columns that end in _id name something and are no findings."""
    found: dict[str, dict[str, float]] = {}
    if path is not None and path.is_file():
        rows = read_table(path, key)
        for number, row in enumerate(rows, 2):
            columns = {name: text for name, text in row.items() if name != key and not name.endswith("_id")}
            found.setdefault(row[key], read_labels(columns, f"{path}, row {number}", unstated))
    return found


def _latest(root: Path, pattern: str) -> Path | None:
    return max(root.glob(pattern), default=None)


def _sections(*, findings: str | None, impression: str | None) -> str:
    parts = (("Findings", findings), ("Impression", impression))
    return "\n".join(f"{name}: {text.strip()}" for name, text in parts if text and text.strip())


def _scans_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.name.lower().endswith(ENDINGS))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _inside(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _first(root: Path, path: Path) -> str:
    return path.relative_to(root).parts[0] if path != root else "."
