"""Findings, facts and changes -> HTML. Every value of a file is escaped; a row that can be chosen is a button."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from analysis import Change, Finding, Place, Similar
from exports import scan_facts
from loading import Weights
from texts import name_finding, say
from uploads import Scan, Series

# Gradio adds the page's own scripts without waiting for them: on a slow line the first state comes before viewer.js.
WAIT_FOR_VIEWER = "while (!window.ctfmShow) await new Promise((go) => setTimeout(go, 50));"
VIEWER_WORDS = (
    "viewer",
    "viewer_help",
    "viewer_loading",
    "viewer_empty",
    "viewer_failed",
    "viewer_plain",
    "window",
    "window_lung",
    "window_mediastinum",
    "window_bone",
    "window_liver",
    "window_brain",
    "layout",
    "layout_planes",
    "layout_axial",
    "layout_coronal",
    "layout_sagittal",
    "layout_render",
    "opacity",
    "crosshair",
    "no_map",
    "map_of",
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
    state: dict[str, Any] = {"scan": None, "map": None, "mm": None, "reduced": "", "labels": labels}
    if view is None:
        return state
    state["scan"] = url_of(view["scan"])
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
        return f'<p class="quiet">{say(language, "waiting")}</p>'
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


def describe_place(language: str, place: Place) -> str:
    level = say(language, "middle_level" if place.level == "middle" else place.level)
    x, y, z = place.mm
    where = f"{say(language, place.side)} · {say(language, place.front)} · {level}"
    return f"{where}<br><small>{say(language, 'slice')} {place.slice_number}; {x:.0f}, {y:.0f}, {z:.0f} mm</small>"


def findings_table(
    language: str, findings: Sequence[Finding], weights: Weights, seconds: float, chosen: str | None = None
) -> str:
    """A sorted table; the name of a finding is a button that carries `data-finding`."""
    if not findings:
        return ""
    calibrated = any(finding.probability is not None for finding in findings)
    measured = any(f"zero_shot/{finding.label}/auroc" in weights.metrics for finding in findings)
    heads = ["finding", "probability" if calibrated else "score"]
    heads += ["interval"] if calibrated else []
    heads += ["answer", "evidence"] + (["measured"] if measured else [])
    head = "".join(f"<th scope=col>{say(language, key)}</th>" for key in heads)
    rows = "".join(finding_row(language, f, weights, calibrated, measured, f.label == chosen) for f in findings)
    took = f"{say(language, 'computed_in')} {seconds:.1f} s"
    return (
        f'<table class="findings"><caption>{say(language, "findings")} <small>({took})</small></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><p class=quiet>{say(language, 'findings_help')}</p>"
    )


def finding_row(
    language: str, finding: Finding, weights: Weights, calibrated: bool, measured: bool, is_chosen: bool
) -> str:
    name = name_finding(language, finding.label)
    value = finding.order
    shown = f"{value:.2f}" if finding.probability is None else show_share(value)  # a score is no probability
    bar = f'<span class="bar" aria-hidden="true"><i style="width:{100 * value:.0f}%"></i></span> {shown}'
    cells = [f"<td class=number>{bar}</td>"]
    if calibrated:
        low, high = finding.interval or (None, None)
        cells.append(f'<td class=number data-label="{say(language, "interval")}">{show_interval(low, high)}</td>')
    verdict = finding.verdict or "not_calibrated"
    cells.append(f'<td><span class="verdict {verdict.replace(" ", "-")}">{say(language, verdict)}</span></td>')
    cells.append(f"<td class=place>{describe_place(language, finding.place)}</td>")
    if measured:
        auroc = weights.metrics.get(f"zero_shot/{finding.label}/auroc")
        shown = "" if auroc is None else show_metric(auroc)
        cells.append(f'<td class=number data-label="{say(language, "measured")}">{shown}</td>')
    return (
        f'<tr{" class=chosen" if is_chosen else ""}><th scope=row><button type=button data-finding="{escape(finding.label)}" '
        f'aria-pressed="{str(is_chosen).lower()}" aria-label="{say(language, "show_map")} {escape(name)}">{escape(name)}'
        f"</button></th>{''.join(cells)}</tr>"
    )


def show_share(value: float | None) -> str:
    """0 and 100 % are never claimed."""
    if value is None:
        return ""
    return "&lt; 1 %" if value < 0.01 else "&gt; 99 %" if value > 0.99 else f"{100 * value:.0f} %"


def show_interval(low: float | None, high: float | None) -> str:
    ends = dict.fromkeys((show_share(low), show_share(high)))
    return " – ".join(ends)


def show_metric(metric: dict[str, Any]) -> str:
    interval = f" <small>[{metric['low']:.2f} – {metric['high']:.2f}]</small>" if "low" in metric else ""
    return f"{metric['value']:.2f}{interval}"


def answer_to(language: str, text: str, similarity: float, place: Place) -> str:
    return (
        f'<p class="answer" role="status"><strong>{escape(text)}</strong>: {say(language, "similarity")} '
        f"{similarity:+.3f}; {describe_place(language, place).replace('<br>', ', ')}</p>"
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
