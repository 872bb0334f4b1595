"""What a device was measured to do at best, and the time that follows from it: an estimate."""

from __future__ import annotations

from dataclasses import dataclass

from ditflow.errors import SettingsError
from ditflow.files import shipped, shipped_names
from ditflow.planning.plan import Phase, Plan


@dataclass(frozen=True)
class Ceilings:
    """A device's best rates, measured by `python -m bench.ceilings`; a file each in `configs/devices/`."""

    device: str
    measured: str  # date and commit
    dtype: str
    product_flops: float  # a second, in products of matrices as large as a block's
    attention_flops: float  # a second
    copied_bytes: float  # a second, from host memory

    def seconds(self, phase: Phase) -> float:
        """A phase once: its arithmetic, or its copies where they take longer, as both run side by side."""
        products = (phase.flops - phase.attention_flops) / self.product_flops
        attention = phase.attention_flops / self.attention_flops
        return max(products + attention, phase.copied_bytes / self.copied_bytes)

    def run_seconds(self, plan: Plan) -> float:
        return sum(phase.times * self.seconds(phase) for phase in plan.phases)


def read_ceilings(device: str) -> Ceilings:
    """Raises SettingsError for a device that nobody has measured."""
    known = shipped_names("devices")
    if device not in known:
        raise SettingsError(
            f"device {device!r}: no measured ceilings; there are {', '.join(known)}; measure it there with "
            "`python -m bench.ceilings NAME`"
        )
    return Ceilings(**shipped(f"devices/{device}.yaml"))
