"""Measured rows as tables to read."""

from itertools import groupby

from ditflow.memory.presets import GIB

PREPARED_BLOCKS = 21  # that a guided forward of 5B goes through, the guidance block included
STEP_SIZE, STEP_VARIANT = "5B, 24 frames", {"model": "5b", "frames": 24}  # the same, for passes and for steps


def pass_tables(rows: list[dict]) -> str:
    """A table for each pass and size, the fastest first; what has no numbers stands last, with the reason."""
    tables = []
    ordered = sorted(rows, key=_place(rows))
    for (of, size), group in groupby(ordered, key=lambda row: (row["of"], row["size"])):
        lines = [
            f"| {of}: {size} | ms | of the device's best | MB beyond inputs and results |",
            "| --- | --- | --- | --- |",
        ]
        lines += [_line(row) for row in sorted(group, key=lambda row: row["milliseconds"] or float("inf"))]
        tables.append("\n".join(lines))
    return "\n\n".join(["", *tables, ""])


def _place(rows: list[dict]):
    """Passes and sizes in the order of their first rows."""
    order = list(dict.fromkeys((row["of"], row["size"]) for row in rows))
    passes = list(dict.fromkeys(of for of, _ in order))
    return lambda row: (passes.index(row["of"]), order.index((row["of"], row["size"])))


def _line(row: dict) -> str:
    if row["milliseconds"] is None:
        return f"| {row['rival']} | {row['reason']} | - | - |"
    best = f"{100 * row['least_milliseconds'] / row['milliseconds']:.0f} %"
    return f"| {row['rival']} | {row['milliseconds']:.3f} | {best} | {row['peak_bytes'] / 1e6:.1f} |"


def step_tables(steps: list[dict], passes: list[dict]) -> str:
    """A table for each model and length: a line for each step of each variant, or why there is none.

    `kernels`: what part of an update the passes over motion flow and preparation are, measured apart.
    """
    tables = []
    for (model, frames), group in groupby(sorted(steps, key=_size), key=_size):
        columns = ["step", "ms", "GiB allocated", "planned", "reserved", "J", "preset, blocks", "kernels"]
        lines = [f"| {model}, {frames} frames | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
        lines += [_step_line(row, passes) for row in group]
        tables.append("\n".join(lines))
    return "\n\n".join(["", *tables, ""])


def _size(step: dict) -> tuple[str, int]:
    return step["variant"]["model"], step["variant"]["frames"]


def _step_line(row: dict, passes: list[dict]) -> str:
    name = variant_name(row["variant"])
    if row["milliseconds"] is None:
        return f"| {name} | {row['step']} | {row['reason']} | - | - | - | - | - | - |"
    part, share = kernels_milliseconds(passes, row["variant"]["kernels"]), "-"
    if row["step"] == "update" and part is not None and STEP_VARIANT.items() <= row["variant"].items():
        share = f"{100 * part / row['milliseconds']:.1f} %"
    gib = [f"{row[f'{what}_bytes'] / GIB:.1f}" for what in ("allocated", "planned", "reserved")]
    joules = "-" if row["joules"] is None else f"{row['joules']:.0f}"
    return (
        f"| {name} | {row['step']} | {row['milliseconds']:.1f} | {' | '.join(gib)} | {joules} "
        f"| {row['preset']}, {row['resident']} | {share} |"
    )


def variant_name(variant: dict) -> str:
    """What is special about a variant."""
    special = [
        variant["preset"] if variant["preset"] != "auto" else "",
        variant["attention"] if variant["attention"] != "sdpa" else "",
        "compiled" if variant["compiled"] else "",
        f"{variant['kernels']} kernels" if variant["kernels"] != "triton" else "",
    ]
    return ", ".join(filter(None, special)) or "plain"


def kernels_milliseconds(passes: list[dict], backend: str) -> float | None:
    """One loss, and preparation there and back in every block up to it, from their own measurements."""
    times = {
        row["of"]: row["milliseconds"]
        for row in passes
        if row["size"] == STEP_SIZE and row["rival"] == backend and row["milliseconds"] is not None
    }
    try:
        preparation = times["preparation forward"] + times["preparation backward"]
        return times["loss and gradients"] + PREPARED_BLOCKS * preparation
    except KeyError:
        return None


def whole_run_table(sides: dict[str, dict]) -> str:
    """A line for each side of a whole run; in brackets how many times less than the first side's it is."""
    columns = {  # title: what, in units of
        "optimisation s": ("optimisation_seconds", 1),
        "whole run s": ("whole_seconds", 1),
        "optimisation CPU s": ("optimisation_cpu_seconds", 1),
        "whole run CPU s": ("whole_cpu_seconds", 1),
        "peak MiB": ("peak_mib", 1),
        "optimisation TFLOP": ("optimisation_flops", 1e12),
        "whole run TFLOP": ("whole_flops", 1e12),
    }
    lines = [f"| side | {' | '.join(columns)} | difference |", "| --- " * (len(columns) + 2) + "|"]
    first = next(iter(sides.values()))
    for side, found in sides.items():
        cells = [
            f"{found[name] / unit:.1f} ({first[name] / found[name]:.2f})" for name, unit in columns.values()
        ]
        lines.append(f"| {side} | {' | '.join(cells)} | {found['difference']:.0e} |")
    return "\n".join([*lines, ""])


def ratio_table(contests: list[dict], bounds: dict) -> str:
    """A line for each rival of a contest; `ratio` is how many times our time it takes."""
    lines = [
        "",
        "| contest | ours ms | rival | ratio | bounds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for found in contests:
        for rival, ratio in found["ratios"].items():
            bound = bounds.get((found["name"], rival))
            between = f"{bound.least:.3g} to {bound.most:.3g}" if bound and bound.least else "none"
            lines.append(
                f"| {found['name']} | {1e3 * found['seconds']:.1f} | {rival} | {ratio:.2f} | {between} |"
            )
    return "\n".join([*lines, ""])
