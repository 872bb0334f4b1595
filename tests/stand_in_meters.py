"""Fake clocks and meters for the tests of `bench/`: they measure nothing and return fixed times."""

from types import SimpleNamespace

import torch

from bench.harness import Cost, result_bytes


class Machine:
    """A clock that work advances, which also stands in for pytest-benchmark's fixture.

    `pace` slows all work of a round.
    """

    def __init__(self, pace=lambda turn: 1.0):
        self.now, self.turn, self.pace, self.order = 0.0, 0, pace, []
        self.extra_info, self.stats = {}, SimpleNamespace(stats=SimpleNamespace(data=[]))

    def work(self, name, seconds):
        def call():
            self.order.append(name)
            self.now += seconds * self.pace(self.turn)

        return call

    def clock(self):
        return self.now

    def pedantic(self, target, setup, rounds):
        for self.turn in range(rounds):
            setup()
            start = self.now
            target()
            self.stats.stats.data.append(self.now - start)


class SmokeMeter:
    """Stands in for `bench.harness.CudaMeter`: makes every call, and reports 2 ms for each."""

    device = torch.device("cpu")

    def __init__(self, free=1 << 40):
        self.free, self.called = free, 0

    def milliseconds(self, calls):
        for call in calls:
            call()
            self.called += 1
        return 2.0

    def peak_bytes(self, call):
        return result_bytes(call())

    def free_bytes(self):
        return self.free

    def cost(self, call):
        call()
        self.called += 1
        return Cost(3.0, 5 << 30, 6 << 30, 70.0)
