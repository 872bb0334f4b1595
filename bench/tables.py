"""Every table that the benchmarks print or write, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from ditflow.memory.presets import GIB, presets
from ditflow.planning.ceilings import Ceilings
from ditflow.planning.plan import Phase

TERA, PETA = 1e12, 1e15
RATES = (10, 50, 200)  # TFLOP/s that a card may sustain
CHECKPOINT = {"none": "nothing", "attention": "all but attention", "block": "each block"}
PREPARED_BLOCKS = 21  # blocks that a guided forward of 5B goes through, the guidance block included
HEADLINES = ((24, "4gb"), (49, "4gb"), (49, "16gb"))  # frames and presets of CogVideoX-5B in README
COMPARED = ("latents", "cosine", "displacement", "distance")  # numbers that compare with exact already
STEP_SIZE, STEP_VARIANT = "5B, 24 frames", {"model": "5b", "frames": 24}  # one size: of passes, of steps

Row = Mapping[str, Any]


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return "\n".join(line(cells) for cells in (columns, ["---"] * len(columns), *rows))


def line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def gib(count: int) -> str:
    """Bytes in GiB. All figures of memory are rounded here, once, from the bytes planned or measured."""
    return f"{count / GIB:.1f}"


def peak_cell(run: Row) -> str:
    """The planned peak of a run on its card."""
    return gib(run["peak_bytes"]) if run["fits"] else f"does not fit ({gib(run['peak_bytes'])})"


def preset_table(plan: Row) -> str:
    """The presets of docs/performance.md: a row for each, from what `bench.presets` has planned."""
    lengths = dict.fromkeys(run["frames"] for run in plan["runs"])
    columns = ["preset", "cards", "computed again"]
    for frames in lengths:
        columns += [f"{frames} frames: card, host", "blocks on the card"]
    rows = []
    named = {run["preset"] for run in plan["runs"]}
    for preset in (preset for preset in presets() if preset.name in named):
        cells = [preset.name, preset.cards, CHECKPOINT[preset.checkpoint]]
        for run in (run for run in plan["runs"] if run["preset"] == preset.name):
            cells += _place_cells(run)
        rows.append(cells)
    return markdown(columns, rows)


def _place_cells(run: Row) -> list[str]:
    """Where a planned run is: its peak on the card and the host, and the blocks that stay on the card."""
    if not run["fits"]:
        return [peak_cell(run), "-"]
    blocks = f"{run['resident']} of {run['resident'] + run['streamed']}"
    return [f"{peak_cell(run)}, {gib(run['host_bytes'])}", blocks]


def headline_table(cogvideox: Row, wan: Row) -> str:
    """README's table: some runs of CogVideoX-5B and all of Wan, from what `bench.presets` has planned."""
    shown = [run for run in cogvideox["runs"] if (run["frames"], run["preset"]) in HEADLINES]
    rows = []
    for run in [*(run | {"model": "5b", "weights": "full"} for run in shown), *wan["runs"]]:
        weights = {"full": "", "int8": ", `--weights int8`"}.get(run["weights"], f", GGUF {run['weights']}")
        rows.append([f"`{run['model']}`{weights}", run["frames"], run["preset"], *_place_cells(run)])
    return markdown(["model", "frames", "preset", "card, host", "blocks on the card"], rows)


def card_table(plan: Row) -> str:
    """The table of docs/models.md: the longest run of each model that fits each card, and its memory."""
    rows = []
    for model, runs in groupby(plan["runs"], key=itemgetter("model")):
        rows.append([f"`{model}`", *map(_longest_cell, runs)])
    cards = dict.fromkeys(run["card"] for run in plan["runs"])
    return markdown(["model", *(f"{card} GB" for card in cards)], rows)


def _longest_cell(run: Row) -> str:
    if not run["frames"]:
        return "-"
    return f"{run['frames']} ({gib(run['peak_bytes'])}, {gib(run['host_bytes'])})"


def speed_table(found: Row) -> str:
    """The table of docs/speed.md: a row for each speed, from what `bench.speeds` has planned.

    A column is its heading and the cell of each speed.
    """
    runs = {(run["speed"], run["frames"], run["device"]): run for run in found["runs"]}
    speeds, lengths, devices = (list(dict.fromkeys(each)) for each in zip(*runs, strict=True))
    columns = {"`--speed`": [f"`{speed}`" for speed in speeds]}
    for frames in lengths:
        of_least = [
            min((runs[speed, frames, device] for device in devices), key=itemgetter("flops"))
            for speed in speeds
        ]
        columns[f"PFLOP, {frames} frames"] = [_work_cell(run) for run in of_least]
    for device in devices:
        rows = [[runs[speed, frames, device] for frames in lengths] for speed in speeds]
        (kind,) = {run["rates"] for row in rows for run in row}
        columns[f"{device}, {kind} minutes"] = [", ".join(map(_minutes, row)) for row in rows]
    for model in found["motion"]["exact"]:
        measured = {
            speed: spread(found["motion"][speed][model], "" if speed == "exact" else "+") for speed in speeds
        }
        columns[f"path fidelity, `{model}`"] = list(measured.values())
    return markdown(list(columns), zip(*columns.values(), strict=True))


