import pytest
from ctfm.train.labels import tabulate
from ctfm.train.phantom import make_phantom
from ctfm.train.phantom_dataset import COLUMNS, SIDED_NAMES, label
from ctfm.train.prompts import draw_prompts, find_prompts


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
