import pytest
import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ditflow.memory import fake_tensors as module
from ditflow.memory.fake_tensors import fake_tensors, run_operation
from ditflow.memory.tracker import Tracker

ATEN = torch.ops.aten


def small_step():
    """A forward and a backward of a small transformer."""
    network = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        num_layers=3,
        time_embed_dim=16,
        text_embed_dim=24,
        sample_width=12,
        sample_height=8,
        max_text_seq_length=5,
        use_rotary_positional_embeddings=True,
    )
    latents = torch.empty(1, 3, 16, 8, 12, requires_grad=True)
    text, times = torch.empty(1, 5, 24), torch.empty(1)
    rope = torch.empty(3 * 4 * 6, 32), torch.empty(3 * 4 * 6, 32)
    with Tracker([*network.parameters(), latents, text, times, *rope]) as found:
        result = network(latents, text, times, image_rotary_emb=rope, return_dict=False)[0]
        torch.autograd.grad(result.square().mean(), latents)
    return found.peak_bytes, found.flops, found.attention_flops, found.moved_bytes


def test_they_count_as_torchs_own_fake_tensors():
    with FakeTensorMode():
        expected = small_step()
    for _ in range(2):  # the sizes of all results are known the second time
        with fake_tensors():
            assert small_step() == expected


def test_code_takes_them_for_tensors_on_the_cpu():
    with fake_tensors():
        huge, small = torch.empty(1 << 40), torch.empty(2)
        made = huge, torch.ones(3, device="cpu"), small.to("cpu"), small.cpu()
        assert all(str(tensor.device) == "cpu" and tensor.is_meta for tensor in made)
        layer = nn.Linear(1 << 20, 1 << 20).to(huge.device, torch.bfloat16)
        assert layer.weight.is_meta and layer.weight.dtype == torch.bfloat16
    assert str(huge.device) == "meta" and torch.empty(1).device.type == "cpu"


def attended(query=(1, 2, 300, 64), key=(1, 2, 300, 64), value=(1, 2, 300, 64), mask=None, **options):
    """The shape, and what is counted."""
    query, key, value = (torch.empty(shape, requires_grad=True) for shape in (query, key, value))
    if mask is not None:
        mask = torch.empty(300, 300, dtype=mask)
    with Tracker([query, key, value]) as found:
        result = F.scaled_dot_product_attention(query, key, value, mask, **options)
        torch.autograd.grad(result.sum(), query)
    return result.shape, found.flops, found.attention_flops, found.peak_bytes


ATTENTION = {
    "plain": {},
    "causal": {"is_causal": True, "scale": 0.5},
    "mask": {"mask": torch.float32},
    "boolean mask": {"mask": torch.bool},
    "other length": {"key": (1, 2, 7, 64), "value": (1, 2, 7, 64)},
    "other value channels": {"value": (1, 2, 300, 32)},
    "three dimensions": {"query": (2, 300, 64), "key": (2, 300, 64), "value": (2, 300, 64)},
    "dropout": {"dropout_p": 0.5},
    "fewer heads": {"query": (1, 4, 300, 64), "enable_gqa": True},
    "equal heads": {"enable_gqa": False},
}


@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION)
def test_attention_counts_as_with_torchs_own_fake_tensors(options):
    with FakeTensorMode():
        expected = attended(**options)
    with fake_tensors():
        assert attended(**options) == expected


def test_attention_makes_no_map():
    with fake_tensors():
        query = torch.empty(1, 2, 10_000, 64, dtype=torch.bfloat16)
        with Tracker([query]) as found:
            assert F.scaled_dot_product_attention(query, query, query).shape == query.shape
    assert found.peak_bytes < 3 * query.nbytes and found.attention_flops == 4 * 2 * 64 * 10_000**2


def test_statistics_of_a_layer_norm_are_float32_as_on_a_gpu():
    with fake_tensors():
        states = torch.empty(2, 3, 8, dtype=torch.bfloat16)
        results = ATEN.native_layer_norm(states, [8], None, None, 1e-5)
    assert [result.dtype for result in results] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.fixture
def known(monkeypatch):
    found = {}
    monkeypatch.setattr(module, "_known", found)
    return found


