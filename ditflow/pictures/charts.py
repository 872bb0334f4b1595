"""Loss curves, and a table of time and memory, as HTML."""

from __future__ import annotations

import math
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 720, 260, 64, 34, 12  # pixels: the chart and its margins
SERIES = 5  # colours in page.css


def loss_chart(
    losses: dict[str, list[list[float | None]]],  # run: [guided steps][optimisation steps]
) -> str:
    """An SVG chart with one line per run, over all its optimisation steps."""
    lines = {name: [value for step in steps for value in step] for name, steps in losses.items()}
    # a step skipped because of an overflow has no loss
    known = [value for line in lines.values() for value in line if _is_known(value)]
    if not known:
        return "<p>Nothing was optimised.</p>"
    longest, top = max(len(line) for line in lines.values()), max(known)
    drawn, keys = [], []
    for index, (name, line) in enumerate(lines.items()):
        if line:
            points = " ".join(
                f"{_x(step, longest):.1f},{_y(value, top):.1f}"
                for step, value in enumerate(line)
                if _is_known(value)
            )
            drawn.append(f'<polyline class="series-{index % SERIES}" points="{points}"/>')
            keys.append(f'<span class="key series-{index % SERIES}">{escape(name)}</span>')
    return (
        f"<p>{''.join(keys)}</p>"
        "<p>Loss before each optimisation step. Different kinds of loss have different units.</p>"
        f'<div class="scroll"><svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Loss by optimisation step">'
        f'<path class="axis" fill="none" d="M{LEFT} {EDGE}V{HEIGHT - BOTTOM}H{WIDTH - EDGE}"/>'
        f'<text x="{LEFT - 6}" y="{EDGE + 8}" text-anchor="end">{top:.3g}</text>'
        f'<text x="{LEFT - 6}" y="{HEIGHT - BOTTOM}" text-anchor="end">0</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 12}">1</text>'
        f'<text x="{WIDTH - EDGE}" y="{HEIGHT - 12}" text-anchor="end">optimisation step {longest}</text>'
        f"{''.join(drawn)}</svg></div>"
    )


def phase_table(phases: dict[str, dict[str, dict[str, float | None]]]) -> str:
    """A table with one row per phase: seconds and peak gigabytes of each run."""
    names = list(dict.fromkeys(phase for found in phases.values() for phase in found))
    head = "".join(f'<th scope="col">{escape(run)}: s</th><th scope="col">peak GB</th>' for run in phases)
    rows = []
    for name in names:
        cells = "".join(_cells(found.get(name)) for found in phases.values())
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">phase</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cells(phase: dict[str, float | None] | None) -> str:
    if phase is None:
        return "<td>-</td><td>-</td>"
    seconds, peak = phase["seconds"], phase["peak_bytes"]
    cells = "-" if seconds is None else f"{seconds:.1f}", "-" if peak is None else f"{peak / 1e9:.2f}"
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _x(step: int, count: int) -> float:
    return LEFT + step / max(1, count - 1) * (WIDTH - EDGE - LEFT)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / (top or 1) * (HEIGHT - BOTTOM - EDGE)
