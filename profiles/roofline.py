"""Draw a roofline of kernels: `python -m profiles.roofline ncu.csv OUTPUT.svg [--device NAME]`.

`profiles/ncu.sh` writes ncu.csv: Nsight Compute's raw page, one row per launch. The launches of a kernel are
added up. The horizontal axis is floating-point operations per byte of device memory, the vertical one is
operations per second. The sloped roof is Nsight Compute's peak memory bandwidth. `--device` adds flat roofs,
the rates in `configs/devices/NAME.yaml`, measured or estimated.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ditflow.errors import DitflowError

SECONDS, KERNEL = "gpu__time_duration.sum", "Kernel Name"
BYTES = ("dram__bytes_read.sum", "dram__bytes_write.sum")
INSTRUCTION = "smsp__sass_thread_inst_executed_op_{}_pred_on.sum"
# operations per instruction; half precision works on pairs, as in Nsight Compute's own rooflines
OF_INSTRUCTIONS = {"fadd": 1, "fmul": 1, "ffma": 2, "hadd": 2, "hmul": 2, "hfma": 4}
OPERATIONS = {INSTRUCTION.format(name): times for name, times in OF_INSTRUCTIONS.items()}
TENSOR = ("sm__ops_path_tensor_src_bf16_dst_fp32.sum", "sm__ops_path_tensor_src_fp16_dst_fp32.sum")
OPERATIONS |= dict.fromkeys(TENSOR, 1)
BYTES_A_CYCLE, CYCLES_A_SECOND = "dram__bytes.sum.peak_sustained", "dram__cycles_elapsed.avg.per_second"
# versions of ncu differ in the names of base units
UNITS = {SECONDS: ("ns", "nsecond"), **dict.fromkeys(BYTES, ("byte",))}

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 860, 480, 76, 24, 52  # pixels; the right third is the legend
PLOT = 560  # right edge of the plot
COLOURS = ("#1f6feb", "#d1495b", "#2e8540", "#8250df", "#b35900", "#0f766e", "#a21caf", "#57606a")


@dataclass(frozen=True)
class Point:
    """All launches of one kernel."""

    kernel: str
    launches: int
    operations: float
    bytes: float
    seconds: float

    @property
    def intensity(self) -> float:
        return self.operations / self.bytes

    @property
    def rate(self) -> float:
        return self.operations / self.seconds


@dataclass(frozen=True)
class Roofs:
    """Upper bounds: bytes per second of device memory, if known, and operations per second by name."""

    bandwidth: float | None
    flat: dict[str, float]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("csv", type=Path, metavar="FILE.csv", help="the CSV that profiles/ncu.sh wrote")
    parser.add_argument("output", type=Path, metavar="OUTPUT.svg", help="the picture to write")
    parser.add_argument("--device", metavar="NAME", help="a device in configs/devices")
    options = parser.parse_args(words)
    try:
        rows = read_rows(options.csv)
        flat = device_rates(options.device) if options.device else {}
        drawn = draw(points_of(rows), Roofs(bandwidth(rows), flat))
        if options.output.exists():
            raise DitflowError(f"{options.output} exists: give another name")
    except DitflowError as error:
        print(f"roofline: {error}", file=sys.stderr)
        return 1
    if not any(_number(row, name) for row in rows for name in TENSOR):
        print("roofline: no tensor-core operations were counted; rates leave them out", file=sys.stderr)
    options.output.write_text(drawn, encoding="utf-8")
    print(options.output)
    return 0


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the launches, by column. The file's first row has the metrics' names, the second their units.

    Raises DitflowError if columns or launches are missing or units are unexpected.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DitflowError(f"{path} cannot be read ({error}): give the CSV of profiles/ncu.sh") from None
    table = list(csv.DictReader(line for line in lines if line.startswith('"')))  # not ncu's messages
    needed = (KERNEL, *UNITS)
    if len(table) < 2 or not set(needed) <= set(table[0]):
        raise DitflowError(f"{path} lacks launches or some of {', '.join(needed)}: use profiles/ncu.sh")
    for name, accepted in UNITS.items():
        if table[0][name] not in accepted:
            raise DitflowError(
                f"{path}: {name} is in {table[0][name]!r}, accepted: {accepted[0]!r}; "
                "export it with --print-units base, as profiles/ncu.sh does"
            )
    return table[1:]


def points_of(rows: list[dict[str, str]]) -> list[Point]:
    """One point per kernel. Raises DitflowError if there is none."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row[KERNEL], []).append(row)
    points = []
    for kernel, launches in found.items():
        operations = sum(times * _number(row, name) for row in launches for name, times in OPERATIONS.items())
        moved = sum(_number(row, name) for row in launches for name in BYTES)
        seconds = sum(_number(row, SECONDS) for row in launches) * 1e-9
        if operations and moved and seconds:  # a kernel without arithmetic or memory traffic has no place
            points.append(Point(kernel, len(launches), operations, moved, seconds))
    if not points:
        raise DitflowError("no kernel has operations, bytes and time: record them with profiles/ncu.sh")
    return points


