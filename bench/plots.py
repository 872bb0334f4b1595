"""Plots as SVG, no more than docs/performance.md needs: stacked bars, stairs, a roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222")
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 90, 170, 30, 40  # pixels of a picture, and its margins
INNER = WIDTH - LEFT - RIGHT


def stacked_bars(title: str, unit: str, bars: Mapping[str, Mapping[str, float]]) -> str:
    """A bar for each name, cut into its parts."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    longest = max(sum(bar.values()) for bar in bars.values())
    drawn, line = [], 26
    for row, (name, bar) in enumerate(bars.items()):
        x, y = float(LEFT), TOP + row * line
        drawn.append(_text(LEFT - 8, y + 15, name, "end"))
        for part, value in bar.items():
            width = value / longest * INNER
            drawn.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{line - 6}" '
                f'fill="{_colour(parts.index(part))}"/>'
            )
            x += width
        drawn.append(_text(x + 6, y + 15, f"{sum(bar.values()):.3g} {unit}"))
    height = TOP + len(bars) * line + BOTTOM + 16
    return _picture(title, height, [*drawn, *_keys(parts, height - 34)])


def stairs(title: str, unit: str, lines: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each name that stays level through a stage; all have the same stages, drawn equally wide."""
    stages = list(next(iter(lines.values())))
    height, top = 380, max(max(line.values()) for line in lines.values())
    bottom, step = height - BOTTOM - 30, INNER / len(stages)

    def y(value: float) -> float:
        return bottom - value / top * (bottom - TOP)

    drawn = [
        _axes(bottom),
        _text(LEFT - 8, TOP + 6, f"{top:.3g} {unit}", "end"),
        _text(LEFT - 8, bottom, "0", "end"),
    ]
    drawn += [
        _text(LEFT + (index + 0.5) * step, bottom + 18, stage, "middle") for index, stage in enumerate(stages)
    ]
    for index, line in enumerate(lines.values()):
        points = "".join(
            f" {LEFT + place * step:.1f},{y(value):.1f} {LEFT + (place + 1) * step:.1f},{y(value):.1f}"
            for place, value in enumerate(line.values())
        )
        drawn.append(
            f'<polyline fill="none" stroke-width="2" stroke="{_colour(index)}" points="{points[1:]}"/>'
        )
    return _picture(title, height, [*drawn, *_keys(list(lines), height - 16)])


def roofline(
    title: str,
    flops: float,  # a second, at best
    bytes_: float,  # a second, at best
    points: Mapping[str, tuple[float, float]],  # FLOPs and bytes of each
) -> str:
    """What can be reached at each intensity, and where something lies under that roof."""
    height, bottom = 340, 340 - BOTTOM - 30
    where = {name: work / moved for name, (work, moved) in points.items()}
    ridge = flops / bytes_
    low, high = min([ridge, *where.values()]) / 4, max([ridge, *where.values()]) * 4
    floor = min(flops, low * bytes_)

    def x(intensity: float) -> float:
        return LEFT + math.log(intensity / low) / math.log(high / low) * INNER

    def y(rate: float) -> float:
        return bottom - math.log(rate / floor) / math.log(2 * flops / floor) * (bottom - TOP)

    roof = f"{LEFT},{bottom} {x(ridge):.1f},{y(flops):.1f} {LEFT + INNER},{y(flops):.1f}"
    drawn = [
        _axes(bottom),
        f'<polyline fill="none" stroke="#222222" stroke-width="2" points="{roof}"/>',
        _text(LEFT - 8, y(flops) + 4, f"{flops / 1e12:.3g} TFLOP/s", "end"),
        _text(x(ridge), bottom + 18, f"{ridge:.3g}", "middle"),
        _text(LEFT + INNER, bottom + 18, "FLOP a byte", "end"),
    ]
    for index, (name, intensity) in enumerate(where.items()):
        reached = min(flops, intensity * bytes_)
        drawn.append(
            f'<circle cx="{x(intensity):.1f}" cy="{y(reached):.1f}" r="5" fill="{_colour(index)}">'
            f"<title>{escape(name)}</title></circle>"
        )
    return _picture(title, height, [*drawn, *_keys(list(where), height - 16)])


def _picture(title: str, height: int, drawn: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            _text(LEFT, 18, title),
            *drawn,
            "</svg>\n",
        ]
    )


def _axes(bottom: float) -> str:
    return f'<path fill="none" stroke="#888888" d="M{LEFT} {TOP}V{bottom}H{LEFT + INNER}"/>'


def _keys(names: Sequence[str], y: float) -> list[str]:
    """The names beside their colours, in a row."""
    step = (WIDTH - 40) / max(1, len(names))
    return [
        part
        for index, name in enumerate(names)
        for part in (
            f'<rect x="{20 + index * step:.1f}" y="{y - 9:.1f}" width="10" height="10" '
            f'fill="{_colour(index)}"/>',
            _text(34 + index * step, y, name),
        )
    ]


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
