"""Findings, facts and changes -> HTML. Every value of a file is escaped; a row that can be chosen is a button."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from analysis import Analysis, Answer, Change, Finding, Place, Similar
from cases import Case
from exports import scan_facts
from loading import Weights
from texts import name_finding, say
from uploads import Scan, Series, UploadError

# Gradio adds the page's own scripts without waiting for them: on a slow line the first state comes before viewer.js.
WAIT_FOR_VIEWER = "while (!window.ctfmShow) await new Promise((go) => setTimeout(go, 50));"
VIEWER_WORDS = (
    *("viewer", "viewer_help", "viewer_keys", "viewer_loading", "viewer_empty", "viewer_failed", "viewer_plain"),
    *(
        "viewer_level",
        "viewer_width",
        "viewer_slice",
        "viewer_opacity",
        "viewer_only_above",
        "viewer_unit",
        "no_map",
        "map_of",
    ),
    *("window", "window_lung", "window_mediastinum", "window_bone", "window_liver", "window_brain"),
    *("layout", "layout_planes", "layout_axial", "layout_coronal", "layout_sagittal", "layout_render"),
    *("tool", "tool_point", "tool_pan", "tool_ruler", "tool_region"),
    *("view", "view_crosshair", "view_closer", "view_further", "view_reset"),
    *("surface", "surface_bone", "surface_soft", "surface_lung"),
)


def url_of(path: str | Path) -> str:
    """Where the page finds a file that the server may give; relative, so that it holds behind a proxy."""
    return f"gradio_api/file={path}"


def viewer_state(
    language: str,
    view: dict[str, Any] | None = None,
    overlay: dict[str, Any] | None = None,
    name: str = "",
    mm: Sequence[float] | None = None,
) -> dict[str, Any]:
    """What static/viewer.js shows: a scan (`write_view`), a map over it (`write_overlay`), where the crosshair goes."""
    labels = {"code": language} | {key: say(language, key) for key in VIEWER_WORDS}
    state: dict[str, Any] = {"scan": None, "map": None, "mm": None, "reduced": "", "slice_factor": 1, "labels": labels}
    if view is None:
        return state
    state["scan"] = url_of(view["scan"])
    state["slice_factor"] = view["reduced"][0]
    if max(view["reduced"]) > 1:
        state["reduced"] = say(language, "viewer_reduced", " × ".join(map(str, view["reduced"])))
    state["mm"] = None if mm is None else list(mm)
    if overlay is not None:
        state["map"] = {"url": url_of(overlay["map"]), "low": overlay["low"], "high": overlay["high"], "name": name}
    return state


def notice(language: str, weights: Weights) -> str:
    """The research-only notice, and what the weights were trained on, as their run.json has it."""
    data = str(weights.run.get("data", ""))
    if "phantom" in data:
        trained = say(language, "trained_phantoms")
    else:
        trained = say(language, "trained_on", escape(data)) if data else say(language, "trained_unknown")
    return (
        f'<div class="notice" role="note"><strong>{say(language, "notice")}</strong> '
        f"{say(language, 'trained')} ({escape(weights.name)}) {trained}</div>"
    )


def readout(language: str, scan: Scan | None, seen: bool = False) -> str:
    """What was read, checked and repaired."""
    if scan is None:
        return ""
    facts, source = scan_facts(scan), scan.volume.source
    by = " × ".join
    geometry = (
        f"{by(map(str, facts['shape']))} {say(language, 'voxels')}, {by(f'{s:.3g}' for s in facts['spacing_mm'])} mm, "
        f"{facts['orientation_on_disk']} {say(language, 'on_disk')}"
    )
    contrast = {True: say(language, "contrast"), False: say(language, "no_contrast"), None: ""}[source.contrast]
    acquisition = [
        source.kind.upper(),
        f"{source.num_slices} {say(language, 'slices')}",
        f"{say(language, 'kernel')} {source.kernel}" if source.kernel else "",
        f"{source.kvp:g} kVp" if source.kvp else "",
        contrast,
    ]
    left_out = "; ".join(f"{count} × {reason}" for reason, count in facts["left_out"].items())
    rows = [
        ("geometry", geometry),
        ("intensity", f"{facts['hu_1_percent']:g} … {facts['hu_99_percent']:g} (1 % … 99 %)"),
        ("acquisition", ", ".join(filter(None, acquisition))),
        ("left_out", left_out),
        ("checked", "; ".join(facts["checks"])),
    ]
    body = "".join(
        f"<tr><th scope=row>{say(language, key)}</th><td>{escape(value)}</td></tr>" for key, value in rows if value
    )
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in facts["warnings"])
    repaired = f"<ul>{warnings}</ul>" if warnings else say(language, "nothing_repaired")
    body += f"<tr class=repaired><th scope=row>{say(language, 'repaired')}</th><td>{repaired}</td></tr>"
    took = say(language, "from_memory") if seen else f"{say(language, 'read_in')} {scan.read_seconds:.1f} s"
    return f'<table class="facts"><caption>{say(language, "readout")} <small>({took})</small></caption>{body}</table>'


def scan_bar(language: str, scan: Scan, title: str = "") -> str:
    """One line that names what is open, without a name or a date."""
    facts = scan_facts(scan)
    by = " × ".join
    parts = [
        f"<strong>{escape(title or say(language, 'a_scan'))}</strong>",
        f"{by(map(str, facts['shape']))} {say(language, 'voxels')}",
        f"{by(f'{s:.3g}' for s in facts['spacing_mm'])} mm",
        facts["kind"].upper(),
    ]
    if facts["warnings"]:
        parts.append(say(language, "num_warnings", len(facts["warnings"])))
    return f'<p class="open">{" · ".join(parts)}</p>'


def describe_series(language: str, series: Series) -> str:
    """A choice in the list of series, without its number in the hospital."""
    count, rows, columns = series.shape
    contrast = {True: say(language, "contrast"), False: say(language, "no_contrast"), None: ""}[series.contrast]
    parts = [
        f"{count} {series.plane} {say(language, 'slices')}",
        f"{rows} × {columns}",
        " × ".join(f"{size:.3g}" for size in series.spacing) + " mm",
        f"{say(language, 'kernel')} {series.kernel}" if series.kernel else "",
        contrast,
    ]
    return ", ".join(filter(None, parts))


def series_cards(language: str, listed: Sequence[Series], pictures: Mapping[int, str], chosen: int | None) -> str:
    """The series of an upload, by patient, each a button with its picture; `pictures` holds those that were drawn."""
    if not listed:
        return ""
    patients = list(dict.fromkeys(series.patient for series in listed))
    parts = [f'<p class="choose" role="status">{say(language, "choose_series")}</p>'] if chosen is None else []
    for number, patient in enumerate(patients, 1):
        if len(patients) > 1:
            parts.append(f"<h3>{say(language, 'patient', number)}</h3>")
        own = [(n, series) for n, series in enumerate(listed) if series.patient == patient]
        cards = "".join(series_card(language, series, n, pictures.get(n), n == chosen) for n, series in own)
        parts.append(f'<div class="cards">{cards}</div>')
    return "".join(parts)


def series_card(language: str, series: Series, number: int, picture: str | None, is_chosen: bool) -> str:
    image = (
        f'<img src="{escape(url_of(picture))}" alt="">' if picture else '<span class="blank" aria-hidden="true"></span>'
    )
    return (
        f'<button type=button data-series="{number}" aria-pressed="{str(is_chosen).lower()}">{image}'
        f"<span>{escape(describe_series(language, series))}</span></button>"
    )


def case_cards(language: str, cases: Sequence[Case]) -> str:
    """The example cases: what is known of each, and a picture where it was drawn already."""
    cards = []
    for case in cases:
        image = f'<img src="{escape(url_of(case.picture))}" alt="">'
        known = ", ".join(name_finding(language, label) for label in case.findings) or say(language, "no_findings")
        cards.append(
            f'<button type=button data-case="{case.key}">{image}<span><strong>{say(language, f"case_{case.key}")}</strong>'
            f"<small>{say(language, 'truth')}: {escape(known)}</small></span></button>"
        )
    return f'<div class="cards cases">{"".join(cards)}</div>'


def trouble(language: str, error: UploadError) -> str:
    """Why an upload was refused, where one looks for what it gives."""
    return (
        f'<div class="trouble" role="alert"><strong>{say(language, "error")}</strong>'
        f"<p>{say(language, error.key)} {escape(error.detail)}</p></div>"
    )


def describe_place(language: str, place: Place) -> str:
    level = say(language, "middle_level" if place.level == "middle" else place.level)
    x, y, z = place.mm
    where = f"{say(language, place.side)}, {say(language, place.front)}, {level}"
    size = "" if place.size_ml is None else f"{say(language, 'about')} {float(f'{place.size_ml:.2g}'):g} ml; "
    return (
        f"{where}<br><small>{size}{say(language, 'slice')} {place.slice_number}; {x:.0f}, {y:.0f}, {z:.0f} mm</small>"
    )


def findings_panel(
    language: str,
    analysis: Analysis,
    weights: Weights,
    not_asked: Sequence[str] = (),
    chosen: str | None = None,
    truth: Sequence[str] | None = None,
) -> str:
    """What is answered about a scan, or why nothing is; and, always, everything that is asked.

    Args:
        not_asked: findings that the checkpoint is calibrated for and could never call present.
        chosen: the finding whose map is shown.
        truth: what is known to be in an example.
    """
    if not analysis.judged.answers:
        return refusal(language, analysis, weights)
    shown = [finding for finding in analysis.findings if not finding.is_near_chance]
    hidden = [finding for finding in analysis.findings if finding.is_near_chance]
    took = f"{say(language, 'computed_in')} {analysis.seconds:.1f} s"
    parts = [f"<h2>{say(language, 'findings')} <small>({took})</small></h2>", filters(language, shown)]
    parts.append(findings_table(language, shown, weights, chosen, truth))
    if hidden:
        listed = findings_table(language, hidden, weights, chosen, truth)
        title = say(language, "near_chance", len(hidden))
        parts.append(
            f"<details><summary>{title}</summary><p class=quiet>{say(language, 'near_chance_help')}</p>{listed}</details>"
        )
    if not_asked:
        names = ", ".join(escape(name_finding(language, label)) for label in not_asked)
        parts.append(f"<p class=quiet>{say(language, 'not_asked')} {names}.</p>")
    parts.append(f"<p class=quiet>{say(language, 'findings_help')}</p>")
    return "".join(parts)


def refusal(language: str, analysis: Analysis, weights: Weights) -> str:
    judged = analysis.judged
    assert judged.reason is not None
    how_far = ""
    if judged.distance is not None and judged.threshold:
        how_far = f" {say(language, 'gate_distance', f'{judged.distance / judged.threshold:.1f}')}"
    asked = ", ".join(escape(name_finding(language, label)) for label in weights.calibration)
    return (
        f'<h2>{say(language, "findings")}</h2><div class="refused" role="status"><strong>{say(language, "no_answers")}</strong>'
        f"<p>{say(language, judged.reason)}{how_far}</p><p>{say(language, 'still_there')}</p></div>"
        f"<p class=quiet>{say(language, 'would_ask')} {asked or say(language, 'nothing')}.</p>"
    )


def filters(language: str, findings: Sequence[Finding]) -> str:
    """Buttons that leave one kind of answer, and the order of the rows; static/viewer.js acts on them."""
    kinds = [kind for kind in ("present", "not sure", "absent") if any(f.verdict == kind for f in findings)]
    buttons = "".join(
        f'<button type=button data-filter="{kind}" aria-pressed="{str(not kind).lower()}">'
        f"{say(language, kind or 'all')}</button>"
        for kind in ("", *kinds)
    )
    orders = ("probability", "name", "level")
    options = "".join(f'<option value="{key}">{say(language, f"by_{key}")}</option>' for key in orders)
    return (
        f'<div class="filters"><span class="group" role="group" aria-label="{say(language, "filter")}">{buttons}</span>'
        f"<label>{say(language, 'order')} <select data-order>{options}</select></label></div>"
    )


def findings_table(
    language: str,
    findings: Sequence[Finding],
    weights: Weights,
    chosen: str | None = None,
    truth: Sequence[str] | None = None,
) -> str:
    """A sorted table; the name of a finding is a button that carries `data-finding`."""
    calibrated = any(finding.probability is not None for finding in findings)
    heads = ["finding", "probability" if calibrated else "score", "answer"] + ([] if truth is None else ["truth"])
    head = "".join(f"<th scope=col>{say(language, key)}</th>" for key in heads)
    rows = "".join(finding_row(language, f, weights, f.label == chosen, truth) for f in findings)
    return (
        f'<table class="findings"><caption class="sr">{say(language, "findings")}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


LEVELS = ("lower", "middle", "upper")


def finding_row(language: str, finding: Finding, weights: Weights, is_chosen: bool, truth: Sequence[str] | None) -> str:
    name = name_finding(language, finding.label)
    place = "" if finding.place is None else f"<br>{describe_place(language, finding.place)}"
    if finding.place is None and finding.verdict != "absent":
        place = f"<br><small>{say(language, 'no_place')}</small>"
    measured = "" if finding.auroc is None else f"<br><small>{describe_auroc(language, finding.auroc, weights)}</small>"
    button = (
        f'<button type=button data-finding="{escape(finding.label)}" aria-pressed="{str(is_chosen).lower()}" '
        f'aria-label="{say(language, "show_map")} {escape(name)}">{escape(name)}</button>'
    )
    verdict = finding.verdict or "not_calibrated"
    badge = f'<span class="verdict {verdict.replace(" ", "-")}">{say(language, verdict)}</span>'
    cells = [
        f"<th scope=row>{button}{place}{measured}</th>",
        f"<td class=number>{describe_probability(language, finding)}</td>",
        f"<td>{badge}{describe_thresholds(language, finding)}</td>",
    ]
    if truth is not None:
        cells.append(f'<td data-head="{say(language, "truth")}">{describe_truth(language, finding, truth)}</td>')
    level = -1 if finding.place is None else LEVELS.index(finding.place.level)
    return (
        f'<tr{" class=chosen" if is_chosen else ""} data-verdict="{escape(finding.verdict or "")}" '
        f'data-probability="{finding.order:.4f}" data-name="{escape(name)}" data-level="{level}">{"".join(cells)}</tr>'
    )


def describe_probability(language: str, finding: Finding) -> str:
    """The number, and a bar on which the band of "not sure" is marked."""
    value = finding.order
    if finding.probability is None or finding.interval is None:  # a score is no probability
        return f"{value:.2f}"
    band = ""
    if finding.absent_below is not None and finding.present_above is not None:
        low, high = 100 * finding.absent_below, 100 * finding.present_above
        band = f'<b style="left:{low:.0f}%;width:{high - low:.0f}%"></b>'
    shown = show_share(value, finding.absent_below, finding.present_above)
    bar = f'<span class="bar" aria-hidden="true">{band}<i style="width:{100 * value:.0f}%"></i></span>'
    interval = f"{say(language, 'interval')} <span class=line>{show_interval(*finding.interval)}</span>"
    return f"<span class=line>{bar} {shown}</span><br><small>{interval}</small>"


def describe_thresholds(language: str, finding: Finding) -> str:
    if finding.absent_below is None or finding.present_above is None:
        return ""
    low, high = show_share(finding.absent_below), show_share(finding.present_above)
    return f"<br><small>{say(language, 'thresholds', low, high)}</small>"


def describe_auroc(language: str, auroc: Mapping[str, float], weights: Weights) -> str:
    where = say(language, "on_phantoms") if weights.measured_on == "phantoms" else escape(weights.measured_on)
    return f"{say(language, 'measured', where)} {show_metric(auroc)}"


def describe_truth(language: str, finding: Finding, truth: Sequence[str]) -> str:
    is_there = finding.label in truth
    known = say(language, "drawn" if is_there else "not_drawn")
    if finding.verdict not in ("present", "absent"):
        return known
    is_right = (finding.verdict == "present") == is_there
    return f"{known}<br><small>{say(language, 'model_right' if is_right else 'model_wrong')}</small>"


def show_share(value: float | None, *thresholds: float | None) -> str:
    """In per cent, as fine as tells the value from the thresholds; 0 and 100 % are never claimed."""
    if value is None:
        return ""
    if value < 0.01 or value > 0.99:
        return "&lt; 1 %" if value < 0.01 else "&gt; 99 %"
    is_close = any(t is not None and t != value and f"{100 * t:.0f}" == f"{100 * value:.0f}" for t in thresholds)
    return f"{100 * value:.1f} %" if is_close else f"{100 * value:.0f} %"


def show_interval(low: float | None, high: float | None) -> str:
    ends = dict.fromkeys((show_share(low), show_share(high)))
    return " – ".join(ends)


def show_metric(metric: Mapping[str, float]) -> str:
    interval = f" <small>[{metric['low']:.2f} – {metric['high']:.2f}]</small>" if "low" in metric else ""
    return f"{metric['value']:.2f}{interval}"


def answer_to(language: str, text: str, answer: Answer) -> str:
    if answer.unknown:
        words = ", ".join(f"<q>{escape(word)}</q>" for word in answer.unknown)
        return (
            f'<p class="answer" role="status"><strong>{escape(text)}</strong>: {say(language, "not_understood")} {words}.</p>'
            f"<p class=quiet>{say(language, 'not_understood_help')}</p>"
        )
    assert answer.place is not None
    verdict = say(language, "fits" if answer.fits else "does_not_fit")
    rank = say(language, "rank", answer.rank, answer.num_sentences, f"{100 * answer.better_than:.0f}")
    place = (
        f" {say(language, 'strongest')}: {describe_place(language, answer.place).replace('<br>', ', ')}."
        if answer.fits
        else ""
    )
    return (
        f'<p class="answer" role="status"><strong>{escape(text)}</strong>: {verdict} {rank}{place} '
        f"<small>({say(language, 'similarity')} {answer.similarity:+.3f})</small></p>"
        f"<p class=quiet>{say(language, 'query_help')}</p>"
    )


def similar_scans(language: str, similar: Sequence[Similar], size: int) -> str:
    """Cards: picture, similarity, findings and report of each."""
    if not similar:
        return f"<p class=quiet>{say(language, 'no_gallery')}</p>"
    cards = "".join(similar_card(language, scan) for scan in similar)
    return f'<p class=quiet>{say(language, "similar_help", size)}</p><ul class="similar">{cards}</ul>'


def similar_card(language: str, scan: Similar) -> str:
    names = ", ".join(name_finding(language, label) for label in scan.findings) or say(language, "no_findings")
    picture: Path = scan.picture
    return (
        f'<li><img src="{escape(url_of(picture))}" alt="{escape(names)}" loading="lazy">'
        f"<strong>{scan.similarity:.3f}</strong> <span>{escape(names)}</span>"
        f'<details><summary lang="en">Report</summary><p lang="en">{escape(scan.report)}</p></details></li>'
    )


def changes_table(language: str, changes: Sequence[Change], cosine: float) -> str:
    heads = "".join(f"<th scope=col>{say(language, key)}</th>" for key in ("finding", "prior", "current", "change"))
    rows = "".join(
        f"<tr class='{change.kind}'><th scope=row>{escape(name_finding(language, change.label))}</th>"
        f"<td class=number>{graded(language, change.prior)}</td><td class=number>{graded(language, change.current)}</td>"
        f"<td><span class='verdict {change.kind}'>{say(language, change.kind)}</span></td></tr>"
        for change in changes
    )
    return (
        f'<table class="findings changes"><caption>{say(language, "changes")}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table><p class=quiet>{say(language, 'compare_help', f'{cosine:.3f}')}</p>"
    )


def graded(language: str, finding: Finding) -> str:
    interval = finding.interval
    if interval is None:
        return f"{finding.order:.2f} <small>({say(language, 'not_calibrated')})</small>"
    return f"{show_share(finding.order)} <small>({show_interval(*interval)})</small>"
