"""One HTML page with the pictures of one or several runs, which holds all that it shows."""

import base64
import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from common.files import write_atomically
from common.paths import check_can_write_file
from training.monitoring.columns import DECISION, GUARD, REASON, STEP
from training.report.history import (
    History,
    NoRunError,
    Position,
    by_hours,
    by_step,
    by_tokens,
    final_figures,
    tell_apart,
)
from training.report.look import SCRIPT_FREE_POLICY, STYLE
from training.report.pictures import CHARTS, LAYER_CHARTS, Chart, color, draw, draw_loads, lacking, style

MARK = '<meta name="generator" content="st-moe training.report">'
AXES: dict[str, tuple[str, Callable[[History], Position]]] = {
    "step": ("step", by_step),
    "tokens": ("million tokens", by_tokens),
    "time": ("hours", by_hours),
}
MOST_DECISIONS = 50


def check_target(file: Path) -> None:
    """Check that a page may be written there. Raises NoRunError: it cannot, or a file is there that is no such page."""
    try:
        check_can_write_file(file, "--html")
    except ValueError as error:
        raise NoRunError(str(error)) from None
    if file.exists() and MARK not in file.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise NoRunError(f"--html {file} exists and is no report: name another file")


def write_page(histories: Sequence[History], file: Path) -> None:
    """Write the page. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, to_html(histories))


def to_html(histories: Sequence[History]) -> str:
    """Return the page: all text of the runs is escaped, nothing is loaded, no script runs."""
    with style():
        return _to_html(histories)


def _to_html(histories: Sequence[History]) -> str:
    tell_apart(histories)
    names = ", ".join(history.label for history in histories)
    parts = [
        f"<h1>{escape(names)}</h1>",
        _legend(histories),
        "<h2>Figures</h2>",
        _figures(histories),
        "<h2>Course</h2>",
        _course(histories),
        "<h2>Load of experts</h2>",
        _loads(histories),
        _decisions(histories),
        "<h2>Configuration</h2>",
        _differences(histories),
        *(_configuration(history) for history in histories),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{MARK}{SCRIPT_FREE_POLICY}'
        f"<title>{escape(names)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _legend(histories: Sequence[History]) -> str:
    items = []
    for index, history in enumerate(histories):
        state = (
            "" if not history.is_unfinished else f" - unfinished, step {history.last_step:,} of {history.planned_steps}"
        )
        items.append(
            f'<li><span class="swatch" style="background:{color(index)}"></span><b>{escape(history.label)}</b> '
            f"{escape(str(history.path))}{escape(state)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _figures(histories: Sequence[History]) -> str:
    found = [final_figures(history) for history in histories]
    rows = [
        [name, *(_number(figures.get(name, math.nan)) for figures in found)]
        for name in dict.fromkeys(name for figures in found for name in figures)
        if any(math.isfinite(figures.get(name, math.nan)) for figures in found)
    ]
    commits = [str(history.summary.get("git_commit") or "")[:12] for history in histories]
    if any(commits):
        rows.append(["commit", *(commit or "-" for commit in commits)])
    return _table(["", *(history.label for history in histories)], rows)


def _course(histories: Sequence[History]) -> str:
    if not any(history.rows for history in histories):
        return '<p class="note">No rows of metrics yet.</p>'
    radios = "".join(
        f'<input type="radio" name="x" id="x-{name}"{" checked" if name == "step" else ""}>'
        f'<label for="x-{name}">{"over " + name}</label>'
        for name in AXES
    )
    grids = []
    for name, (label, place) in AXES.items():
        positions = [place(history) for history in histories]
        pictures = [(chart, draw(chart, histories, positions, label)) for chart in (*CHARTS, *LAYER_CHARTS)]
        figures = "".join(_picture(chart, svg, histories) for chart, svg in pictures if svg is not None)
        grids.append(f'<div class="grid x-{name}">{figures or _note(f"Nothing is known over {name}.")}</div>')
    absent = [chart.title for chart in (*CHARTS, *LAYER_CHARTS) if len(lacking(chart, histories)) == len(histories)]
    return (
        f'<p class="note">Training is a thin line, evaluations are points on a thick one. Triangles are checkpoints, '
        f'dotted lines decisions of the guard. "Over time" counts hours of training steps alone.</p>'
        f'<div class="tabs">{radios}{"".join(grids)}</div>'
        + (_note(f"In no rows of these runs: {'; '.join(absent)}.") if absent else "")
    )


def _picture(chart: Chart, svg: str, histories: Sequence[History]) -> str:
    without = [history.label for history in lacking(chart, histories)]
    note = _note(f"Not in the rows of {', '.join(without)}.") if without else ""
    return f"<figure>{_image(svg, chart.title)}{note}</figure>"


def _loads(histories: Sequence[History]) -> str:
    parts = []
    for history in histories:
        svg = draw_loads(history)
        title = f"Load of experts over its mean, {history.label}"
        shown = _image(svg, title) if svg else _note("No rows of routing: a dense model, an older run, or none yet.")
        parts.append(f"<figure><figcaption>{escape(history.label)}</figcaption>{shown}</figure>")
    return (
        '<p class="note">Newest row of routing: first choices of each expert over their mean, before capacity; 1 is '
        f'uniform. Layers are named by stack and block.</p><div class="grid">{"".join(parts)}</div>'
    )


def _decisions(histories: Sequence[History]) -> str:
    rows = [
        [history.label, f"{row[STEP]:,}", str(row.get(DECISION, "")), str(row.get(REASON, ""))]
        for history in histories
        for row in history.of(GUARD)
    ]
    if not rows:
        return ""
    more = _note(f"{len(rows) - MOST_DECISIONS:,} more are in metrics.jsonl.") if len(rows) > MOST_DECISIONS else ""
    table = _table(["run", "step", "decision", "reason"], rows[:MOST_DECISIONS])
    return f"<h2>Decisions of the guard</h2>{table}{more}"


def _differences(histories: Sequence[History]) -> str:
    if len(histories) == 1:
        return ""
    flat = [dict(_flat(history.config)) for history in histories]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [[key, *(one.get(key, "-") for one in flat)] for key in keys if len({one.get(key) for one in flat}) > 1]
    if not rows:
        return _note("The configurations are the same.")
    return _table(["keys that differ", *(history.label for history in histories)], rows)


def _configuration(history: History) -> str:
    rows = [[key, value] for key, value in _flat(history.config)]
    body = _table(["key", "value"], rows) if rows else _note("config.yaml is missing or cannot be read.")
    return f"<details><summary>all keys of {escape(history.label)}</summary>{body}</details>"


def _flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(values, dict):
        return [(prefix, str(values))]
    return [pair for key, value in values.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{header}</tr>{body}</table></div>'


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1e4 else f"{value:,.4g}"


def _image(svg: str, title: str) -> str:
    """An image, in which no script runs and whose names cannot clash with those of others."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
