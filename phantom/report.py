"""Findings of a phantom -> a radiology report that says them, leaves some out of the impression, and denies others.

The same grammar speaks two sets of sentences (wording.py). What a report states about each finding is known:
`Report.stated`. Sizes are rounded as a reader would; history, technique and comparison may name a finding without
stating it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .patient import FINDING_NAMES, Acquisition, Patient
from .scene import Finding
from .wording import DEVICES, GRADES, HELD_OUT_FRAMES, LESIONS, TRAIN_FRAMES, WORDS, Frames

Wording = Literal["train", "held_out"]

ABBREVIATIONS = {
    "right upper lobe": "RUL",
    "right middle lobe": "RML",
    "right lower lobe": "RLL",
    "left upper lobe": "LUL",
    "left lower lobe": "LLL",
}
MONTHS = ("January", "March", "April", "June", "July", "September", "October", "December")
SIZED = (
    "Lung nodule",
    "Lymphadenopathy",
    "Kidney tumour",
    "Kidney stone",
    "Liver lesion",
    "Consolidation",
    "Lung opacity",
)
PASSING = (*SIZED[:2], *SIZED[3:4], *SIZED[5:], "Pleural effusion", "Pericardial effusion", "Atelectasis", "Ascites")
# Words after which a bare grade reads wrongly ("large emphysema"): only amounts of fluid and organs are small or large.
MEASURED = ("Pericardial effusion", "Hiatal hernia", "Pleural effusion")


@dataclass(frozen=True, kw_only=True)
class Report:
    """A radiology report and what its findings and impression state."""

    history: str
    technique: str
    comparison: str
    findings: str
    impression: str
    stated: dict[str, int]  # name -> 1 said to be present, 0 said to be absent; names it does not mention are missing

    def __str__(self) -> str:
        sections = ("history", "technique", "comparison", "findings", "impression")
        return "\n".join(f"{name.capitalize()}: {getattr(self, name)}" for name in sections)


class Speaker:
    """Draws sentences from one wording with one random generator."""

    def __init__(self, rng: np.random.Generator, wording: Wording) -> None:
        self.rng, self.held_out = rng, wording == "held_out"
        self.frames: Frames = HELD_OUT_FRAMES if self.held_out else TRAIN_FRAMES

    def choose(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def expand(self, text: str) -> str:
        """Replace the innermost `[a|b]` by one of its alternatives until none is left."""
        while match := re.search(r"\[([^\[\]]*)\]", text):
            text = text[: match.start()] + self.choose(match.group(1).split("|")) + text[match.end() :]
        return text

    def say(self, template: str, slots: dict[str, str]) -> str:
        """Expand a template, fill its slots (which may hold slots themselves) and tidy the sentence."""
        text = self.expand(template)
        for _ in range(3):
            text = re.sub(r"<(\w+)>", lambda match: slots.get(match.group(1), ""), text)
            text = self.expand(text)
        return tidy(text)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)


def tidy(text: str) -> str:
    """One space between words, none before stops, `an` before vowels, a capital at the start."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\s+([.,;:)])", r"\1", text)
    text = re.sub(r"([,;:])(?=[,;:.])", "", text)
    text = re.sub(r"^[,;:]\s*", "", text)
    text = re.sub(r"\b(Possible|Probable) an? ", r"\1 ", text)
    text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
    text = re.sub(r"\b([Aa])n (?=[^aeiou\W])", r"\1 ", text)
    return text[:1].upper() + text[1:]


