from dataclasses import replace

import pytest
import torch
from ctfm.phantom.dataset import COLUMNS, SIDED_NAMES, label
from ctfm.phantom.make import make_phantom
from ctfm.train.descriptors import DescriptorSample
from ctfm.train.labels import draw_parts, tabulate, tabulate_parts
from ctfm.train.prompts import draw_prompts, find_prompts
from ctfm.train.recipes import RECIPES, AlignmentPhase


def test_prompts_name_every_finding_and_are_a_function_of_the_seed() -> None:
    findings = ["Pleural effusion", "Left kidney stone"]
    prompts = find_prompts("phantoms/ensemble")
    drawn = {seed: draw_prompts(findings, prompts, seed) for seed in range(40)}
    assert drawn[3] == draw_prompts(findings, prompts, 3)
    for present, absent in drawn.values():
        assert all(
            name.lower() in text.lower()
            for texts in (present, absent)
            for name, text in zip(findings, texts, strict=True)
        )
    assert {present[0] for present, _ in drawn.values()} == {
        template.format(finding="pleural effusion", Finding="Pleural effusion") for template in prompts.present
    }


def test_an_unknown_prompt_set_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(ValueError, match='no prompt set "single"; it has pair, ensemble, unseen_wording'):
        find_prompts("phantoms/single")


@pytest.mark.parametrize("seed", range(6))
def test_the_table_says_the_side_of_what_lies_on_one(seed: int) -> None:
    phantom = make_phantom(seed, shape=(24, 32, 32), findings=SIDED_NAMES)
    labels = label(phantom)
    assert set(labels) == set(COLUMNS[5:])
    assert any(labels[f"Left {name.lower()}"] != labels[f"Right {name.lower()}"] for name in SIDED_NAMES)
    for name in SIDED_NAMES:
        sides = {finding.side for finding in phantom.findings if finding.name == name}
        assert labels[f"Left {name.lower()}"] == ("left" in sides)
        assert labels[f"Right {name.lower()}"] == ("right" in sides)
        assert labels[name] == bool(sides)


def test_labels_that_are_not_stated_are_nan() -> None:
    class Sample:
        labels = {"Ascites": 1.0}

    table = tabulate([Sample()], ["Ascites", "Emphysema"])  # type: ignore[list-item]
    assert table[0, 0] == 1.0
    assert table[0, 1].isnan()


STRUCTURES = {13: "heart", 66: "Cardiomegaly", 73: "Lung nodule"}
FINDINGS = ("Cardiomegaly", "Emphysema", "Left lung nodule", "Lung nodule", "Right lung nodule")


def scan_with(counts: dict[int, dict[int, int]], crops: int = 6, **labels: float) -> DescriptorSample:
    """`counts`: voxels of a structure by crop."""
    structures = torch.zeros(crops, 256, dtype=torch.uint8)
    for crop, held in counts.items():
        for number, count in held.items():
            structures[crop, number] = count
    return DescriptorSample(
        number=0,
        seed=0,
        scan_id="a",
        report="",
        labels={name.replace("_", " "): value for name, value in labels.items()},
        descriptors=torch.zeros(crops, 1, 8),
        crop_grid=torch.tensor([crops, 1, 1]),
        structures=structures,
    )


def test_a_part_has_the_findings_that_lie_in_it_and_a_side_where_the_scan_has_one() -> None:
    left = {"Left_lung_nodule": 1.0, "Right_lung_nodule": 0.0}
    both = dict.fromkeys(left, 1.0)
    held = {0: {13: 200}, 1: {73: 40}, 2: {66: 2}}
    samples = [scan_with(held, **left), scan_with(held, **left), scan_with(held, **both)]
    asked = tabulate_parts(samples, torch.tensor([[0, 1], [2, 3], [1, 2]]), FINDINGS, STRUCTURES)
    nan = float("nan")
    expected = torch.tensor([[0, nan, 1, 1, 0], [nan, nan, 0, 0, 0], [nan, nan, nan, 1, nan]])
    torch.testing.assert_close(asked, expected, equal_nan=True)  # two voxels of a finding decide nothing


def test_parts_leave_out_empty_crops_and_mostly_hold_a_finding() -> None:
    samples = [scan_with({0: {13: 9}, 2: {13: 9}, 3: {13: 9}, 4: {13: 9}, 5: {13: 9, 73: 9}}) for _ in range(200)]
    drawn = [draw_parts(samples, FINDINGS, STRUCTURES, 3, seed) for seed in range(12)]
    assert {crops.shape[1] for crops in drawn} == {1, 2, 3}
    assert not any((crops == 1).any() for crops in drawn)
    assert all((crops.diff(dim=1) > 0).all() for crops in drawn)
    single = next(crops for crops in drawn if crops.shape[1] == 1)
    # 0.7 for sure and a fifth of the rest, 200 times: 0.76, standard deviation 0.03
    assert 0.64 < float((single == 5).float().mean()) < 0.88
    assert torch.equal(draw_parts(samples, FINDINGS, STRUCTURES, 3, 1), drawn[1])


def test_parts_need_descriptors_and_prompts() -> None:
    phase = RECIPES["embedded"]().phases["alignment"]
    assert isinstance(phase, AlignmentPhase)
    with pytest.raises(ValueError, match="part_crops 6 needs descriptors_are_cached and prompts"):
        replace(phase, prompts="")