def bandwidth(rows: list[dict[str, str]]) -> float | None:
    """Peak bytes per second of device memory, if the file has it."""
    return _number(rows[0], BYTES_A_CYCLE) * _number(rows[0], CYCLES_A_SECOND) or None


def _number(row: dict[str, str], name: str) -> float:
    """A value, written with thousands separators; 0 if the device lacks the metric."""
    text = row.get(name) or "n/a"
    return 0.0 if text == "n/a" else float(text.replace(",", ""))


def device_rates(device: str) -> dict[str, float]:
    """A device's operations per second. Raises SettingsError if they are unknown."""
    from ditflow.planning.ceilings import read_ceilings

    found = read_ceilings(device)
    named = f"{device} ({found.kind})"
    return {f"products, {named}": found.product_flops, f"attention, {named}": found.attention_flops}


def draw(points: list[Point], roofs: Roofs) -> str:
    """The picture as SVG. Both axes are logarithmic, with a grid line per decade."""
    rates = [point.rate for point in points] + list(roofs.flat.values())
    axes = _Axes(_decades([point.intensity for point in points]), _decades(rates))
    drawn = [*axes.grid(), *_roof_lines(axes, roofs)]
    for index, point in enumerate(sorted(points, key=lambda point: -point.seconds)):
        x, y = axes.place(point.intensity, point.rate)
        colour, line = COLOURS[index % len(COLOURS)], TOP + 12 + 34 * index
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        drawn.append(f'<circle cx="{PLOT + 24}" cy="{line - 4}" r="5" fill="{colour}"/>')
        drawn.append(f'<text x="{PLOT + 36}" y="{line}">{escape(point.kernel[:38])}</text>')
        says = f"{point.launches} x, {point.seconds * 1e3:.3g} ms, {point.rate / 1e12:.3g} TFLOP/s"
        drawn.append(f'<text x="{PLOT + 36}" y="{line + 14}" fill="#57606a">{says}</text>')
    height = max(HEIGHT, TOP + 34 * len(points) + 12)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{height}" fill="white"/>{"".join(drawn)}</svg>\n'
    )


class _Axes:
    """Maps operations per byte and operations per second to pixels."""

    def __init__(self, across: tuple[int, int], upwards: tuple[int, int]):  # decades, first and last
        self.across, self.upwards = across, upwards

    def place(self, intensity: float, rate: float) -> tuple[float, float]:
        (left, right), (low, high) = self.across, self.upwards
        x = LEFT + (math.log10(intensity) - left) / (right - left) * (PLOT - LEFT)
        y = HEIGHT - BOTTOM - (math.log10(rate) - low) / (high - low) * (HEIGHT - BOTTOM - TOP)
        return x, y

    def grid(self) -> list[str]:
        (left, right), (low, high) = self.across, self.upwards
        drawn = []
        for decade in range(left, right + 1):
            x, y = self.place(10.0**decade, 10.0**low)
            drawn.append(f'<path d="M{x:.1f} {TOP}V{y:.1f}" stroke="#d8dee4"/>')
            drawn.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{10.0**decade:g}</text>')
        for decade in range(low, high + 1):
            x, y = self.place(10.0**left, 10.0**decade)
            drawn.append(f'<path d="M{x:.1f} {y:.1f}H{PLOT}" stroke="#d8dee4"/>')
            drawn.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">1e{decade}</text>')
        middle = (LEFT + PLOT) / 2
        drawn.append(
            f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">FLOP per byte of device memory</text>'
        )
        drawn.append(f'<text x="8" y="{TOP - 8}">FLOP/s</text>')
        return drawn


def _roof_lines(axes: _Axes, roofs: Roofs) -> list[str]:
    (left, right), (low, high) = axes.across, axes.upwards
    drawn = []
    for name, rate in roofs.flat.items():
        _, y = axes.place(1.0, rate)
        drawn.append(f'<path class="roof" d="M{LEFT} {y:.1f}H{PLOT}" stroke="#24292f"/>')
        drawn.append(f'<text x="{LEFT + 6}" y="{y - 4:.1f}">{escape(name)}</text>')
    if roofs.bandwidth:
        first = max(10.0**left, 10.0**low / roofs.bandwidth)
        last = min(10.0**right, 10.0**high / roofs.bandwidth)
        if first < last:
            (x1, y1), (x2, y2) = (axes.place(at, at * roofs.bandwidth) for at in (first, last))
            drawn.append(
                f'<path class="roof" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#24292f" '
                'stroke-dasharray="6 3"/>'
            )
            says = f"{roofs.bandwidth / 1e9:.0f} GB/s"
            drawn.append(f'<text x="{x1 + 6:.1f}" y="{y1 - 8:.1f}">{says}</text>')
    return drawn


def _decades(values: list[float]) -> tuple[int, int]:
    """The whole decades around positive values, at least one."""
    low = math.floor(math.log10(min(values)))
    return low, max(low + 1, math.ceil(math.log10(max(values))))


if __name__ == "__main__":
    sys.exit(main())
