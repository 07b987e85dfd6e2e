"""Metrics and misses -> pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from ..drawing_ctfm import INTENSITY_WINDOWS, draw_planes, join
from ..pipeline_ctfm import finding_prompts
from ..volume_ctfm import Volume
from .cases import Case, read_case, read_label_map
from .features import Texts, image_processor, load_encoder, text_maps
from .metrics import Estimate

BLUE, GREY, RED, GREEN = "#1f5fa8", "#8a8f98", "#c2453b", "#3b8f5a"
LUNG = (
    "Lung nodule",
    "Lung opacity",
    "Consolidation",
    "Emphysema",
    "Atelectasis",
    "Bronchiectasis",
    "Pulmonary fibrotic sequela",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Interlobular septal thickening",
)


def draw_findings(metrics: Mapping[str, Estimate], path: Path) -> None:
    """AUROC of every finding with its interval, zero-shot and by linear probe."""
    kinds = [("zero_shot", "zero-shot", BLUE), ("linear", "linear probe", GREY)]
    kinds = [kind for kind in kinds if f"{kind[0]}/macro_auroc" in metrics]
    names = list(
        dict.fromkeys(k.split("/")[1] for k in metrics if k.startswith(("zero_shot/", "linear/")) and k.count("/") == 2)
    )
    if not kinds or not names:
        return
    names.sort(key=lambda name: metrics[f"{kinds[0][0]}/{name}/auroc"].value)
    figure = Figure(figsize=(7.5, 1.2 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    for shift, (key, label, colour) in zip((0.15, -0.15), kinds, strict=False):
        found = [metrics[f"{key}/{name}/auroc"] for name in names]
        values = np.array([e.value for e in found])
        spread = np.array([[e.value - e.low, e.high - e.value] for e in found]).T.clip(min=0)
        axes.errorbar(
            values, np.arange(len(names)) + shift, xerr=spread, fmt="o", ms=4, lw=1.2, color=colour, label=label
        )
    axes.axvline(0.5, color="black", lw=0.8, ls=":")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("AUROC, 95 % interval")
    axes.set_xlim(right=1.01)
    axes.grid(axis="x", lw=0.4, alpha=0.6)
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=130)


def draw_methods(metrics: Mapping[str, Estimate], path: Path) -> None:
    """Macro AUROC of the checkpoint and of every baseline, by question."""
    questions = ("zero_shot", "knn", "linear", "classifier")
    methods = [
        "",
        *dict.fromkeys("/".join(key.split("/")[:2]) + "/" for key in metrics if key.startswith("baselines/")),
    ]
    colours = dict(zip(questions, (BLUE, GREEN, GREY, RED), strict=True))
    figure = Figure(figsize=(7.5, 1.2 + 0.5 * len(methods)), layout="constrained")
    axes = figure.subplots()
    said = set()
    for place, method in enumerate(reversed(methods)):
        for offset, question in zip((0.24, 0.08, -0.08, -0.24), questions, strict=True):
            found = metrics.get(f"{method}{question}/macro_auroc")
            if found is not None:
                label = None if question in said else question.replace("_", "-")
                said.add(question)
                spread = [[max(0, found.value - found.low)], [max(0, found.high - found.value)]]
                axes.errorbar(
                    found.value, place + offset, xerr=spread, fmt="o", ms=4, color=colours[question], label=label
                )
    names = [method.removeprefix("baselines/").strip("/").replace("_", " ") or "this checkpoint" for method in methods]
    axes.set_yticks(range(len(methods)), names[::-1])
    axes.axvline(0.5, color="black", lw=0.8, ls=":")
    axes.set_xlabel("macro AUROC, 95 % interval")
    axes.grid(axis="x", lw=0.4, alpha=0.6)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=130)


def draw_reliability(before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]], path: Path) -> None:
    """Share present against probability, and how many answers each bin has."""
    figure = Figure(figsize=(5.2, 6.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color="black", lw=0.8, ls=":")
    for rows, label, colour in ((before, "as the prompts say", GREY), (after, "calibrated", BLUE)):
        x, y, n = (np.array([row[key] for row in rows]) for key in ("probability", "present", "n"))
        error = 1.96 * np.sqrt(np.maximum(y * (1 - y), 1e-9) / n)
        top.errorbar(x, y, yerr=error, marker="o", ms=4, lw=1.2, color=colour, label=label)
        bottom.plot(x, n, marker="o", ms=3, lw=1, color=colour)
    top.set_ylabel("share present")
    top.legend(frameon=False)
    bottom.set_yscale("log")
    bottom.set_ylabel("answers")
    bottom.set_xlabel("probability")
    for axes in (top, bottom):
        axes.grid(lw=0.4, alpha=0.6)
    figure.savefig(path, dpi=130)


def draw_risk_coverage(probabilities: np.ndarray, truth: np.ndarray, findings: Sequence[str], path: Path) -> None:
    """Error among the answers kept, as the least certain are left out; each finding grey, all together blue."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    wrong, confidence = (probabilities >= 0.5) != (truth == 1), np.abs(probabilities - 0.5)
    known = ~np.isnan(truth)
    curves = [(wrong[known[:, k], k], confidence[known[:, k], k], GREY, 0.6) for k in range(len(findings))]
    for errors, certain, colour, width in [*curves, (wrong[known], confidence[known], BLUE, 2.2)]:
        order = np.argsort(-certain, kind="stable")
        count = np.arange(1, len(order) + 1)
        axes.plot(count / len(order), np.cumsum(errors[order]) / count, color=colour, lw=width)
    axes.set_xlabel("coverage: share of answers kept, the most certain first")
    axes.set_ylabel("error among them")
    axes.set_ylim(bottom=0)
    axes.grid(lw=0.4, alpha=0.6)
    figure.savefig(path, dpi=130)