def _minutes(run: Row) -> str:
    minutes = run["seconds"] / 60
    return f"{minutes:.{0 if minutes >= 10 else 1 if minutes >= 1 else 2}f}"


def _work_cell(run: Row) -> str:
    return ("at most " if run["at_most"] else "") + f"{run['flops'] / PETA:.1f}"


def work_table(plan: Row, frames: int) -> str:
    """Planned work and copies of a default run, and its least time at several rates."""
    columns = ["preset", "peak GiB", "largest phase", "PFLOP", "GiB copied a run"]
    columns += [f"at least, at {rate} TFLOP/s" for rate in RATES]
    rows = []
    for run in (run for run in plan["runs"] if run["frames"] == frames):
        largest = max(run["phases"], key=lambda phase: phase["peak_bytes"])["name"]
        work, copied = (
            sum(phase["times"] * phase[what] for phase in run["phases"]) for what in ("flops", "copied_bytes")
        )
        numbers = [f"{work / PETA:.1f}", f"{copied / GIB:.0f}"]
        numbers += [duration(work / (rate * TERA)) for rate in RATES]
        rows.append(
            [run["preset"], peak_cell(run), largest, *(numbers if run["fits"] else ["-"] * len(numbers))]
        )
    return markdown(columns, rows)


def ceilings_table(devices: Iterable[Ceilings], runs: Mapping[str, Sequence[Phase]], column: str) -> str:
    """The best rates of each device, and the least time that any of the presets' runs takes there."""
    rows, cards = [], {preset.name: preset.gigabytes for preset in presets()}
    for each in devices:
        flops = each.product_flops, each.int8_flops, each.attention_flops
        rates = [*(_rate(flop, TERA) for flop in flops), _rate(each.moved_bytes), _rate(each.copied_bytes)]
        fitting = [run for name, run in runs.items() if cards[name] <= (each.gigabytes or cards[name])]
        least = min((sum(p.times * each.seconds(p) for p in run) for run in fitting), default=None)
        cells = [f"{each.device} ({each.dtype})", each.measured or "**estimated**", *rates]
        rows.append([*cells, "-" if least is None else duration(least)])
    columns = ["device", "measured", "products TFLOP/s", "in 8 bits", "attention", "memory GB/s"]
    return markdown([*columns, "from the host GB/s", column], rows)


def _rate(value: float | None, unit: float = 1e9) -> str:
    if value is None:
        return "unknown"
    return f"{value / unit:,.0f}" if value >= 100 * unit else f"{value / unit:.3g}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def pass_tables(rows: Sequence[Row]) -> str:
    """A table for each pass and size, the fastest side first. Rows without numbers come last and say why."""
    passes = list(dict.fromkeys(row["of"] for row in rows))
    sizes = list(dict.fromkeys((row["of"], row["size"]) for row in rows))
    sizes.sort(key=lambda key: passes.index(key[0]))
    tables = []
    for of, size in sizes:
        some = [row for row in rows if (row["of"], row["size"]) == (of, size)]
        some.sort(key=lambda row: row["milliseconds"] or float("inf"))
        columns = [f"{of}: {size}", "ms", "of the device's best", "MB beyond inputs and results"]
        tables.append(markdown(columns, map(_pass_cells, some)))
    return "\n\n".join(tables)


def _pass_cells(row: Row) -> list[str]:
    if row["milliseconds"] is None:
        return [row["rival"], row["reason"], "-", "-"]
    best = f"{100 * row['least_milliseconds'] / row['milliseconds']:.0f} %"
    return [row["rival"], f"{row['milliseconds']:.3f}", best, f"{row['peak_bytes'] / 1e6:.1f}"]


def step_tables(steps: Sequence[Row], passes: Sequence[Row]) -> str:
    """A table for each model and length. `kernels`: the share of an update that the passes take."""

    def size(step: Row) -> tuple[str, int]:
        return step["variant"]["model"], step["variant"]["frames"]

    columns = ["step", "ms", "GiB allocated", "planned", "reserved", "J", "preset, blocks", "kernels"]
    tables = [
        markdown([f"{model}, {frames} frames", *columns], [_step_cells(row, passes) for row in group])
        for (model, frames), group in groupby(sorted(steps, key=size), key=size)
    ]
    return "\n\n".join(tables)


