"""Rows of a worklist -> one static page with thumbnails. It holds no path, name or number of a patient: the key of a study
leads to its row in worklist.csv."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .whole_files import written_whole

TITLES = {
    "present": "A finding is probably there",
    "not sure": "Not sure",
    "absent": "Nothing that it grades was found",
    "unlike": "Unlike anything it was trained on: no answer",
    "failed": "Could not be read",
}
SHOWN_FINDINGS = 4
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1b1f24; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .5rem .7rem; text-align: left; vertical-align: top; }
tr { border-top: 1px solid #d7dce1; } img { display: block; background: #000; max-width: 30rem; } code { font-size: .85em; }
.notice { border-left: 4px solid #b5541c; padding: .4rem 1rem; background: #fbf3ee; }
.small { color: #57606a; font-size: .87em; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e9ec; background: #14171a; } tr { border-color: #343a40; }
  .notice { background: #2a1f18; } .small { color: #9aa4ae; }
}
"""


def write_page(path: Path, rows: Sequence[dict[str, Any]], model: str) -> None:
    """Whole or not at all."""
    sections = []
    for group, title in TITLES.items():
        some = [row for row in rows if row["group"] == group]
        if some:
            body = "\n".join(map(format_row, some))
            head = "<tr><th>Rank<th>Thumbnail<th>Findings<th>Image quality</tr>" if group != "failed" else ""
            sections.append(f"<h2>{title} ({len(some)})</h2>\n<table>{head}\n{body}\n</table>")
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Worklist</title><style>{STYLE}</style></head><body>\n<h1>Worklist of {len(rows)} studies</h1>\n"
        '<p class="notice"><strong>Research only:</strong> not for diagnosis or any decision about a patient. The order is '
        "that of a model and no statement about urgency.</p>\n"
        f'<p class="small">Model {escape(Path(model).name)}. Keys lead to the rows of worklist.csv. Red: '
        "where the model's map of the first finding is strongest, if that is not absent.</p>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def format_row(row: dict[str, Any]) -> str:
    key = f"<code>{escape(row['key'])}</code>"
    if row["group"] == "failed":
        return f"<tr><td>{row['rank']}<td>{key}<td>{escape(row['shown'])}</tr>"
    picture = (
        f'<img src="thumbnails/{escape(row["key"])}.png" alt="axial, coronal and sagittal plane" loading="lazy">{key}'
    )
    findings = "<br>".join(format_finding(finding) for finding in row["findings"][:SHOWN_FINDINGS]) or "none asked"
    if row["group"] == "unlike":
        distance = row["distance"]
        findings = (
            "no body was found in it" if distance is None else f"{distance:.1f} times as far as a scan like those"
        )
    return f"<tr><td>{row['rank']}<td>{picture}<td>{findings}<td>{format_quality(row['quality'])}</tr>"


def format_finding(finding: dict[str, Any]) -> str:
    name = escape(finding["label"])
    if "probability" not in finding:
        return f'{name} <span class="small">score {finding["score"]:.3g}, not calibrated</span>'
    low, high = finding["interval"]
    numbers = f"{finding['probability']:.2f} ({low:.2f} to {high:.2f})"
    return f'{name} <strong>{numbers}</strong> <span class="small">{escape(finding["verdict"])}</span>'


def format_quality(quality: dict[str, Any]) -> str:
    noise = "not measured" if quality["noise_hu"] is None else f"{quality['noise_hu']:.0f} HU"
    lines = [
        f"noise {noise}",
        f"cut off at the side in {100 * quality['cut_slices']:.0f} % of slices",
        f"metal {quality['metal_ml']:g} ml",
        f"{quality['length_mm']:.0f} mm in slices of {quality['spacing_mm']:.2g} mm",
        *map(escape, quality["repairs"]),
    ]
    return '<span class="small">' + "<br>".join(lines) + "</span>"
