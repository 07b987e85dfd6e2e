"""The phantom is what it says: anatomy in its place, findings where their attributes are, one patient at every spacing."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from ctfm.phantom.body import ORGAN_ID
from ctfm.phantom.make import (
    CT_RATE_NAMES,
    FINDING_ID,
    FINDING_NAMES,
    SEGMENTATION_NAMES,
    SHIFTED_RANGES,
    TRAIN_RANGES,
    Phantom,
    PhantomRanges,
    make_phantom,
)
from ctfm.phantom.patient import sample_acquisition, sample_findings, sample_patient

SMALL = (40, 56, 56)
# Findings without a middle that lies inside them: sheets, shells and scattered pieces.
DIFFUSE = (
    "Medical material",
    "Arterial wall calcification",
    "Coronary artery wall calcification",
    "Pericardial effusion",
    "Emphysema",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Interlobular septal thickening",
    "Pleural effusion",
    "Ascites",
)
QUIET = replace(TRAIN_RANGES, noise_hu=(0.0, 0.0), sharp_probability=0.0)
UNCONTRASTED = replace(QUIET, phase_probabilities=(1.0, 0.0, 0.0))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Thousands of small operations: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def drawn(ranges: PhantomRanges, seed: int) -> Phantom:
    return make_phantom(seed, shape=(72, 96, 96), spacing=(5.5, 4.2, 4.2), ranges=ranges, findings=())


def normal(ranges: PhantomRanges = UNCONTRASTED, seed: int = 5) -> Phantom:
    return drawn(ranges, seed)


@cache
def alone(
    name: str, seed: int = 3, shape: tuple[int, int, int] = SMALL, ranges: PhantomRanges = TRAIN_RANGES
) -> Phantom:
    spacing = (430.0 / shape[0], 400.0 / shape[1], 400.0 / shape[2])
    return make_phantom(seed, shape=shape, spacing=spacing, findings=[name], ranges=ranges)


@cache
def sampled(seed: int) -> Phantom:
    return make_phantom(seed, shape=(32, 44, 44))


def centroid(organs: torch.Tensor, *names: str) -> np.ndarray:
    inside = torch.zeros_like(organs, dtype=torch.bool)
    for name in names:
        inside |= organs == ORGAN_ID[name]
    assert bool(inside.any()), names
    return inside.nonzero().double().mean(0).numpy()


def volume(organs: torch.Tensor, *names: str) -> int:
    return sum(int((organs == ORGAN_ID[name]).sum()) for name in names)


def interior_hu(phantom: Phantom, organ: str) -> float:
    """Median HU of an organ away from its surface."""
    inside = (phantom.organs == ORGAN_ID[organ]).float()[None, None]
    deep = -torch.nn.functional.max_pool3d(-inside, 3, 1, 1)[0, 0] > 0.5
    return float(phantom.hu[deep if bool(deep.any()) else inside[0, 0] > 0.5].float().median())


def test_the_same_seed_gives_the_same_phantom_bit_for_bit() -> None:
    again = make_phantom(2, shape=(32, 44, 44))
    first = sampled(2)
    assert torch.equal(first.hu, again.hu)
    assert torch.equal(first.segmentation, again.segmentation)
    assert (first.findings, first.labels, first.report) == (again.findings, again.labels, again.report)


def test_another_seed_gives_another_patient() -> None:
    assert (sampled(2).hu != sampled(3).hu).float().mean() > 0.4
    assert sampled(2).patient.scale != sampled(3).patient.scale


def test_types_and_shapes_are_those_promised() -> None:
    phantom = sampled(1)
    assert phantom.hu.dtype is torch.int16
    assert phantom.segmentation.dtype is torch.uint8
    assert phantom.hu.shape == phantom.segmentation.shape == phantom.organs.shape == (32, 44, 44)
    assert list(phantom.labels) == list(FINDING_NAMES)
    assert len(CT_RATE_NAMES) == 18
    assert set(phantom.segmentation.unique().tolist()) <= set(SEGMENTATION_NAMES)
    assert int(phantom.hu.min()) >= -1024
    assert int(phantom.hu.max()) <= 3071


def test_the_affine_leads_from_canonical_voxels_to_the_world_of_nifti() -> None:
    affine = normal().affine
    assert np.allclose(affine[:3, 0], [0, 0, 5.5])  # d goes up
    assert np.allclose(affine[:3, 1], [0, -4.2, 0])  # h goes back
    assert np.allclose(affine[:3, 2], [-4.2, 0, 0])  # w goes to the patient's left


@pytest.mark.parametrize("seed", [5, 6])
def test_every_organ_lies_on_its_side(seed: int) -> None:
    organs = normal(seed=seed).organs
    spine = centroid(organs, "spine")
    for organ in ("liver", "gallbladder", "right kidney", "right lower lobe"):
        assert centroid(organs, organ)[2] < spine[2], organ
    for organ in ("heart", "spleen", "stomach", "left kidney", "left lower lobe"):
        assert centroid(organs, organ)[2] > spine[2], organ
    for organ in ("heart", "liver", "airway", "sternum", "aorta", "oesophagus", "colon"):
        assert centroid(organs, organ)[1] < spine[1], organ
    for organ in ("liver", "spleen", "stomach", "right kidney"):
        assert centroid(organs, organ)[0] < centroid(organs, "heart")[0], organ
    # The right kidney stands lower than the left one by about the liver's push.
    assert centroid(organs, "right kidney")[0] < centroid(organs, "left kidney")[0] + 2


def test_the_apex_of_the_heart_points_to_the_left_and_forward() -> None:
    inside = (normal().organs == ORGAN_ID["heart"]).nonzero().double()
    middle = inside.mean(0)
    left = inside[inside[:, 2] > torch.quantile(inside[:, 2], 0.9)].mean(0)
    assert left[1] < middle[1]
    assert left[0] < middle[0] + 1


def test_the_descending_aorta_runs_left_of_the_spine() -> None:
    phantom = normal()
    half = phantom.organs.shape[0] // 2
    thorax = phantom.organs[half + 2 : half + 14]
    behind = (thorax == ORGAN_ID["aorta"]).nonzero().double()
    behind = behind[behind[:, 1] > behind[:, 1].mean()]
    assert behind[:, 2].mean() > centroid(thorax, "spine")[2] + 2


def test_the_left_lung_is_smaller_and_has_two_lobes() -> None:
    organs = normal().organs
    right = ("right upper lobe", "right middle lobe", "right lower lobe")
    left = ("left upper lobe", "left lower lobe")
    assert 0.7 < volume(organs, *left) / volume(organs, *right) < 0.99
    for side in ("right", "left"):
        upper, lower = centroid(organs, f"{side} upper lobe"), centroid(organs, f"{side} lower lobe")
        assert upper[0] > lower[0]
        assert upper[1] < lower[1]
    assert centroid(organs, "right middle lobe")[1] < centroid(organs, "right lower lobe")[1]
    litres = volume(organs, *right, *left) * 5.5 * 4.2 * 4.2 / 1e6
    assert 2.0 < litres < 7.5


@pytest.mark.parametrize(
    ("organ", "low", "high"),
    [
        ("right upper lobe", -920, -770),
        ("left lower lobe", -900, -720),
        ("subcutaneous fat", -120, -90),
        ("visceral fat", -125, -80),
        ("muscle", 20, 70),
        ("heart", 30, 60),
        ("aorta", 30, 55),
        ("vena cava", 25, 60),
        ("liver", 45, 70),
        ("spleen", 40, 65),
        ("right kidney", 15, 50),
        ("gallbladder", -5, 30),
        ("airway", -1010, -800),
        ("spine", 80, 400),
    ],
)
def test_an_organ_has_its_hu(organ: str, low: float, high: float) -> None:
    assert low < interior_hu(normal(), organ) < high


def test_air_is_minus_a_thousand_and_cortex_is_bone() -> None:
    phantom = normal()
    background = phantom.hu[phantom.organs == 0].float()
    assert abs(float(background.median()) + 1000) < 15
    # A cortex of 1.6 mm fills only a third of these voxels.
    assert int(phantom.hu[phantom.organs == ORGAN_ID["rib"]].max()) > 450


def test_contrast_fills_vessels_by_phase() -> None:
    arterial = normal(replace(QUIET, phase_probabilities=(0.0, 1.0, 0.0)))
    portal = normal(replace(QUIET, phase_probabilities=(0.0, 0.0, 1.0)))
    assert interior_hu(arterial, "aorta") > 250
    assert 110 < interior_hu(portal, "aorta") < 180
    assert interior_hu(portal, "liver") > interior_hu(arterial, "liver") + 25 > interior_hu(normal(), "liver")


def test_the_lung_is_denser_behind() -> None:
    phantom = normal()
    lobes = torch.stack([phantom.organs == ORGAN_ID[f"{side} lower lobe"] for side in ("right", "left")]).any(0)
    lobes |= phantom.organs == ORGAN_ID["right upper lobe"]
    rows = lobes.nonzero()[:, 1].double()
    front, back = torch.quantile(rows[::7], 0.2), torch.quantile(rows[::7], 0.8)
    level = torch.arange(phantom.hu.shape[1])[None, :, None].expand(phantom.hu.shape)
    hu = phantom.hu.float()
    assert hu[lobes & (level > back)].median() > hu[lobes & (level < front)].median() + 15


def test_nothing_is_found_when_nothing_is_drawn() -> None:
    phantom = normal()
    assert set(phantom.labels.values()) == {0}
    assert phantom.findings == ()
    assert torch.equal(phantom.segmentation, phantom.organs)


@pytest.mark.parametrize("name", FINDING_NAMES)
def test_a_finding_is_drawn_where_its_attributes_say(name: str) -> None:
    phantom = alone(name)
    assert [n for n, present in phantom.labels.items() if present] == [name]
    voxels = (phantom.segmentation == FINDING_ID[name]).nonzero().double().numpy()
    assert len(voxels) > 0
    middle = centroid(phantom.organs, "spine")[2]
    for finding in phantom.findings:
        assert finding.name == name
        assert finding.num_voxels > 0
        assert np.allclose(phantom.affine @ [*finding.centre_voxel, 1.0], [*finding.centre_mm, 1.0])
        if name not in DIFFUSE:
            distance = np.linalg.norm((voxels - finding.centre_voxel) * phantom.spacing, axis=1).min()
            assert distance < max(12.0, 0.5 * finding.size_mm)
        if finding.side in ("left", "right"):
            to_left = (finding.centre_voxel[2] - middle) * phantom.spacing[2]
            assert to_left > -14.0 if finding.side == "left" else to_left < 14.0
    weights = np.array([finding.num_voxels for finding in phantom.findings])
    centre = weights @ np.array([finding.centre_voxel for finding in phantom.findings]) / weights.sum()
    assert np.linalg.norm((voxels.mean(0) - centre) * phantom.spacing) < 22.0
    sides = {finding.side for finding in phantom.findings}
    if len(sides) == 1 and sides <= {"left", "right"} and "calcification" not in name and name != "Medical material":
        assert (voxels[:, 2].mean() > middle) == (sides == {"left"})


@pytest.mark.parametrize("seed", range(6))
def test_a_nodule_lies_in_its_lobe(seed: int) -> None:
    phantom = make_phantom(seed, shape=SMALL, spacing=(10.0, 7.0, 7.0), findings=["Lung nodule"])
    for nodule in phantom.findings:
        d, h, w = (round(value) for value in nodule.centre_voxel)
        near = phantom.organs[d - 1 : d + 2, h - 1 : h + 2, w - 1 : w + 2]
        assert ORGAN_ID[nodule.place] in near.unique().tolist()
        assert nodule.place.startswith(nodule.side)


def test_a_nodule_has_the_size_it_says() -> None:
    ranges = replace(QUIET, nodule_mm=(16.0, 30.0))
    phantom = make_phantom(8, shape=(130, 170, 170), spacing=(2.8, 2.1, 2.1), ranges=ranges, findings=["Lung nodule"])
    largest = max(phantom.findings, key=lambda finding: finding.size_mm)
    diameter = (largest.num_voxels * np.prod(phantom.spacing) * 6 / np.pi) ** (1 / 3)
    assert diameter == pytest.approx(largest.size_mm, rel=0.3)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("Pleural effusion", -30, 40),
        ("Ascites", -30, 40),
        ("Pericardial effusion", -30, 60),
        ("Consolidation", -80, 90),
        ("Lung opacity", -800, -250),
        ("Emphysema", -1000, -870),
    ],
)
def test_a_finding_has_its_hu(name: str, low: float, high: float) -> None:
    thick = replace(TRAIN_RANGES, effusion_mm=(40.0, 80.0), pericardial_mm=(12.0, 22.0), severity=(0.7, 1.0))
    phantom = alone(name, 4, (60, 80, 80), thick)
    assert low < float(phantom.hu[phantom.segmentation == FINDING_ID[name]].float().median()) < high


@pytest.mark.parametrize("seed", [3, 31])
def test_a_large_heart_stays_inside_the_ribs(seed: int) -> None:
    phantom = alone("Cardiomegaly", seed)
    heart = (phantom.organs == ORGAN_ID["heart"]).nonzero()
    sternum = (phantom.organs == ORGAN_ID["sternum"]).nonzero()
    assert heart[:, 1].min() > sternum[:, 1].min()


def test_cardiomegaly_widens_the_heart() -> None:
    def width(phantom: Phantom) -> int:
        across = (phantom.organs == ORGAN_ID["heart"]).any(0).any(0).nonzero()
        return int(across.max() - across.min()) + 1

    small = make_phantom(3, shape=SMALL, spacing=alone("Cardiomegaly").spacing, findings=())
    assert width(alone("Cardiomegaly")) > 1.15 * width(small)


@pytest.mark.parametrize("seed", range(8))
def test_labels_findings_voxels_and_report_agree(seed: int) -> None:
    phantom = sampled(seed)
    for name in FINDING_NAMES:
        present = bool(phantom.labels[name])
        assert present == bool((phantom.segmentation == FINDING_ID[name]).any())
        assert present == any(finding.name == name for finding in phantom.findings)
        assert phantom.report.stated.get(name, int(present)) == int(present)
        if present:
            assert phantom.report.stated[name] == 1


def test_every_finding_is_neither_rare_nor_common() -> None:
    counts = dict.fromkeys(FINDING_NAMES, 0)
    for seed in range(1500):
        for name in sample_findings(sample_patient(seed, TRAIN_RANGES), TRAIN_RANGES):
            counts[name] += 1
    shares = {name: count / 1500 for name, count in counts.items()}
    assert all(0.08 < share < 0.32 for share in shares.values()), shares


def test_nearly_all_sampled_findings_are_seen() -> None:
    drawn = seen = 0
    for seed in range(14):
        phantom = sampled(seed)
        drawn += len(sample_findings(phantom.patient, TRAIN_RANGES))
        seen += sum(phantom.labels.values())
    assert drawn > 20
    assert seen >= 0.88 * drawn


def test_two_spacings_show_the_same_patient() -> None:
    names = ["Lung nodule", "Liver lesion", "Kidney stone"]
    coarse = make_phantom(9, shape=(30, 40, 40), spacing=(12.0, 10.0, 10.0), ranges=QUIET, findings=names)
    fine = make_phantom(9, shape=(60, 80, 80), spacing=(6.0, 5.0, 5.0), ranges=QUIET, findings=names)
    pooled = torch.nn.functional.avg_pool3d(fine.hu.float()[None], 2)[0]
    correlation = torch.corrcoef(torch.stack([pooled.flatten(), coarse.hu.float().flatten()]))[0, 1]
    assert correlation > 0.97
    assert len(coarse.findings) == len(fine.findings)
    for a, b in zip(coarse.findings, fine.findings, strict=True):
        assert np.allclose(a.centre_mm, b.centre_mm, atol=1e-6)
        assert replace(a, centre_voxel=b.centre_voxel, num_voxels=b.num_voxels) == b


def test_shifted_ranges_really_shift() -> None:
    def mean(ranges: PhantomRanges, which: str) -> float:
        samplers = (sample_patient, sample_acquisition)
        values = [getattr(sample(seed, ranges), which, None) for seed in range(200) for sample in samplers]
        return float(np.mean([value for value in values if value is not None]))

    for which in ("fat_mm", "lung_hu", "noise_hu", "slice_thickness_mm", "field_of_view_mm", "sharpening"):
        assert mean(SHIFTED_RANGES, which) > mean(TRAIN_RANGES, which), which
    plain = make_phantom(1, shape=SMALL, findings=())
    shifted = make_phantom(1, shape=SMALL, findings=(), ranges=SHIFTED_RANGES)
    assert plain.spacing != shifted.spacing
    liver = [p.hu[p.organs == ORGAN_ID["liver"]].float().std() for p in (plain, shifted)]
    assert liver[1] > liver[0]


def test_a_short_scan_shows_the_chest_or_the_abdomen_only() -> None:
    regions = set()
    for seed in range(4):
        phantom = make_phantom(seed, shape=(24, 40, 40), spacing=(7.0, 9.0, 9.0), findings=["Kidney stone"])
        regions.add(phantom.acquisition.region)
        shows_kidneys = bool((phantom.organs == ORGAN_ID["left kidney"]).any())
        assert shows_kidneys == (phantom.acquisition.region == "abdomen")
        if not shows_kidneys:
            assert phantom.labels["Kidney stone"] == 0
    assert regions == {"chest", "abdomen"}


def test_an_unknown_finding_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="Lung nodul"):
        make_phantom(0, findings=["Lung nodul"])