def _step_cells(row: Row, passes: Sequence[Row]) -> list[str]:
    variant = row["variant"]
    first = [variant_name(variant), row["step"]]
    if row["milliseconds"] is None:
        return [*first, row["reason"], *["-"] * 6]
    part, share = kernels_milliseconds(passes, variant["kernels"]), "-"
    if row["step"] == "update" and part is not None and STEP_VARIANT.items() <= variant.items():
        share = f"{100 * part / row['milliseconds']:.1f} %"
    memory = [gib(row[f"{what}_bytes"]) for what in ("allocated", "planned", "reserved")]
    joules = "-" if row["joules"] is None else f"{row['joules']:.0f}"
    place = f"{row['preset']}, {row['resident']}"
    return [*first, f"{row['milliseconds']:.1f}", *memory, joules, place, share]


def variant_name(variant: Row) -> str:
    """What a variant changes."""
    changes = [
        f"--speed {variant['speed']}" if variant["speed"] != "exact" else "",
        variant["preset"] if variant["preset"] != "auto" else "",
        variant["attention"] if variant["attention"] != "sdpa" else "",
        "compiled" if variant["compiled"] else "",
        f"{variant['kernels']} kernels" if variant["kernels"] != "triton" else "",
    ]
    return ", ".join(filter(None, changes)) or "plain"


def kernels_milliseconds(passes: Sequence[Row], backend: str) -> float | None:
    """One loss, and preparation forward and backward in every block up to it, from their own measurements."""
    times = {
        row["of"]: row["milliseconds"]
        for row in passes
        if row["size"] == STEP_SIZE and row["rival"] == backend and row["milliseconds"] is not None
    }
    if not times.keys() >= {"loss and gradients", "preparation forward", "preparation backward"}:
        return None
    preparation = times["preparation forward"] + times["preparation backward"]
    return times["loss and gradients"] + PREPARED_BLOCKS * preparation


def ratio_table(contests: Sequence[Row], bounds: Mapping) -> str:
    """A line for each rival of a contest. `ratio`: its time as a multiple of ours."""
    rows = []
    for found in contests:
        for rival, ratio in found["ratios"].items():
            bound = bounds.get((found["name"], rival))
            between = f"{bound.least:.3g} to {bound.most:.3g}" if bound and bound.least else "none"
            rows.append([found["name"], f"{1e3 * found['seconds']:.1f}", rival, f"{ratio:.2f}", between])
    return markdown(["contest", "ours ms", "rival", "ratio", "bounds"], rows)


def full_table(found: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """Seconds, CPU seconds and MiB of each side, and how many times less they are than the first side's."""
    rows = []
    for name, sides in found.items():
        first = next(iter(sides.values()))
        for side, numbers in sides.items():
            pairs = zip(numbers, first, strict=True)
            rows.append([name, side, *(f"{value:.4g} ({other / value:.2f})" for value, other in pairs)])
    return markdown(["", "side", "seconds", "CPU seconds", "peak MiB"], rows)


def tunnel_tables(tables: Sequence[Row]) -> str:
    """A table for each stage of the wind tunnel: exact itself, then what each mode changes."""
    return "\n\n".join(map(_tunnel_table, tables))


def _tunnel_table(found: Row) -> str:
    names = list(found["modes"][0]["numbers"])
    judged = "verdict" in found["modes"][-1]
    title = ": ".join(filter(None, (found["stage"], found["variant"])))
    columns = [
        f"{title} ({found['count']} pair{'s' * (found['count'] > 1)})",
        *(name.replace("_", " ") for name in names),
    ]
    rows = []
    for row in found["modes"]:
        # of exact the numbers themselves, of other modes differences from it; comparisons have no sign
        signs = {name: "" if row["mode"] == "exact" or name in COMPARED else "+" for name in names}
        cells = [spread(row["numbers"][name], signs[name]) for name in names]
        ends = [f"{row['worst']:+.3f}", row["verdict"]] if "verdict" in row else ["-", "-"]
        rows.append([row["mode"], *cells, *(ends if judged else [])])
    return markdown(columns + (["fidelity, worst pair", "verdict"] if judged else []), rows)


def spread(found: Row, sign: str = "") -> str:
    """A mean and the half-width of its interval, if it has one."""
    mean, half_width = f"{found['mean']:{sign}.3f}", found["half_width"]
    return mean if half_width is None else f"{mean} ± {half_width:.3f}"
