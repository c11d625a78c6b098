"""Several reports on one page, sortable by every column. Only what compares is put side by side."""

import html
from collections.abc import Sequence
from pathlib import Path

from vadis.errors import FileError, VadisError
from vadis.evaluation.page import page
from vadis.evaluation.report import Report, metrics, same
from vadis.files import atomic_write

MUST_AGREE = ("protocol", "evaluator", "data", "judge")
SORT = """
document.querySelectorAll('th').forEach((th,k)=>th.addEventListener('click',()=>{const body=th.closest('table').tBodies[0];
const up=th.dataset.up!=='1';document.querySelectorAll('th').forEach(x=>delete x.dataset.up);th.dataset.up=up?'1':'0';
const value=r=>{const c=r.cells[k];return c.dataset.v===undefined?c.textContent:parseFloat(c.dataset.v)};
[...body.rows].sort((a,b)=>{const x=value(a),y=value(b);const d=typeof x==='number'&&typeof y==='number'?
(isNaN(x)?1:isNaN(y)?-1:x-y):String(x).localeCompare(String(y));return up?d:-d}).forEach(r=>body.append(r))}));
"""


def find_reports(folder: str | Path, protocol: str | None = None) -> list[tuple[Path, Report]]:
    """Every `report.json` under a folder, by path; only those of one protocol when it is named.

    Raises FileError when there is none.
    """
    folder = Path(folder)
    paths = sorted(folder.rglob("report.json"))
    found = [(p, Report.load(p)) for p in paths]
    kept = [(p, r) for p, r in found if protocol is None or r.protocol["name"] == protocol]
    if not kept:
        there = ", ".join(sorted({r.protocol["name"] for _, r in found})) or "none"
        what = f"of protocol {protocol} (there are: {there})" if protocol else "at all"
        raise FileError(f"no report.json {what} under {folder}. Make one with `vadis evaluate … -o {folder}/NAME`.")
    return kept


def merge(reports: Sequence[tuple[Path, Report]]) -> list[Report]:
    """The reports, when protocol, evaluator and data agree.

    Raises VadisError naming two that differ and in what.
    """
    first_path, first = reports[0]
    for path, other in reports[1:]:
        if differing := same(first.identity, other.identity, MUST_AGREE):
            what = "; ".join(f"{k} {_called(first, k)} and {_called(other, k)}" for k in differing)
            raise VadisError(
                f"{first_path.parent.name} and {path.parent.name} don't compare: {what} differ (names may agree where contents don't). Merge reports "
                "of one protocol, evaluator and set of items; --protocol NAME picks those of one protocol."
            )
    return [r for _, r in reports]


def _called(report: Report, what: str) -> str:
    names = {"protocol": report.protocol["name"], "evaluator": report.evaluator, "data": report.data}
    return names.get(what) or report.identity.get(what, "none")


def write_leaderboard(reports: Sequence[Report], path: str | Path) -> Path:
    """Write the sortable page: real motion first, then a row a report."""
    known = metrics()
    shown = [k for k in known if any(k in r.result for r in reports)]
    arrow = {"higher": "↑", "lower": "↓", "real": "→"}
    head = "".join(
        f"<th>{html.escape(known[k].label)} {arrow[known[k].better]}<br><small>{html.escape(known[k].unit)}</small></th>"
        for k in shown
    )
    rows = [_row("real motion", reports[0].real, shown, "")]
    rows += [_row(r.model, r.result, shown, f"{r.settings.get('generations', 1)}") for r in reports]
    r = reports[0]
    about = (
        f"<h1>{html.escape(r.protocol['name'])}</h1><p class=faint>{html.escape(r.protocol['title'])}. {r.items} items of "
        f"{html.escape(r.data)}; evaluator {html.escape(r.evaluator)}. Click a column to sort; → means the closer to real "
        "motion the better.</p>"
    )
    table = f"<div class=wide><table class=board><thead><tr><th>model<th>sets{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    with atomic_write(path) as temporary:
        temporary.write_text(page(f"{r.protocol['name']} leaderboard", f"{about}{table}<style>body{{max-width:none}}</style><script>{SORT}</script>"), encoding="utf-8")  # fmt: skip
    return Path(path)


def markdown(reports: Sequence[Report]) -> str:
    """The table for a terminal or a README."""
    known = metrics()
    shown = [k for k in known if any(k in r.result for r in reports)]
    lines = ["| model | " + " | ".join(known[k].label for k in shown) + " |", "| --- |" + " ---: |" * len(shown)]
    for name, values in [("real motion", reports[0].real), *((r.model, r.result) for r in reports)]:
        cells = [values[k].text(known[k].digits) if k in values else "—" for k in shown]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _row(name: str, values: dict, shown: Sequence[str], sets: str) -> str:
    known = metrics()
    cells = "".join(
        f'<td data-v="{values[k].mean!r}">{values[k].text(known[k].digits)}</td>'
        if k in values
        else '<td data-v="nan">—</td>'
        for k in shown
    )
    return f"<tr><td>{html.escape(name)}</td><td>{sets}</td>{cells}</tr>"