@pytest.mark.parametrize(
    ("operation", "others"),
    [
        (ATEN.add.Tensor, [1]),
        (ATEN.add.Tensor, [1.0]),
        (ATEN.add.Tensor, [True]),
        (ATEN.sum.dim_IntList, [[0]]),
        (ATEN.sum.dim_IntList, [[1], True]),
        (ATEN.topk.default, [2]),
        (ATEN.clone.default, []),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "make", [lambda: torch.empty(4, 6), lambda: torch.empty(6, 4).T, lambda: torch.empty(4, 6).int()]
)
def test_known_results_are_as_computed_and_new(known, operation, others, make):
    with fake_tensors():
        given = make()
        expected = operation(given, *others)
        first, second = (run_operation(operation, (given, *others), {}) for _ in range(2))
    assert len(known) == 1 and type(second) is type(expected)
    for each, again, right in zip(*map(module.tensors_in, (first, second, expected)), strict=True):
        found = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in (again, right)]
        assert found[0] == found[1] and again.is_meta
        assert again.untyped_storage()._cdata != each.untyped_storage()._cdata


def test_the_second_time_nothing_is_computed(known, monkeypatch):
    with fake_tensors():
        given = torch.empty(4, 6)
        run_operation(ATEN.cat.default, ([given, given], 1), {})
        monkeypatch.setattr(module, "_is_new_and_fake", None)  # which is called after an operation
        assert run_operation(ATEN.cat.default, ([given, given], 1), {}).shape == (4, 12)


def whole(*size):
    return torch.empty(*size, dtype=torch.int64)


PAIRS = {
    "number": (ATEN.mul.Tensor, lambda: ((whole(3), 1), {}), lambda: ((whole(3), 1.0), {})),
    "truth": (ATEN.mul.Tensor, lambda: ((whole(3).bool(), 1), {}), lambda: ((whole(3).bool(), True), {})),
    "shape": (ATEN.neg.default, lambda: ((torch.empty(3),), {}), lambda: ((torch.empty(4),), {})),
    "strides": (ATEN.clone.default, lambda: ((torch.empty(3, 3),), {}), lambda: ((torch.empty(3, 3).T,), {})),
    "dtype": (ATEN.neg.default, lambda: ((torch.empty(3),), {}), lambda: ((whole(3),), {})),
    "keyword": (
        ATEN.sum.dim_IntList,
        lambda: ((torch.empty(3), [0]), {"dtype": torch.float64}),
        lambda: ((torch.empty(3), [0]), {"dtype": torch.float32}),
    ),
    "operation": (None, lambda: ((torch.empty(3),), {}), lambda: ((torch.empty(3),), {})),
}


@pytest.mark.parametrize(("operation", "one", "other"), PAIRS.values(), ids=PAIRS)
def test_what_differs_is_told_apart(known, operation, one, other):
    first, second = (operation, operation) if operation else (ATEN.neg.default, ATEN.isnan.default)
    with fake_tensors():
        for each, make in ((first, one), (second, other)):
            args, kwargs = make()
            found, right = run_operation(each, args, kwargs), each(*args, **kwargs)
            assert (found.shape, found.stride(), found.dtype) == (right.shape, right.stride(), right.dtype)
    assert len(known) == 2


def test_the_default_dtype_counts(known):
    with fake_tensors():
        for dtype in (torch.float32, torch.bfloat16):
            torch.set_default_dtype(dtype)
            try:
                assert run_operation(ATEN.mul.Tensor, (whole(3), 1.5), {}).dtype == dtype
            finally:
                torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("operation", [ATEN.view.default, ATEN._unsafe_view.default], ids=str)
def test_views_are_never_known(known, operation):
    with fake_tensors():
        given = torch.empty(4, 6)
        results = [run_operation(operation, (given, [24]), {}) for _ in range(2)]
    assert not known
    assert {tensor.untyped_storage()._cdata for tensor in results} == {given.untyped_storage()._cdata}


def test_operations_that_write_are_never_known(known):
    with fake_tensors():
        given = torch.empty(4)
        assert run_operation(ATEN.add_.Tensor, (given, 1), {}) is given
    assert not known


def test_real_tensors_are_computed(known):
    for value in (1.0, 2.0):
        given = torch.full((2,), value)
        assert run_operation(ATEN.add.Tensor, (given, 1), {}).tolist() == [value + 1] * 2
        assert run_operation(ATEN._local_scalar_dense.default, (given[0],), {}) == value
        assert run_operation(ATEN.equal.default, (given, torch.ones(2)), {}) == (value == 1)
    assert not known


def test_sizes_that_depend_on_real_values_are_computed(known):
    fake = torch.empty(3, 4, device="meta")
    for values in ([True, False, False], [True, True, True]):
        mask = torch.tensor(values)
        assert run_operation(ATEN.index.Tensor, (fake, [mask]), {}).shape == (sum(values), 4)
    assert not known


def test_no_more_is_known_than_the_limit(known, monkeypatch):
    monkeypatch.setattr(module, "MOST_KNOWN", 2)
    with fake_tensors():
        for size in range(1, 6):
            run_operation(ATEN.add.Tensor, (torch.empty(size), 1), {})
            assert 1 <= len(known) <= 2
