"""Scans on disk -> shards, manifest, fingerprint."""

import csv
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from ctfm import read_volume
from ctfm.__main__ import main as ctfm
from ctfm.phantom.dicom_series import write_dicom_series
from ctfm.train import prepare as preparing
from ctfm.train.layouts import StatedFacts, find_csv, find_ct_rate, find_inspect, find_merlin, find_nlst
from ctfm.train.prepare import (
    PrepareConfig,
    choose_sources,
    main,
    prepare,
    resolve_stated_spacing,
    resolve_stated_values,
)
from ctfm.train.shards import Manifest, ShardWriter, decode_block, encode_block, open_shard
from ctfm.volume_ctfm import GeometryError, NotCTError, Volume

from tests.phantoms import canonical_affine, phantom_hu

SHAPE = (24, 48, 40)


def write_nifti(path: Path, hu: np.ndarray, spacing: tuple[float, float, float] = (3.0, 1.0, 1.25)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Volume(hu=hu, affine=canonical_affine(spacing)).to_nifti(path)
    return path


def write_csv(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
    return path


def configure(tmp_path: Path, layout: str, source: Path, **settings) -> PrepareConfig:
    return PrepareConfig(layout=layout, source=source, out=tmp_path / "out", private=tmp_path / "private", **settings)


def refusals(out: Path) -> list[dict[str, str]]:
    with (out / "refusals.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    for number in range(5):
        write_nifti(folder / f"patient{number // 2}" / f"scan{number}.nii", phantom_hu(seed=number))
    return folder


# --- the format ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (32, 64, 64)])
def test_any_int16_block_comes_back_bit_for_bit(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    block = rng.integers(-32768, 32768, shape, dtype=np.int16)
    np.testing.assert_array_equal(decode_block(encode_block(block), shape), block)


def test_a_box_of_a_shard_is_the_slice_of_the_array_and_air_outside(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    scans = [rng.integers(-2000, 4000, shape, dtype=np.int16) for shape in ((40, 70, 130), (5, 64, 3))]
    with ShardWriter(tmp_path / "a.arrow") as writer:
        for number, hu in enumerate(scans):
            writer.add(str(number), hu, (16, 32, 64))
    shard = open_shard(str(tmp_path / "a.arrow"))
    for row, hu in enumerate(scans):
        padded = np.pad(hu, 50, constant_values=-1024)
        for _ in range(20):
            start, size = rng.integers(-50, np.array(hu.shape)), rng.integers(1, 50, 3)
            expected = padded[tuple(slice(a + 50, a + 50 + n) for a, n in zip(start, size, strict=True))]
            np.testing.assert_array_equal(shard.read_box(row, start.tolist(), size.tolist()), expected)


def test_a_crop_decodes_only_the_blocks_it_touches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hu = np.random.default_rng(2).integers(-1000, 1000, (64, 128, 128), dtype=np.int16)
    with ShardWriter(tmp_path / "a.arrow") as writer:
        writer.add("a", hu)
    decoded = []
    monkeypatch.setattr("ctfm.train.shards.decode_block", lambda b, s: decoded.append(s) or decode_block(b, s))
    open_shard(str(tmp_path / "a.arrow")).read_box(0, (0, 64, 0), (32, 64, 65))
    assert len(decoded) == 2


def test_datasets_opens_a_shard(tmp_path: Path, studies: Path) -> None:
    from datasets import load_dataset

    out = configure(tmp_path, "folder", studies)
    prepare(out)
    rows = load_dataset(
        "arrow", data_files=str(out.out / "shards" / "*.arrow"), split="train", cache_dir=str(tmp_path), streaming=True
    )
    assert next(iter(rows))["shape"] == list(SHAPE)


# --- a folder and a table ------------------------------------------------------------------------------------------------


def test_a_folder_becomes_scans_with_the_voxels_and_geometry_of_the_reader(tmp_path: Path, studies: Path) -> None:
    config = configure(tmp_path, "folder", studies, scans_per_shard=2)
    fingerprint = prepare(config)
    manifest = Manifest(config.out)
    assert fingerprint["num_scans"] == len(manifest) == 5
    assert fingerprint["num_patients"] == 3
    assert fingerprint["refused"] == {}
    for number, path in enumerate(sorted(studies.rglob("*.nii"))):
        scan, volume = manifest[number], read_volume(path)
        assert (scan.shard, scan.row) == divmod(number, 2)
        assert scan.spacing == pytest.approx(volume.spacing)
        np.testing.assert_array_equal(scan.affine, volume.affine)
        np.testing.assert_array_equal(manifest.read_box(scan, (0, 0, 0), scan.shape), volume.hu)
        inside = tuple(slice(a, b) for a, b in zip(scan.body_start, scan.body_stop, strict=True))
        assert (volume.hu[inside] > -300).sum() == (volume.hu > -300).sum()


def test_the_fingerprint_counts_spacing_hu_and_bytes(tmp_path: Path, studies: Path) -> None:
    config = configure(tmp_path, "folder", studies)
    fingerprint = prepare(config)
    assert json.loads((config.out / "fingerprint.json").read_text()) == fingerprint
    assert fingerprint["spacing_mm"] == {"d": [3.0] * 5, "h": [1.0] * 5, "w": [1.25] * 5}
    assert fingerprint["num_voxels"] == 5 * np.prod(SHAPE)
    every = np.stack([phantom_hu(seed=number)[::4, ::4, ::4] for number in range(5)])
    assert fingerprint["hu"]["50"] == pytest.approx(np.quantile(every, 0.5), abs=1)


def test_a_table_gives_report_labels_split_and_patient(tmp_path: Path) -> None:
    for number in range(2):
        write_nifti(tmp_path / "scans" / f"{number}.nii", phantom_hu(seed=number))
    row = {"path": "scans/0.nii", "report": "No nodule.", "patient": "p", "split": "test", "Nodule": "0", "Ascites": ""}
    table = write_csv(tmp_path / "table.csv", [row, row | {"path": "scans/1.nii", "Nodule": "1"}])
    config = configure(tmp_path, "csv", table)
    fingerprint = prepare(config)
    first, second = Manifest(config.out)
    assert (first.report, first.split, first.labels) == ("No nodule.", "test", {"Nodule": 0.0})
    assert second.labels == {"Nodule": 1.0}
    assert first.patient == second.patient != "p"
    assert first.report_key == second.report_key
    assert fingerprint["num_repeated_reports"] == 1


def test_what_cannot_be_read_is_a_row_of_refusals_and_nothing_takes_its_place(tmp_path: Path) -> None:
    good = write_nifti(tmp_path / "scans" / "good.nii", phantom_hu())
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"broken")
    write_nifti(tmp_path / "scans" / "mask.nii", (phantom_hu() > 0).astype(np.int16))
    (tmp_path / "scans" / "twin.nii").write_bytes(good.read_bytes())
    names = ["good.nii", "broken.nii.gz", "mask.nii", "nowhere.nii", "twin.nii"]
    table = write_csv(tmp_path / "table.csv", [{"path": f"scans/{name}", "report": ""} for name in names])
    config = configure(tmp_path, "csv", table)
    fingerprint = prepare(config)
    assert fingerprint["num_scans"] == len(Manifest(config.out)) == 1
    rows = refusals(config.out)
    assert len(rows) == sum(fingerprint["refused"].values()) == 4
    said = " ".join(row["reason"] for row in rows)
    for reason in ("mask or a label map", "no such file", "same voxels"):
        assert reason in said


# --- going on ------------------------------------------------------------------------------------------------------------


def bytes_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, studies: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("ab" * 32)
    held = (  # a reader that waits for the kill with one shard written and another begun
        "import sys; from pathlib import Path; from ctfm.train import prepare as p; read = p.read_source\n"
        f"folder = Path({str(tmp_path)!r}); after = []\n"
        "def read_or_wait(source):\n"
        "    if (folder / 'killed/parts/000000.json').is_file():\n        after.append(source)\n"
        "    if len(after) == 2:\n        print('waits', flush=True); sys.stdin.read()\n"
        "    return read(source)\n"
        "p.read_source = read_or_wait; p.main(sys.argv[1:])"
    )
    arguments = ["folder", str(studies), str(tmp_path / "killed"), "--private", str(tmp_path / "private")]
    arguments += ["--scans-per-shard", "2", "--num-workers", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", held, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert "waits\n" in process.stdout  # line by line, until it is printed or the process has ended
        process.kill()
    assert not (tmp_path / "killed" / "manifest.arrow").exists()
    kept = (tmp_path / "killed" / "shards" / "000000.arrow").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (tmp_path / "killed" / "shards" / "000000.arrow").stat().st_mtime_ns == kept
    arguments[2] = str(tmp_path / "whole")
    assert main(arguments) == 0
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_two_processes_write_what_one_writes(tmp_path: Path, studies: Path) -> None:
    found = []
    for num_workers in (0, 2):
        config = PrepareConfig(
            layout="folder",
            source=studies,
            out=tmp_path / str(num_workers),
            private=tmp_path / "private",
            scans_per_shard=2,
            num_workers=num_workers,
        )
        prepare(config)
        found.append(bytes_of(config.out))
    assert found[0] == found[1]


def test_workers_print_nothing(tmp_path: Path, studies: Path) -> None:
    command = [sys.executable, "-m", "ctfm", "prepare", "folder", str(studies), str(tmp_path / "out")]
    done = subprocess.run([*command, "--num-workers", "2", "--scans-per-shard", "2"], capture_output=True, text=True)
    assert done.stdout.startswith("5 scans prepared, 0 left out")
    assert done.stderr == ""


def test_a_changed_file_is_read_again_and_its_neighbours_are_not(tmp_path: Path) -> None:
    for number in range(3):
        write_nifti(tmp_path / "studies" / f"{number}.nii", phantom_hu(seed=number))
    config = configure(tmp_path, "folder", tmp_path / "studies", scans_per_shard=1)
    prepare(config)
    times = [path.stat().st_mtime_ns for path in sorted((config.out / "shards").iterdir())]
    write_nifti(tmp_path / "studies" / "1.nii", phantom_hu(seed=9)[:-1])
    prepare(config)
    again = [path.stat().st_mtime_ns for path in sorted((config.out / "shards").iterdir())]
    assert [a == b for a, b in zip(times, again, strict=True)] == [True, False, True]
    assert Manifest(config.out)[1].shape == (23, 48, 40)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_scan_that_ends_the_process_is_refused_and_the_rest_is_prepared(
    tmp_path: Path, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = preparing.read_source

    def read_or_die(source: preparing.ScanSource) -> tuple[Volume, list[str]]:
        if "scan1" in source.name:
            os._exit(139)
        return read(source)

    monkeypatch.setattr(preparing, "read_source", read_or_die)
    monkeypatch.setattr(preparing, "start_processes", lambda: multiprocessing.get_context("fork"))
    fingerprint = prepare(configure(tmp_path, "folder", studies, scans_per_shard=3, num_workers=1))
    assert fingerprint["num_scans"] == 4
    assert fingerprint["refused"] == {"VolumeError: its reader ended the process": 1}


def test_a_prepared_folder_is_read_from_a_remote_place(tmp_path: Path, studies: Path) -> None:
    import fsspec

    config = configure(tmp_path, "folder", studies)
    prepare(config)
    fsspec.filesystem("memory").put(str(config.out), "/prepared", recursive=True)
    near, far = Manifest(config.out), Manifest("memory://prepared")
    box = ((3, 4, 5), (9, 10, 11))
    np.testing.assert_array_equal(far.read_box(far[1], *box), near.read_box(near[1], *box))


# --- what is not written -------------------------------------------------------------------------------------------------


def test_no_identifier_is_in_any_written_byte(tmp_path: Path) -> None:
    def name_patient(dataset, index: int) -> None:
        dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = "Zebrafinch^Quilla", "ID-907351", "ACC-55512"
        dataset.PatientBirthDate, dataset.InstitutionName = "19440229", "Saint Nowhere"

    studies = tmp_path / "Hospital"
    for number, uid in enumerate(("1.2.276.77.1", "1.2.276.77.2")):
        paths = write_dicom_series(
            phantom_hu(seed=number), canonical_affine(), studies / "x", series_uid=uid, edit=name_patient
        )
        for path in paths:
            path.rename(studies / f"Zebrafinch-{number}-{path.name}")
    (studies / "ID-907351.nii.gz").write_bytes(b"broken")
    config = configure(tmp_path, "folder", studies)
    fingerprint = prepare(config)
    assert fingerprint["num_scans"] == 2
    written = b"".join(bytes_of(config.out).values()) + "".join(bytes_of(config.out)).encode()
    for secret in ("Zebrafinch", "Quilla", "907351", "ACC-55512", "19440229", "Nowhere", "1.2.276.77", "Hospital"):
        assert secret.encode() not in written, secret
    assert b"Hospital" in (config.private / "sources.csv").read_bytes()
    assert config.private.stat().st_mode & 0o077 == 0


def test_ids_depend_on_the_key(tmp_path: Path, studies: Path) -> None:
    ids = []
    for name in "ab":
        config = PrepareConfig(layout="folder", source=studies, out=tmp_path / name, private=tmp_path / f"{name}-key")
        prepare(config)
        ids.append({(scan.scan_id, scan.patient) for scan in Manifest(config.out)})
    assert not ids[0] & ids[1]


# --- published layouts ---------------------------------------------------------------------------------------------------


def raw_values(hu: np.ndarray) -> np.ndarray:
    return (hu.astype(np.int32) + 1024).astype(np.int16)


def test_ct_rate_traps_are_handled_and_counted(tmp_path: Path) -> None:
    root, hu = tmp_path / "dataset", [phantom_hu(seed=number) for number in range(6)]
    scans = {  # name -> values in the file, spacing of the file, of the table
        "train_1_a_1": (hu[0], (3.0, 1.0, 1.25), (5.0, 1.0, 1.25)),
        "train_1_a_2": (hu[0] + 1, (3.0, 1.0, 1.25), (3.0, 1.0, 1.25)),
        "train_1_b_1": (raw_values(hu[1]), (3.0, 1.0, 1.25), (3.0, 1.0, 1.25)),
        "train_2_a_1": (hu[2] - 1024, (1.0, 1.0, 1.0), (3.0, 1.0, 1.25)),
        "train_3_a_1": (hu[3], (3.0, 1.0, 1.25), (3.0, 2.0, 2.5)),
        "train_4_a_1": (hu[4], (3.0, 1.0, 1.25), (3.0, 1.0, 1.25)),
    }
    for name, (values, spacing, _) in scans.items():
        patient, scan = name.rsplit("_", 2)[0], name.rsplit("_", 1)[0]
        write_nifti(root / "train" / patient / scan / f"{name}.nii.gz", values, spacing)
    stated = [
        {
            "VolumeName": f"{name}.nii.gz",
            "RescaleIntercept": "-1024",
            "RescaleSlope": "1",
            "XYSpacing": f"[{spacing[1]}, {spacing[2]}]",
            "ZSpacing": str(spacing[0]),
        }
        for name, (_, _, spacing) in scans.items()
    ]
    write_csv(root / "metadata" / "train_metadata.csv", stated)
    (root / "metadata" / "no_chest_train.txt").write_text("train/train_4/train_4_a/train_4_a_1.nii.gz\n")
    said = [
        {"VolumeName": f"{name}.nii.gz", "Findings_EN": "Clear lungs.", "Impressions_EN": "Normal."} for name in scans
    ]
    write_csv(root / "radiology_text_reports" / "train_reports.csv", said)
    labels = [{"VolumeName": f"{name}.nii.gz", "Lung nodule": "1"} for name in scans]
    write_csv(root / "multi_abnormality_labels" / "train_predicted_labels.csv", labels)

    config = configure(tmp_path, "ct-rate", tmp_path)
    fingerprint = prepare(config)
    assert fingerprint["repairs"] == {"rescale_applied": 1, "rescale_undone": 1, "spacing_from_table": 1}
    assert fingerprint["refused"] == {
        "GeometryError: file and table state different spacings": 1,
        "PassedOver: another reconstruction of the same scan is taken": 1,
        "PassedOver: the publisher lists it as no chest scan": 1,
    }
    assert fingerprint["num_repeated_reports"] == 2
    manifest = Manifest(config.out)
    for scan, expected in zip(manifest, (hu[0] + 1, hu[1], hu[2]), strict=True):
        np.testing.assert_array_equal(manifest.read_box(scan, (0, 0, 0), scan.shape), expected)
        assert scan.spacing == pytest.approx((3.0, 1.0, 1.25))
        assert scan.report == "Findings: Clear lungs.\nImpression: Normal."
        assert scan.labels == {"Lung nodule": 1.0}
    every, left_out = choose_sources(find_ct_rate(tmp_path), all_reconstructions=True)
    assert (len(every), len(left_out)) == (5, 1)


def test_a_rescale_that_cannot_be_settled_is_refused() -> None:
    raw = read_volume((raw_values(phantom_hu()), canonical_affine()))
    with pytest.raises(NotCTError, match="intercept is probably missing"):
        resolve_stated_values(raw, StatedFacts())
    with pytest.raises(NotCTError, match="does not mend"):
        resolve_stated_values(raw, StatedFacts(slope=1.0, intercept=0.0))


def test_a_corrected_file_is_believed_before_its_table() -> None:
    volume = read_volume((phantom_hu(), canonical_affine()))
    same, repairs = resolve_stated_spacing(volume, StatedFacts(spacing=(9.0, 1.0, 1.25), header_is_right=True))
    assert same is volume
    assert repairs == ["stated_spacing_ignored"]
    with pytest.raises(GeometryError, match="different spacings"):
        resolve_stated_spacing(volume, StatedFacts(spacing=(9.0, 1.0, 1.25)))


def write_xlsx(path: Path, rows: list[list[str]]) -> None:
    book = openpyxl.Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    book.save(path)


def test_merlin_is_found(tmp_path: Path) -> None:
    root = tmp_path / "merlinabdominalctdataset"
    write_nifti(root / "merlin_data" / "AC1.nii.gz", phantom_hu())
    header = ["study id", "Findings", "Impressions", "Split"]
    write_xlsx(root / "reports_final.xlsx", [header, ["AC1", "Liver normal.", "None.", "val"]])
    write_csv(root / "zero_shot_findings_disease_cls.csv", [{"study id": "AC1", "ascites": "1", "stone": "-1"}])
    (source,) = find_merlin(tmp_path)
    assert source.report == "Findings: Liver normal.\nImpression: None."
    assert (source.labels, source.split, source.region) == ({"ascites": 1.0}, "validation", "abdomen")


def test_inspect_is_found(tmp_path: Path) -> None:
    write_nifti(tmp_path / "CTPA" / "PE1.nii.gz", phantom_hu())
    for name, row in {
        "study_mapping_20250611": {"impression_id": "7", "image_id": "PE1", "person_id": "42"},
        "impressions_20250611": {"impression_id": "7", "impressions": "No embolus."},
        "labels_20250611": {"impression_id": "7", "pe_positive_nlp": "False"},
        "splits_20250611": {"impression_id": "7", "split": "test"},
    }.items():
        write_csv(tmp_path / f"{name}.tsv", [row], "\t")
    (source,) = find_inspect(tmp_path)
    assert (source.patient, source.report, source.split) == ("42", "Impression: No embolus.", "test")
    assert source.labels == {"pe_positive_nlp": 0.0}


def test_nlst_keeps_the_reconstruction_with_the_most_slices(tmp_path: Path) -> None:
    for uid, depth in (("1.2.1", 20), ("1.2.2", 24)):
        write_dicom_series(phantom_hu()[:depth], canonical_affine(), tmp_path / "100012" / "1.9" / uid, series_uid=uid)
    chosen, left_out = choose_sources(find_nlst(tmp_path), all_reconstructions=False)
    assert [source.path.name for source in chosen] == ["1.2.2"]
    assert len(left_out) == 1
    assert chosen[0].patient == "100012"


def test_a_folder_of_dicom_gives_each_series(tmp_path: Path) -> None:
    for uid in ("1.2.1", "1.2.2"):
        for path in write_dicom_series(phantom_hu(), canonical_affine(), tmp_path / "s" / uid, series_uid=uid):
            path.rename(tmp_path / "s" / f"{uid}-{path.name}")
        (tmp_path / "s" / uid).rmdir()
    found = preparing.LAYOUTS["folder"](tmp_path)
    assert [source.series_uid for source in found] == ["1.2.1", "1.2.2"]


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no scan"):
        prepare(configure(tmp_path, "folder", tmp_path / "empty"))


# --- tables -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("present", "absent"), [("1", "0"), ("1.0", "0.0"), ("yes", "No"), ("TRUE", "false")])
def test_labels_are_read_as_tables_write_them(tmp_path: Path, present: str, absent: str) -> None:
    row = {"path": "a.nii", "Nodule": present, "Cyst": absent, "Ascites": " "}
    (source,) = find_csv(write_csv(tmp_path / "t.csv", [row]))
    assert source.labels == {"Nodule": 1.0, "Cyst": 0.0}


@pytest.mark.parametrize("cell", ["unknown", "-1", "2", "0.5", "63", "Zebrafinch^Quilla"])
def test_a_cell_that_is_no_label_is_refused_with_its_row_and_column_and_is_not_repeated(
    tmp_path: Path, cell: str
) -> None:
    rows = [{"path": "a.nii", "Nodule": "1"}, {"path": "b.nii", "Nodule": cell}]
    with pytest.raises(ValueError, match=r't\.csv, row 3: column "Nodule" holds no label.*1 or 0, yes or no') as raised:
        find_csv(write_csv(tmp_path / "t.csv", rows))
    assert f'"{cell}"' not in str(raised.value)
    assert "Zebrafinch" not in str(raised.value)


def test_a_table_without_the_column_path_names_the_columns_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'has no column "path"; its columns are file, Nodule\.'):
        find_csv(write_csv(tmp_path / "t.csv", [{"file": "a.nii", "Nodule": "1"}]))


def test_a_command_ends_with_code_2_and_one_line_where_a_table_lacks_a_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans.csv").write_text("scan,report\na.nii,None.\n")
    assert ctfm(["prepare", "csv", str(tmp_path / "scans.csv"), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'no column "path"; its columns are scan, report. It needs path: add the column' in line


def test_a_published_table_without_a_column_it_must_have_names_those_that_are_there(tmp_path: Path) -> None:
    write_nifti(tmp_path / "merlin_data" / "AC1.nii.gz", phantom_hu())
    write_csv(tmp_path / "reports_final.csv", [{"study id": "AC1", "Findings": "Liver normal.", "Split": "val"}])
    with pytest.raises(ValueError, match=r'no column "Impressions"; its columns are study id, Findings, Split'):
        find_merlin(tmp_path)


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,Nodule,Nodule\na.nii,1,0\n")
    with pytest.raises(ValueError, match=r'has 2 columns "Nodule"'):
        find_csv(tmp_path / "t.csv")


def test_splits_have_one_set_of_names_however_a_table_spells_them(tmp_path: Path) -> None:
    spelled = ["train", "Training", "val", "valid", "dev", "validation", "test", "testing", ""]
    rows = [{"path": f"{number}.nii", "split": name} for number, name in enumerate(spelled)]
    found = [source.split for source in find_csv(write_csv(tmp_path / "t.csv", rows))]
    assert found == ["train"] * 2 + ["validation"] * 4 + ["test"] * 2 + [""]
    with pytest.raises(ValueError, match=r'row 3: split "fold 3" is none of train, validation, test'):
        find_csv(write_csv(tmp_path / "t.csv", [rows[0], {"path": "a.nii", "split": "fold 3"}]))