# ---- misses ----


def draw_failures(
    misses: Sequence[tuple[Case, str, float]], encoder: str, texts: Texts, structures: Mapping[int, str], path: Path
) -> None:
    """Of each miss (a case, a finding that it has, the probability given) the scan with the finding outlined, and the heat
    map beside it."""
    numbers = {name: number for number, name in structures.items()}
    rows = []
    for case, finding, probability in misses:
        if not case.has_segmentation or finding not in numbers:
            continue
        volume = read_case(case)
        heat = heat_of(encoder, texts, volume, finding)
        inside = read_label_map(case, volume) == numbers[finding]
        window = INTENSITY_WINDOWS["lung" if finding in LUNG else "mediastinum"]
        centre = central_voxel(inside)
        edge = (inside > np.asarray(binary_erosion(inside))).astype(np.float32)
        outlined = draw_over(volume, window, edge, [np.ones_like(edge), 0.8 * edge, 0 * edge], centre)
        level = level_of(heat)
        heated = draw_over(
            volume, window, 0.6 * level, [np.ones_like(level), (2 * level - 1).clip(0, 1), 0 * level], centre
        )
        title = f"{finding}, {inside.sum() * np.prod(volume.spacing) / 1000:.1f} ml: probability {probability:.2f}"
        rows.append(with_title(join([outlined, heated], across=True, gap=14), title))
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        join(rows, across=False, gap=10).save(path)


def heat_of(encoder: str, texts: Texts, volume: Volume, finding: str) -> np.ndarray:
    """Heat map `(D, H, W)` of a finding's present minus its absent text, as the pipeline says them."""
    model, processor = load_encoder(encoder)
    inputs = image_processor(processor).preprocess(volume)
    with torch.no_grad():
        output = model.vision_model(**inputs, output_dense_features=True)  # pyright: ignore[reportCallIssue]
    present, absent = texts(finding_prompts(finding))
    direction = (present - absent)[None]
    return text_maps(model, image_processor(processor), output, inputs["crop_grid"], volume, direction)[0]


def central_voxel(inside: np.ndarray) -> tuple[int, int, int]:
    """A voxel of the finding, the nearest to its middle."""
    voxels = np.argwhere(inside)
    d, h, w = voxels[np.linalg.norm(voxels - voxels.mean(0), axis=1).argmin()]
    return int(d), int(h), int(w)


def level_of(heat: np.ndarray) -> np.ndarray:
    """0 up to the map's middle value, 1 at its largest."""
    low, high = np.percentile(heat[::2, ::2, ::2], 50), float(heat.max())
    return ((heat - low) / max(high - low, 1e-9)).clip(0, 1)


def draw_over(
    volume: Volume,
    intensity_window: tuple[float, float],
    opacity: np.ndarray,
    colours: Sequence[np.ndarray],
    centre: tuple[int, int, int],
) -> Image.Image:
    """Planes of a scan under colours (red, green, blue, each `(D, H, W)`) that cover it with an opacity of their own."""
    low, high = intensity_window
    grey = ((volume.hu - low) / (high - low)).clip(0, 1)
    mixed = [grey + opacity * (colour - grey) for colour in colours]
    return draw_planes(volume, intensity_window, mixed, opacity=1.0, centre=centre, height=230)


def with_title(picture: Image.Image, title: str) -> Image.Image:
    sheet = Image.new("RGB", (picture.width, picture.height + 24), "black")
    sheet.paste(picture, (0, 24))
    ImageDraw.Draw(sheet).text((6, 4), title, fill="white", font=ImageFont.load_default(size=15))
    return sheet
