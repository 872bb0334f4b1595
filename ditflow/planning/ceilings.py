"""Estimates run times from the best rates that were measured on a device."""

from __future__ import annotations

from dataclasses import dataclass

from ditflow.errors import SettingsError
from ditflow.files import shipped, shipped_names
from ditflow.planning.plan import Phase, Plan


@dataclass(frozen=True)
class Ceilings:
    """A device's best rates, measured by `python -m bench.ceilings`. Each is a file in `configs/devices/`."""

    device: str
    measured: str  # date and commit
    dtype: str
    product_flops: float  # per second, in matrix products as large as a block's
    attention_flops: float  # per second
    copied_bytes: float  # per second, from host memory

    def seconds(self, phase: Phase) -> float:
        """The least seconds of one phase: arithmetic and copies run in parallel, so the longer one counts."""
        products = (phase.flops - phase.attention_flops) / self.product_flops
        attention = phase.attention_flops / self.attention_flops
        return max(products + attention, phase.copied_bytes / self.copied_bytes)

    def run_seconds(self, plan: Plan) -> float:
        return sum(phase.times * self.seconds(phase) for phase in plan.phases)


def read_ceilings(device: str) -> Ceilings:
    """The ceilings of a device. Raises SettingsError if it has not been measured."""
    known = shipped_names("devices")
    if device not in known:
        raise SettingsError(
            f"device {device!r}: no measured ceilings; accepted: {', '.join(known)}; to add one, run "
            "`python -m bench.ceilings NAME` on it"
        )
    return Ceilings(**shipped(f"devices/{device}.yaml"))
