"""Estimates run times from the best rates of a device: measured ones, or published ones times a share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ditflow.errors import SettingsError
from ditflow.files import shipped, shipped_names

if TYPE_CHECKING:
    from ditflow.planning.plan import Phase, Plan


@dataclass(frozen=True)
class Ceilings:
    """A device's best rates, each a file in `configs/devices/`.

    Either `python -m bench.ceilings` has measured them, or they are estimated: the vendor's published peaks
    times the share that good libraries reach, with the source of every number in the file.
    """

    device: str
    dtype: str
    product_flops: float  # per second, in matrix products as large as a block's
    attention_flops: float  # per second
    copied_bytes: float  # per second, from host memory
    int8_flops: float | None = None  # per second, in products in 8 bits; None: unknown
    moved_bytes: float | None = None  # per second, in device memory; None: such work is left out
    measured: str | None = None  # date and commit; None: estimated
    gigabytes: int | None = None  # of a GPU's memory; None: it is a CPU
    card: str | None = None  # what torch calls the GPU

    @property
    def kind(self) -> str:
        return "estimated" if self.measured is None else "measured"

    def seconds(self, phase: Phase) -> float:
        """The least seconds of one phase: computation and copies run in parallel, so the longer one counts.

        Computation is one kernel after another: products, attention, products in 8 bits, and the rest, which
        memory limits.
        """
        products = (phase.flops - phase.attention_flops - phase.int8_flops) / self.product_flops
        attention = phase.attention_flops / self.attention_flops
        in_int8 = phase.int8_flops / self.int8_flops if phase.int8_flops else 0.0
        rest = phase.moved_bytes / self.moved_bytes if self.moved_bytes else 0.0
        return max(products + attention + in_int8 + rest, phase.copied_bytes / self.copied_bytes)

    def run_seconds(self, plan: Plan) -> float:
        return sum(phase.times * self.seconds(phase) for phase in plan.phases)

    def check_compute(self, compute: str) -> None:
        """Raises SettingsError if a run has products whose rate is unknown."""
        from ditflow.models.compute import INT8  # imports torch

        if compute in INT8 and self.int8_flops is None:
            raise SettingsError(
                f"device {self.device!r}: no rate of products in 8 bits, which --compute {compute} needs; "
                f"run `python -m bench.ceilings {self.device}` on it, or leave out --estimate-on"
            )


def read_ceilings(device: str) -> Ceilings:
    """The ceilings of a device. Raises SettingsError if there are none."""
    known = shipped_names("devices")
    if device not in known:
        raise SettingsError(
            f"device {device!r}: its rates are unknown; accepted: {', '.join(known)}; to add one, run "
            "`python -m bench.ceilings NAME` on it"
        )
    return as_ceilings(shipped(f"devices/{device}.yaml"))


def ceilings_of_card(card: str) -> Ceilings | None:
    """The ceilings of the GPU that torch calls so; None if it is not among the devices."""
    found = map(read_ceilings, shipped_names("devices"))
    return next((each for each in found if each.card == card), None)


def as_ceilings(file: Mapping[str, Any]) -> Ceilings:
    """From a device's file. An estimated rate is its published peak times the share that is reached."""
    given = dict(file)
    estimated = given.pop("estimated", {})
    rates = {name: float(f"{found['peak'] * found['share']:.4g}") for name, found in estimated.items()}
    return Ceilings(**given, **rates)