def place_of(speaker: Speaker, finding: Finding) -> str:
    """Where, in words: every side named here is the finding's side."""
    frames, side, place = speaker.frames, finding.side, finding.place
    held_out = speaker.held_out
    if place in ABBREVIATIONS:
        level = place.split()[1]
        text = speaker.choose(frames.lobe)
        return text.replace("<abbreviation>", ABBREVIATIONS[place]).replace("<side>", side).replace("<level>", level)
    if place in ("upper lobes", "lower lobes"):
        level = place.split()[0]
        if side == "both":
            return speaker.choose(frames.lobe_of_both).replace("<level>", level)
        return speaker.choose(frames.lobe[:2]).replace("<side>", side).replace("<level>", level)
    if place == "lungs":
        return speaker.choose(frames.both_lungs if side == "both" else frames.one_lung).replace("<side>", side)
    if place == "pleural space":
        return speaker.choose(frames.one_side).replace("<side>", side)
    if "kidney, " in place:
        kidney, part = place.split(", ")
        return f"arising from the {kidney}, {part}" if held_out else f"in the {part} of the {kidney}"
    if place.endswith("hepatic lobe"):
        return f"within the {side} lobe of the liver" if held_out else f"in the {place}"
    if place.endswith(("aorta", "arch", "artery")):
        return f"along the {place}" if held_out else f"of the {place}"
    if place.endswith(("station", "window", "hilum", "axilla", "retroperitoneum")):
        return f"at the site of the {place}" if held_out else f"in the {place}"
    return ""


def slots_of(speaker: Speaker, finding: Finding) -> dict[str, str]:
    grade = speaker.choose(GRADES[finding.severity])
    if finding.name not in MEASURED and grade in ("small", "large"):
        grade = finding.severity
    words = WORDS[finding.name]
    phrases = words.phrases + (words.held_out_phrases if speaker.held_out else ())
    phrase = speaker.expand(speaker.choose(phrases))
    first = re.sub(r"[<>]", "", phrase).split()
    plural = first[-1].endswith(("s", "bronchi", "septa")) and not first[-1].endswith(("sis", "ascites", "us"))
    return {
        "np": phrase,
        "is": "are" if plural and first[0] not in ("a", "an") else "is",
        "place": place_of(speaker, finding),
        "size": speaker.choose(speaker.frames.size),
        "mm": f"{max(1, round(finding.size_mm))}",
        "cm": f"{max(0.1, finding.size_mm / 10):.1f}",
        "grade": grade,
        "kind": finding.kind,
        "device": speaker.choose(DEVICES.get(finding.kind, ("medical material",))),
        "lesion": speaker.choose(LESIONS.get(finding.kind, ("a hepatic lesion",))),
        "side": finding.side,
        "in_chest": f"in the {finding.side} chest wall",
    }


def affirm(speaker: Speaker, finding: Finding) -> str:
    """One sentence that says one finding."""
    frames, words, slots = speaker.frames, WORDS[finding.name], slots_of(speaker, finding)
    own = words.held_out_sentences if speaker.held_out else words.sentences
    if own and speaker.chance(0.25):
        return speaker.say(speaker.choose(own), slots)
    if finding.severity == "mild" and speaker.chance(0.25):
        return speaker.say(speaker.choose(frames.uncertain), slots)
    sized = finding.name in SIZED and "<mm>" not in slots["np"] and speaker.chance(0.75)
    return speaker.say(speaker.choose(frames.present_sized if sized else frames.present), slots)


def affirm_all(speaker: Speaker, findings: Sequence[Finding]) -> list[str]:
    """Sentences for all instances of one name: one for each, or one for all of them."""
    words = WORDS[findings[0].name]
    largest = max(findings, key=lambda finding: finding.size_mm)
    if len(findings) == 1 or not words.plural or (len(findings) <= 3 and speaker.chance(0.5)):
        return [affirm(speaker, finding) for finding in findings]
    slots = slots_of(speaker, largest)
    places: list[str] = []
    for finding in findings:
        place = finding.place if finding.place != "pleural space" else f"{finding.side} pleural space"
        if place not in places:
            places.append(place)
    slots["places"] = "in the " + (", ".join(places[:-1]) + " and " if places[:-1] else "") + places[-1]
    slots["plural"] = speaker.choose(words.plural)
    return [speaker.say(speaker.choose(speaker.frames.several), slots)]


