"""docs/wind-tunnel.md, from bench/wind-tunnel.md.in and the results of `make tunnel`."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

from bench.tables import line, tunnel_tables
from bench.tunnel.runs import NUDGE
from bench.tunnel.stages import STAGES
from bench.tunnel.verdict import MARGINS

TEMPLATE = Path(__file__).parents[1] / "wind-tunnel.md.in"
TUNNEL_PAGE = Path("docs/wind-tunnel.md")


def tunnel_page(found: Iterable[Mapping[str, Any]]) -> str:
    """The page's text. `found`: documents of `python -m bench.tunnel --json`, a stage each."""
    measured = {each["tables"][0]["stage"]: each for each in found}
    stages = [line([f"`{name}`", stage.about, stage.pairs]) for name, stage in STAGES.items()]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        stages="\n".join(stages),
        nudge=f"{100 * NUDGE:.0f}",
        fidelity=MARGINS["path_fidelity"],
        error=MARGINS["path_error"],
        tables="\n\n".join(_section(name, measured.get(name)) for name in STAGES),
    )


def _section(name: str, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return f"### {name}\n\n**Not measured.** Run `python -m bench.tunnel --stage {name}`."
    about = found["tables"][0]["about"]
    source = f"{found['date']}, {found['commit']}, torch {found['torch']}, `--seed {found['seed']}`."
    parts = [f"### {name}: {about}", source]
    for table in found["tables"]:
        parts += [tunnel_tables([table]), *_warning(table)]
    return "\n\n".join(parts)


def _warning(table: Mapping[str, Any]) -> Iterator[str]:
    """What a table cannot tell, if it is not known to tell guidance from none."""
    for row in table["modes"]:
        if row["mode"] != "backbone":
            continue
        if "verdict" not in row:
            yield from _of_directed(row["numbers"])
        elif row["verdict"] != "worse":
            yield (
                "**Here a run without guidance is not known to be worse than exact.** So `same` does not "
                "show that a mode keeps the motion: exact itself may transfer none."
            )


def _of_directed(differences: Mapping[str, Any]) -> Iterator[str]:
    """The first number of a stage says whether results do what its settings ask for."""
    name, found = next(iter(differences.items()))
    if found["half_width"] is None or found["mean"] + found["half_width"] >= 0:
        yield (
            f"**Here a run without guidance is not known to have less {name.replace('_', ' ')}.** So these "
            "settings are not known to work with this model."
        )
