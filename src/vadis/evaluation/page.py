"""The report as one HTML file: table, bars with intervals, embeddings on a plane, histograms, worst and best clips.

Without matplotlib (extra `export`) the page has its table only, and says so.
"""

import base64
import html
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vadis.errors import VadisError
from vadis.evaluation.report import Report, metrics
from vadis.files import atomic_write
from vadis.representations import representation

REAL, MADE = "#8a9099", "#2f6fde"
HISTOGRAMS = (
    ("jitter", "jitter_si", "mbench_jitter"),
    ("slide", "slide_si", "mbench_foot_sliding"),
    ("skate",),
    ("hover",),
)
"""Of each group the first metric that a report has."""
STYLE = """
:root{color-scheme:light dark;--ink:#22262c;--faint:#6b727b;--line:#e2e5e9;--paper:#fff;--soft:#f6f7f9;--good:#147a3d;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e7e9ec;--faint:#9aa1aa;--line:#343a41;--paper:#16191d;--soft:#1e2227;--good:#5fd08a;--bad:#ff8a80}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1120px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}p.faint,li,figcaption{color:var(--faint)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:.35rem .7rem;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child{text-align:left}table.board td,table.board th{white-space:nowrap}table.board th{cursor:pointer}th{background:var(--soft);font-weight:600}.good{color:var(--good)}.bad{color:var(--bad)}
figure{margin:1rem 0;background:#fff;border-radius:8px;overflow:hidden}figure img,figure svg{width:100%;height:auto;display:block}
figcaption{background:var(--paper);padding:.4rem 0;font-size:.9rem}.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:1rem}
.wide{overflow-x:auto}
"""


def write_page(report: Report, folder: str | Path, real: Sequence[Tensor] | None, made: Sequence[Tensor], pictures: int = 3) -> Path:  # fmt: skip
    """Write `report.html` to a folder; `real` and `made` are the first seed's motions, for the pictures."""
    parts = [_head(report), _table(report)]
    try:
        import matplotlib  # noqa: F401

        parts += [_plots(report), _pictures(report, real, made, pictures)]
    except ImportError:
        parts.append("<p class=faint>No plots: they need matplotlib (pip install 'vadis[export]').</p>")
    parts.append(_notes(report))
    path = Path(folder) / "report.html"
    with atomic_write(path) as temporary:
        temporary.write_text(page(f"{report.model} · {report.protocol['name']}", "\n".join(parts)), encoding="utf-8")
    return path


def page(title: str, body: str) -> str:
    """A whole HTML document."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><body>{body}</body></html>\n"
    )


def _head(r: Report) -> str:
    p, s = r.protocol, r.settings
    return (
        f"<h1>{html.escape(r.model)} · {html.escape(p['name'])}</h1><p class=faint>{html.escape(p['title'])}. {r.items} items "
        f"of {html.escape(r.data)}; evaluator {html.escape(r.evaluator)}; {s.get('repeats', 1)} seeds, "
        f"{s.get('generations', 1)} sets of predictions; mean ± 1.96 sd / √seeds.</p>"
    )


def _table(r: Report) -> str:
    arrow = {"higher": "↑", "lower": "↓", "real": "→ real"}
    rows = ["<div class=wide><table><tr><th>metric<th>better<th>real<th>this model<th>difference</tr>"]
    for key, m, real, result in r.rows():
        delta, tone = r.delta(key), ""
        unsure = sum(v.interval or 0 for v in (real, result) if v)
        if delta is not None and m.better != "real" and abs(delta) > unsure:
            tone = "good" if (delta < 0) == (m.better == "lower") else "bad"
        cells = [v.text(m.digits) if v else "—" for v in (real, result)]
        unit = f" <span class=faint>{html.escape(m.unit)}</span>" if m.unit else ""
        rows.append(
            f"<tr><td>{html.escape(m.label)}{unit}<td>{arrow[m.better]}<td>{cells[0]}<td>{cells[1]}"
            f"<td class={tone or 'none'}>{'' if delta is None else f'{delta:+.{m.digits}f}'}</tr>"
        )
    return "\n".join(rows) + "</table></div>"


def _notes(r: Report) -> str:
    known = metrics()
    items = [f"no {known[k].label if k in known else k}: {v}" for k, v in r.unavailable.items()] + list(r.notes)
    listed = "".join(f"<li>{html.escape(i)}</li>" for i in items)
    made = ", ".join(f"{k} {v:.1f} s" for k, v in r.timing.items())
    hashes = ", ".join(f"{k} {v[:16]}" for k, v in r.identity.items() if v)
    return f"<h2>Notes</h2><ul>{listed}</ul><p class=faint>{html.escape(made)} · {html.escape(hashes)}</p>"


# ---- plots


def figure(draw: Sequence[Callable[[Any], None]], width: float, height: float) -> str:
    """An SVG of what the functions put on matplotlib axes, side by side."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vadis", "font.size": 9, "font.family": "sans-serif"}):
        fig = Figure(figsize=(width, height))
        fig.subplots_adjust(
            left=0.19 if len(draw) == 1 else 0.03, right=0.98, bottom=0.16, top=1 - 0.3 / height, wspace=0.12
        )
        for axes, function in zip(fig.subplots(1, len(draw), squeeze=False)[0], draw, strict=True):
            function(axes)
            axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        fig.savefig(out, format="svg", metadata={"Date": None})
    return f"<figure>{out.getvalue()[out.getvalue().index('<svg') :]}</figure>"


