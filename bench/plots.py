"""The plots of docs/performance.md as SVG: stacked bars, stairs, a roofline."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222")
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 90, 170, 30, 40  # pixels of a picture, and its margins
INNER = WIDTH - LEFT - RIGHT
BAR = 26  # pixels from one bar to the next


def stacked_bars(title: str, unit: str, bars: Mapping[str, Mapping[str, float]]) -> str:
    """A bar for each name, divided into its parts."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    longest = max(sum(bar.values()) for bar in bars.values())
    drawn = []
    for row, (name, bar) in enumerate(bars.items()):
        x, y = float(LEFT), TOP + row * BAR
        drawn.append(_text(LEFT - 8, y + 15, name, "end"))
        for part, value in bar.items():
            width = value / longest * INNER
            drawn.append(_box(x, y, width, BAR - 6, parts.index(part)))
            x += width
        drawn.append(_text(x + 6, y + 15, f"{sum(bar.values()):.3g} {unit}"))
    height = TOP + len(bars) * BAR + BOTTOM + 16
    return _picture(title, height, [*drawn, *_keys(parts, height - 34)])


def stairs(title: str, words: Callable[[float], str], lines: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each name, level through each stage. All have the same stages, drawn equally wide."""
    stages = list(next(iter(lines.values())))
    height, top = 380, max(max(line.values()) for line in lines.values())
    bottom, step = height - BOTTOM - 30, INNER / len(stages)

    def y(value: float) -> float:
        return bottom - value / top * (bottom - TOP)

    drawn = [_axes(bottom), _text(LEFT - 8, TOP + 6, words(top), "end"), _text(LEFT - 8, bottom, "0", "end")]
    for index, stage in enumerate(stages):
        drawn.append(_text(LEFT + (index + 0.5) * step, bottom + 18, stage, "middle"))
    for index, line in enumerate(lines.values()):
        ends = (
            (LEFT + (place + end) * step, y(value))
            for place, value in enumerate(line.values())
            for end in (0, 1)
        )
        drawn.append(_line(ends, COLOURS[index % len(COLOURS)]))
    return _picture(title, height, [*drawn, *_keys(list(lines), height - 16)])


def roofline(
    title: str,
    flops: float,  # the best rate, a second
    bytes_: float,  # the best rate, a second
    points: Mapping[str, tuple[float, float]],  # FLOPs and bytes of each
) -> str:
    """The rate that can be reached at each intensity, and where each point lies under that roof."""
    height, bottom = 340, 340 - BOTTOM - 30
    where = {name: work / moved for name, (work, moved) in points.items()}
    ridge = flops / bytes_
    low, high = min([ridge, *where.values()]) / 4, max([ridge, *where.values()]) * 4
    floor = min(flops, low * bytes_)

    def x(intensity: float) -> float:
        return LEFT + math.log(intensity / low) / math.log(high / low) * INNER

    def y(rate: float) -> float:
        return bottom - math.log(rate / floor) / math.log(2 * flops / floor) * (bottom - TOP)

    drawn = [
        _axes(bottom),
        _line([(LEFT, bottom), (x(ridge), y(flops)), (LEFT + INNER, y(flops))], "#222222"),
        _text(LEFT - 8, y(flops) + 4, f"{flops / 1e12:.3g} TFLOP/s", "end"),
        _text(x(ridge), bottom + 18, f"{ridge:.3g}", "middle"),
        _text(LEFT + INNER, bottom + 18, "FLOP a byte", "end"),
    ]
    for index, (name, intensity) in enumerate(where.items()):
        drawn.append(
            f'<circle cx="{x(intensity):.1f}" cy="{y(min(flops, intensity * bytes_)):.1f}" r="5" '
            f'fill="{COLOURS[index % len(COLOURS)]}"><title>{escape(name)}</title></circle>'
        )
    return _picture(title, height, [*drawn, *_keys(list(where), height - 16)])


def _picture(title: str, height: int, drawn: Sequence[str]) -> str:
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
    )
    background = f'font-size="12"><rect width="{WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([start + background, _text(LEFT, 18, title), *drawn, "</svg>\n"])


def _axes(bottom: float) -> str:
    return f'<path fill="none" stroke="#888888" d="M{LEFT} {TOP}V{bottom}H{LEFT + INNER}"/>'


def _keys(names: Sequence[str], y: float) -> list[str]:
    """The names beside their colours, in a row."""
    step = (WIDTH - 40) / max(1, len(names))
    starts = [20 + index * step for index in range(len(names))]
    boxes = [_box(x, y - 9, 10, 10, index) for index, x in enumerate(starts)]
    return boxes + [_text(x + 14, y, name) for x, name in zip(starts, names, strict=True)]


def _box(x: float, y: float, width: float, height: float, colour: int) -> str:
    fill = COLOURS[colour % len(COLOURS)]
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{fill}"/>'


def _line(points, colour: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline fill="none" stroke-width="2" stroke="{colour}" points="{places}"/>'


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
