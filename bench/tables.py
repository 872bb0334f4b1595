"""Measured rows as tables to read."""

from itertools import groupby

PREPARED_BLOCKS = 21  # that a guided forward of 5B goes through, the guidance block included
STEP_SIZE = "5B, 24 frames"


def pass_tables(rows: list) -> str:
    """A table for each pass and size, the fastest first; what has no numbers stands last, with the reason."""
    tables = []
    for (of, size), group in groupby(sorted(rows, key=_place(rows)), key=lambda row: (row.of, row.size)):
        lines = [
            f"| {of}: {size} | ms | of the device's best | MB beyond inputs and results |",
            "| --- | --- | --- | --- |",
        ]
        lines += [_line(row) for row in sorted(group, key=lambda row: row.milliseconds or float("inf"))]
        tables.append("\n".join(lines))
    return "\n\n".join(["", *tables, ""])


def _place(rows: list):
    """Passes and sizes in the order of their first rows."""
    order = list(dict.fromkeys((row.of, row.size) for row in rows))
    passes = list(dict.fromkeys(of for of, _ in order))
    return lambda row: (passes.index(row.of), order.index((row.of, row.size)))


def _line(row) -> str:
    if row.milliseconds is None:
        return f"| {row.rival} | {row.reason} | - | - |"
    best = f"{100 * row.least_milliseconds / row.milliseconds:.0f} %"
    return f"| {row.rival} | {row.milliseconds:.3f} | {best} | {row.peak_bytes / 1e6:.1f} |"


def step_table(step: dict | str, rows: list) -> str:
    """The guided step by backend, and what part of its update the passes are."""
    if isinstance(step, str):
        return f"guided step of 5B not measured: {step}\n"
    lines = [
        "| guided step of 5B, 24 frames | update ms | of it preparation and loss | denoising ms | peak GB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for backend, found in step.items():
        part = kernels_milliseconds(rows, backend)
        share = "-" if part is None else f"{100 * part / found['update_ms']:.1f} %"
        lines.append(
            f"| {backend} | {found['update_ms']:.1f} | {share} | {found['denoise_ms']:.1f} "
            f"| {found['update_peak_bytes'] / 1e9:.1f} |"
        )
    return "\n".join([*lines, ""])


def kernels_milliseconds(rows: list, backend: str) -> float | None:
    """One loss, and preparation there and back in every block up to it, from their own measurements."""
    times = {
        row.of: row.milliseconds
        for row in rows
        if row.size == STEP_SIZE and row.rival == backend and row.milliseconds is not None
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
            between = f"{bound.least:.3g} to {bound.most:.3g}" if bound else "none"
            lines.append(
                f"| {found['name']} | {1e3 * found['seconds']:.1f} | {rival} | {ratio:.2f} | {between} |"
            )
    return "\n".join([*lines, ""])