def _plots(r: Report) -> str:
    parts = []
    both = [(m, real, result) for _, m, real, result in r.rows() if real and result and abs(real.mean) > 1e-12]
    if both:
        parts.append(figure([lambda axes: _bars(axes, both)], 10.5, 1.2 + 0.24 * len(both)))
    keys = [k for group in HISTOGRAMS if (k := next((k for k in group if f"made/{k}" in r.clips), None))]
    draw: list[Callable[[Any], None]] = [lambda axes: _scatter(axes, r)] if "plane/real" in r.clips else []
    draw += [lambda axes, key=key: _histogram(axes, r, key) for key in keys[: 4 - len(draw)]]
    if draw:
        parts.append(figure(draw, 10.5, 3.0))
    return "<h2>Against real motion</h2>" + "\n".join(parts)


def _bars(axes: Any, both: list[Any]) -> None:
    """Every metric in units of its real value, so that 1 is real motion."""
    y = np.arange(len(both))[::-1]
    ratio = [min(result.mean / real.mean, 5) for _, real, result in both]
    error = [0 if cut == 5 else (b.interval or 0) / abs(a.mean) for cut, (_, a, b) in zip(ratio, both, strict=True)]
    axes.barh(y, ratio, 0.62, color=MADE, xerr=error, error_kw={"lw": 1, "capsize": 2})
    axes.axvline(1, color=REAL, lw=1.5)
    axes.set_yticks(
        y, [f"{m.label} {'↑' if m.better == 'higher' else '↓' if m.better == 'lower' else '→'}" for m, _, _ in both]
    )
    axes.set_xlabel("this model / real motion (cut at 5)")


def _scatter(axes: Any, r: Report) -> None:
    for name, color in (("real", REAL), ("made", MADE)):
        x, y = np.array(r.clips[f"plane/{name}"]).T
        axes.scatter(x, y, s=9, color=color, alpha=0.6, lw=0, label=name)
    axes.set_title("embeddings, main plane of the real ones", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(frameon=False)


def _histogram(axes: Any, r: Report, key: str) -> None:
    sets = {n: np.array([v for v in r.clips.get(f"{n}/{key}", []) if v is not None]) for n in ("real", "made")}
    together = np.concatenate(list(sets.values()))
    low, high = np.quantile(together, [0.0, 0.99])
    edges = np.linspace(low, max(high, low + 1e-9), 31)
    for name, color in (("real", REAL), ("made", MADE)):
        if len(sets[name]):
            axes.hist(np.clip(sets[name], edges[0], edges[-1]), edges, color=color, alpha=0.6, density=True, label=name)
    m = metrics()[key]
    axes.set_title(f"{m.label}{f' ({m.unit})' if m.unit else ''}, clips", fontsize=9)
    axes.set_yticks([])
    axes.legend(frameon=False)


# ---- worst and best clips


def _pictures(r: Report, real: Sequence[Tensor] | None, made: Sequence[Tensor], count: int) -> str:
    keys = ("distance", "error/mpjpe_root", "made/jerk")
    key = next((k for k in keys if k in r.clips), None)
    if key is None or count < 1 or not len(made) or made[0].ndim != 2:
        return ""
    values = np.array([np.nan if v is None else v for v in r.clips[key]], np.float64)
    order = [int(i) for i in np.argsort(values, kind="stable") if np.isfinite(values[i])]
    count = min(count, len(order) // 2)
    what = {"distance": "text–motion distance", "error/mpjpe_root": "MPJPE in mm", "made/jerk": "jerk in m/s³"}[key]
    parts = [f"<h2>Worst and best clips by {what}</h2>"]
    for title, rows in (("Worst", order[::-1][:count]), ("Best", order[:count])):
        for i in rows:
            row = r.clips["row"][i]
            image = _sheet(r, real, made, row)
            text = f"{title}: {values[i]:.3f} · {r.clips['id'][i]} · {r.clips['text'][i]}"
            parts.append(f'<figure><img src="data:image/png;base64,{image}" alt=""><figcaption>{html.escape(text)}</figcaption></figure>')  # fmt: skip
    return "\n".join(parts) if count else ""


def _sheet(r: Report, real: Sequence[Tensor] | None, made: Sequence[Tensor], row: int) -> str:
    from vadis.viewer.sheet import contact_sheet

    rep = representation(r.protocol["representation"])
    motions, titles = [rep.decode(made[row])], ["made"]
    if real is not None:
        motions, titles = [*motions, rep.decode(real[row])], ["made", "real"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        try:
            contact_sheet(motions, path, titles, poses=7, width=900)
        except VadisError as error:  # a motion that can't be drawn must not cost the report
            return base64.b64encode(b"").decode() + f'" title="{html.escape(str(error)[:200])}'
        return base64.b64encode(path.read_bytes()).decode()
