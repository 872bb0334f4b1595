"""A process that makes many transfers does not grow."""

import threading

import pytest
import soak
import torch


@pytest.mark.fault("many transfers in one process: no growth in objects, tensors, threads or open files")
def test_transfers_leave_nothing_behind(tmp_path):
    found = [soak.living() for _ in soak.transfers(soak.little_settings(tmp_path), 6)]
    for name in found[0]:  # a library may hold a few objects for a moment; a leak adds up
        counts = [each[name] for each in found]
        assert min(counts[3:]) <= max(counts[:3]), (name, counts)


def test_a_leak_is_noticed(tmp_path):
    before, leave = soak.living(), threading.Event()
    kept = [torch.ones(1), soak.Settings(model="small")]
    one_more = threading.Thread(target=leave.wait)
    one_more.start()
    with (tmp_path / "file").open("w"):
        after = soak.living()
    leave.set()
    one_more.join()
    assert after["tensors"] == before["tensors"] + 1 and after["objects"] >= before["objects"] + 2
    assert after["threads"] == before["threads"] + 1 and after["open files"] == before["open files"] + 1
    assert kept


def test_growth_counts_after_the_warm_up():
    def readings(*host):
        return {number: {"host bytes": host[number >= soak.WARM], "tensors": 5} for number in range(1, 41)}

    assert soak.grown(readings(100, 1000)) == []
    found = readings(1000, 1000)
    found[40]["host bytes"] = 2000  # for a moment
    assert soak.grown(found) == []
    for number in range(31, 41):
        found[number] = {"host bytes": 1020, "tensors": 5}
    assert soak.grown(found) == []
    for number in range(31, 41):
        found[number] = {"host bytes": 1021, "tensors": 6}
    assert soak.grown(found) == [
        "host bytes has grown: from 1,000 at transfer 20 to 1,021 at the end",
        "tensors has grown: from 5 at transfer 20 to 6 at the end",
    ]