def deny(speaker: Speaker, names: Sequence[str]) -> list[str]:
    """Sentences that say that findings are absent, some of them several at once."""
    frames, sentences, left = speaker.frames, [], list(names)
    while left:
        name = left.pop()
        words = WORDS[name]
        own = words.held_out_negative_sentences if speaker.held_out else words.negative_sentences
        noun = speaker.choose(words.bare)
        if own and speaker.chance(0.5):
            sentences.append(speaker.say(speaker.choose(own), {}))
        elif left and speaker.chance(0.4):
            others = [noun] + [
                speaker.choose(WORDS[left.pop()].bare) for _ in range(min(len(left), int(speaker.rng.integers(1, 3))))
            ]
            joined = ", ".join(others[:-1]) + " or " + others[-1]
            sentences.append(speaker.say(speaker.choose(frames.absent_list), {"list": joined}))
        elif name in PASSING and speaker.chance(0.12):
            sentences.append(speaker.say(speaker.choose(frames.resolved), {"n": noun}))
        else:
            sentences.append(speaker.say(speaker.choose(frames.absent), {"n": noun}))
    return sentences


def conclude(speaker: Speaker, findings: Sequence[Finding]) -> str:
    """The impression: most findings, the worst first, numbered or not."""
    order = {"severe": 0, "moderate": 1, "mild": 2}
    by_name = {finding.name: finding for finding in sorted(findings, key=lambda f: order[f.severity], reverse=True)}
    worst_first = sorted(by_name.values(), key=lambda finding: order[finding.severity])
    kept = [finding for number, finding in enumerate(worst_first) if number == 0 or speaker.chance(0.8)]
    if not kept:
        return speaker.say(speaker.choose(speaker.frames.nothing), {})
    lines = [speaker.say(speaker.choose(speaker.frames.concluded), slots_of(speaker, finding)) for finding in kept]
    if speaker.chance(0.5):
        return " ".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))
    return " ".join(lines)


def write_report(
    patient: Patient, acquisition: Acquisition, findings: tuple[Finding, ...], wording: Wording = "train"
) -> Report:
    """The report of a phantom; every finding that the scan shows is said, about half of the others are denied."""
    speaker = Speaker(patient.rng(f"report {wording}"), wording)
    frames, rng = speaker.frames, speaker.rng
    present = [name for name in FINDING_NAMES if any(finding.name == name for finding in findings)]
    absent = [name for name in FINDING_NAMES if name not in present]
    denied = [absent[i] for i in rng.permutation(len(absent))[: int(len(absent) * rng.uniform(0.3, 0.7))]]
    paragraphs = [affirm_all(speaker, [f for f in findings if f.name == name]) for name in present]
    paragraphs += [[sentence] for sentence in deny(speaker, denied)]
    normal = rng.permutation(len(frames.normal))[: int(rng.integers(1, 5))]
    paragraphs += [[speaker.say(frames.normal[i], {})] for i in normal]
    sentences = [sentence for i in rng.permutation(len(paragraphs)) for sentence in paragraphs[i]]
    slots = {
        "contrast": {
            "none": "without intravenous contrast",
            "arterial": "in the arterial phase after intravenous contrast",
            "portal": "in the portal venous phase after intravenous contrast",
        }[patient.phase],
        "thickness": f"{acquisition.slice_thickness_mm:.1f}",
        "kernel": acquisition.kernel,
        "number": str(rng.integers(2, 40)),
        "year": str(rng.integers(2004, 2025)),
        "month": speaker.choose(MONTHS),
    }
    return Report(
        history=speaker.say(speaker.choose(frames.history), slots),
        technique=speaker.say(speaker.choose(frames.technique), slots),
        comparison=speaker.say(speaker.choose(frames.comparison), slots),
        findings=" ".join(sentences),
        impression=conclude(speaker, findings),
        stated=dict.fromkeys(present, 1) | dict.fromkeys(denied, 0),
    )
