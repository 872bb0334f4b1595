"""Writes docs/performance.md and its pictures, and docs/wind-tunnel.md: `python -m bench.report`.

Fills bench/performance.md.in and bench/wind-tunnel.md.in. Sources: bench/results/*.json (`bench.gpu`, `make
bench-accept-ratios`, `bench.presets`, `make tunnel`), bench/ratios.csv, bench/published.yaml and
configs/devices/*.yaml (`bench.ceilings`, or estimated).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml

from bench import tables
from bench.plots import roofline, stacked_bars, stairs
from bench.tables import PETA, TERA, gib, markdown
from bench.timed.bounds import SLOWDOWN, Bounds, read_bounds
from bench.tunnel.page import TUNNEL_PAGE, tunnel_page
from ditflow.planning.ceilings import Ceilings, as_ceilings
from ditflow.planning.plan import Phase

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "bench/performance.md.in"
PAGE, PICTURES = Path("docs/performance.md"), Path("docs/performance")
DRAWN = 24  # frames, in the pictures
SYSTEM = ["system", "time", "memory", "model", "frames", "hardware", "source"]
NO_PLAN = "**No plan is on file.** `python -m bench.presets` writes it."
NO_GPU = "Nothing yet: **no GPU has been measured.** Run `python -m bench.gpu` on one."
NO_RATIO = "Nothing yet: **no ratio has been measured.** Run `make bench-accept-ratios`."

Found = Mapping[str, Any]
Runs = dict[str, list[Phase]]  # phases by preset


def main() -> None:
    for path, text in report(ROOT).items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
        print(path)


def report(root: Path) -> dict[Path, str]:
    """The text of every file of the report, from the sources under `root`."""
    files = sorted((root / "bench/results").glob("*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    plans, gpus, cpus = (
        [each for each in found if each["kind"] == kind] for kind in ("planned", "gpu", "cpu")
    )
    devices = [yaml.safe_load(path.read_text()) for path in sorted((root / "configs/devices").glob("*.yaml"))]
    devices = [as_ceilings(device) for device in devices]
    published = yaml.safe_load((root / "bench/published.yaml").read_text(encoding="utf-8"))
    bounds = read_bounds(root / "bench/ratios.csv")
    runs = drawn_runs(plans)
    pictures = drawings(runs, devices)
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        presets="\n\n".join(map(tables.preset_table, plans)) or NO_PLAN,
        work="\n\n".join(map(work, plans)) or NO_PLAN,
        phases=shown(pictures, "phases", "Work by phase"),
        memory=shown(pictures, "memory", "Memory by phase"),
        ceilings=tables.ceilings_table(devices, runs, f"a default run of {DRAWN} frames, at least"),
        rooflines=shown(pictures, "roofline", "Roofline"),
        gpus="\n\n".join(map(measured_on_gpu, gpus)) or NO_GPU,
        slowdown=SLOWDOWN,
        cpus="\n\n".join(measured_on_cpu(each, bounds) for each in cpus) or NO_RATIO,
        systems=markdown(SYSTEM, [[each[column] for column in SYSTEM] for each in published]),
    )
    tunnel = tunnel_page([each for each in found if each["kind"] == "tunnel"])
    return {PAGE: page, TUNNEL_PAGE: tunnel, **pictures}


def drawn_runs(plans: Iterable[Found]) -> Runs:
    """The runs in pictures."""
    return {
        run["preset"]: [Phase(**phase) for phase in run["phases"]]
        for plan in plans
        for run in plan["runs"]
        if run["frames"] == DRAWN and run["fits"]
    }


def drawings(runs: Runs, devices: Sequence[Ceilings]) -> dict[Path, str]:
    """Every picture that the plans allow."""
    if not runs:
        return {}

    def by_phase(value: Callable[[Phase], float]) -> dict[str, dict[str, float]]:
        return {name: {phase.name: value(phase) for phase in run} for name, run in runs.items()}

    work = by_phase(lambda phase: phase.times * phase.flops / PETA)
    peaks = by_phase(lambda phase: phase.peak_bytes)
    title = f"through a run, {DRAWN} frames"
    found = {
        PICTURES / "phases.svg": stacked_bars(f"Planned work by phase {title}", "PFLOP", work),
        PICTURES / "memory.svg": stairs(
            f"Planned peak of the card's memory {title}", lambda peak: f"{gib(peak)} GiB", peaks
        ),
    }
    streamed = {
        preset: (phase.flops, phase.copied_bytes)
        for preset, run in runs.items()
        for phase in run
        if phase.name == "optimise" and phase.copied_bytes
    }
    for each in (device for device in devices if device.measured):
        title = f"{each.device}: an optimisation step, FLOP for each byte copied to it, {DRAWN} frames"
        picture = roofline(title, each.product_flops, each.copied_bytes, streamed)
        found[PICTURES / f"roofline-{each.device}.svg"] = picture
    return found


def shown(pictures: Iterable[Path], name: str, words: str) -> str:
    places = [path.relative_to(PAGE.parent) for path in pictures if path.stem.startswith(name)]
    return "\n\n".join(f"![{words}]({place})" for place in places) or NO_PLAN


def work(plan: Found) -> str:
    lengths = dict.fromkeys(run["frames"] for run in plan["runs"])
    parts = [f"### {frames} frames\n\n{tables.work_table(plan, frames)}" for frames in lengths]
    return "\n\n".join([f"{plan['model']}.", *parts])


def measured_on_gpu(found: Found) -> str:
    best = found["ceilings"]
    words = (
        f"### {found['device']}\n\n"
        f"{found['date']}, {found['commit']}, torch {found['torch']}, triton {found['triton']}. "
        f"Best rates seen: products {best['product_flops'] / TERA:.0f} TFLOP/s, in int8 "
        f"{best['int8_product_flops'] / TERA:.0f} TFLOP/s, "
        f"copies {best['copied_bytes'] / TERA:.2f} TB/s."
    )
    steps = "Whole steps, random weights. `kernels`: the share of an update that the kernels' passes take."
    step_tables = tables.step_tables(found["steps"], found["passes"])
    return "\n\n".join([words, tables.pass_tables(found["passes"]), steps, step_tables])


def measured_on_cpu(found: Found, bounds: Bounds) -> str:
    load = [value for each in found["contests"] for value in each["load"]]
    first = found["contests"][0]
    words = (
        f"{found['device']}, {found['date']}, {first['commit']}, torch {first['torch']}, "
        f"threads: {first['threads']}, load {min(load):.1f} to {max(load):.1f}."
    )
    sizes = "\n".join(f"- {each['name']}: {each['size']}" for each in found["contests"])
    return "\n\n".join([words, tables.ratio_table(found["contests"], bounds), sizes])


if __name__ == "__main__":
    main()
