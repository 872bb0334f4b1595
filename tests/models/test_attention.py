"""Attention kernels: each computes softmax attention in our layout, and an unusable one is refused early."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from tiny_models import backbone_of, random_inputs, tiny_transformer

from ditflow.errors import DitflowError, SettingsError
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.plain import PlainRunner
from ditflow.models.attention import KERNELS, Kernel, check_attention, fastest_forward, load_attention
from ditflow.models.protocols import Capture
from ditflow.settings.options import ATTENTION

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PACKAGES = ("flash", "xformers", "sage")


def softmax_attention(query, key, value):
    """Computed from the definition."""
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), value)


def random_tokens(dtype=torch.float32, device="cpu"):
    """Queries, keys and values whose shape changes under any transposition."""
    return [torch.randn(1, 37, 3, 64, dtype=dtype, device=device, requires_grad=True) for _ in range(3)]


def by_token(query, key, value):
    """Attention on [batch, tokens, heads, head_dim], as the packages compute it."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins for the packages, with the signatures and layouts of the real ones."""

    def install(name, **contents):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        install.deterministic = deterministic
        return by_token(q, k, v)

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
        return by_token(query, key, value)

    def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, **kwargs):
        if tensor_layout == "HND":
            return F.scaled_dot_product_attention(q, k, v)
        return by_token(q, k, v)

    install("flash_attn", flash_attn_func=flash_attn_func)
    ops = install("xformers.ops", memory_efficient_attention=memory_efficient_attention)
    install("xformers", ops=ops)
    install("sageattention", sageattn=sageattn)
    return install


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of compute capability 9.0, as far as the checks can tell; call it for another capability."""

    def present(capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    present((9, 0))
    return present


@pytest.fixture
def no_packages(monkeypatch):
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, KERNELS[name].package, None)


def test_the_settings_name_the_kernels():
    assert tuple(KERNELS) == ATTENTION


def test_sdpa_is_softmax_attention_with_its_gradients():
    tokens = random_tokens()
    exact = [tensor.detach().double().requires_grad_() for tensor in tokens]
    output, expected = load_attention("sdpa")(*tokens), softmax_attention(*exact)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(output)
    found = torch.autograd.grad(output, tokens, weight)
    for gradient, reference in zip(found, torch.autograd.grad(expected, exact, weight.double()), strict=True):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_get_their_own_layout(packages, name):
    tokens = random_tokens()
    torch.testing.assert_close(load_attention(name)(*tokens), softmax_attention(*tokens))


def test_flash_follows_deterministic_algorithms(packages):
    attend = load_attention("flash")
    attend(*random_tokens())
    assert packages.deterministic is False
    torch.use_deterministic_algorithms(True)
    try:
        attend(*random_tokens())
    finally:
        torch.use_deterministic_algorithms(False)
    assert packages.deterministic is True


def test_the_model_attends_with_the_chosen_kernel(packages):
    calls = []

    def counted(query, key, value, *rest, **options):
        calls.append(query.shape)
        return by_token(query, key, value)

    packages("flash_attn", flash_attn_func=counted)
    model = tiny_transformer()
    plain, chosen = backbone_of(model), backbone_of(model, attention="flash")
    inputs = random_inputs(plain, 3, 8, 12)
    attention = plain.prepare(0, *plain.embed(inputs))
    torch.testing.assert_close(chosen.attend(attention), plain.attend(attention))
    assert calls == [(1, 10 + 3 * 4 * 6, 2, 16)]


@pytest.fixture
def recorded(monkeypatch):
    """Two stand-in kernels that record their calls. The one for forwards has no gradient."""
    calls = []

    def kernel(name, has_gradient):
        def attend(query, key, value):
            calls.append(name)
            if not has_gradient:
                query, key, value = query.detach(), key.detach(), value.detach()
            return by_token(query, key, value)

        return Kernel(attend, architecture=None, gradient=has_gradient)

    for name, has_gradient in (("with gradient", True), ("forward", False)):
        monkeypatch.setitem(KERNELS, name, kernel(name, has_gradient))
    return calls


RUNNERS = {
    "plain": PlainRunner,
    "blockwise": BlockwiseRunner,
    "attention kept": lambda backbone: BlockwiseRunner(backbone, keep="attention"),
}


@pytest.mark.parametrize("make", RUNNERS.values(), ids=RUNNERS)
def test_which_pass_uses_which_kernel(recorded, make):
    """Every forward of a backward, and its recomputation, uses the kernel with a gradient; no other does."""
    model = tiny_transformer()
    chosen = backbone_of(model, attention="with gradient", attention_forward="forward")
    runner, plain = make(chosen), make(backbone_of(model))
    inputs, capture = random_inputs(chosen, 3, 8, 12), Capture("query_key", (2,))

    def used():
        found = set(recorded)
        recorded.clear()
        return found

    runner.forward([inputs, inputs], {})
    assert used() == {"forward"}
    runner.features(inputs, {}, capture)
    assert used() == {"forward"}

    def loss(index, read):
        return sum(each.square().mean() for each in read)

    given = loss, "latents", inputs, {}, capture, 1.0
    value, gradient = runner.gradient(*given)
    assert used() == {"with gradient"}
    for ours, expected in zip((value, gradient), plain.gradient(*given), strict=True):
        torch.testing.assert_close(ours, expected)
    backbone_of(model, attention="with gradient").attend_forward(chosen.prepare(0, *chosen.embed(inputs)))
    assert used() == {"with gradient"}  # the same unless another is asked for


@pytest.mark.parametrize(
    "capability, dtype, deterministic, kernel",
    [
        ((9, 0), torch.bfloat16, False, "cudnn"),
        ((12, 0), torch.float16, False, "cudnn"),
        ((9, 0), torch.bfloat16, True, "sdpa"),
        ((9, 0), torch.float32, False, "sdpa"),
        ((8, 9), torch.bfloat16, False, "sdpa"),
    ],
)
def test_auto_for_forwards(gpu, capability, dtype, deterministic, kernel):
    gpu(capability)
    assert fastest_forward(CUDA, dtype, deterministic) == kernel
    assert fastest_forward(CPU, dtype, deterministic) == "sdpa"


def test_a_refused_kernel_for_forwards_names_its_flag(no_packages, gpu):
    with pytest.raises(DitflowError, match="^--attention-forward sage: sageattention is not installed"):
        check_attention("sage", False, CUDA, torch.bfloat16, flag="--attention-forward")
    with pytest.raises(SettingsError, match="--deterministic is on: use --attention-forward sdpa"):
        check_attention("cudnn", False, CUDA, torch.bfloat16, True, flag="--attention-forward")


def test_a_kernel_without_gradient_is_refused_where_one_is_needed(no_packages):
    """This is checked first, so neither a package nor a GPU is needed to find out."""
    with pytest.raises(
        SettingsError, match="sage has no gradient.*--attention sdpa, --loss x0 or --no-guidance"
    ):
        check_attention("sage", True, CPU, torch.bfloat16)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_with_how_to_install_it(no_packages, gpu, name):
    with pytest.raises(DitflowError, match="not installed.*pip install.*available here: sdpa, cudnn$"):
        check_attention(name, False, CUDA, torch.bfloat16)


@pytest.mark.parametrize("name", ["cudnn", *PACKAGES])
def test_kernels_for_gpus_are_refused_on_a_cpu(packages, name):
    with pytest.raises(DitflowError, match="CUDA GPU, and this run computes on cpu; available here: sdpa$"):
        check_attention(name, False, CPU, torch.bfloat16)
    check_attention("sdpa", True, CPU, torch.float32)


def test_precision_is_checked(packages, gpu):
    for name in ("cudnn", "flash", "sage"):
        with pytest.raises(
            DitflowError, match="float16, bfloat16, and --dtype is float32; .*: sdpa, xformers$"
        ):
            check_attention(name, False, CUDA, torch.float32)
    for name in ATTENTION:
        check_attention(name, False, CUDA, torch.float16)


def test_old_gpus_are_refused(packages, gpu):
    gpu((7, 5))
    with pytest.raises(
        DitflowError, match=r"compute capability 8.0 or later; available here: sdpa, xformers"
    ):
        check_attention("flash", False, CUDA, torch.float16)


def test_the_kernels_offered_instead_have_a_gradient_too(packages, gpu):
    with pytest.raises(DitflowError, match="available here: sdpa, xformers$"):
        check_attention("flash", True, CUDA, torch.float32)
    packages("flash_attn")
    gpu((8, 0))
    sys.modules["flash_attn"] = None
    with pytest.raises(DitflowError, match="available here: sdpa, cudnn, xformers$"):
        check_attention("flash", True, CUDA, torch.bfloat16)


@pytest.mark.parametrize("name", ["cudnn", "xformers"])
def test_nondeterministic_kernels_are_refused_with_deterministic(packages, gpu, name):
    with pytest.raises(SettingsError, match="--deterministic is on: use --attention sdpa"):
        check_attention(name, False, CUDA, torch.bfloat16, deterministic=True)
    check_attention("flash", True, CUDA, torch.bfloat16, deterministic=True)


def test_a_package_that_does_not_load_is_reported_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "sageattention.py").write_text("raise ImportError('undefined symbol: _ZN3c10\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sageattention", raising=False)
    with pytest.raises(DitflowError, match=r"cannot be loaded \(undefined symbol: _ZN3c10\); pip install"):
        backbone_of(tiny_transformer(), attention="sage")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ATTENTION)
def test_real_kernels(name):
    if missing := KERNELS[name].missing(CUDA, torch.bfloat16):
        pytest.skip(missing)
    tokens = random_tokens(torch.bfloat16, "cuda")
    exact = [tensor.detach().double().requires_grad_() for tensor in tokens]
    output, expected = load_attention(name)(*tokens), softmax_attention(*exact)
    assert (output - expected).norm() <= 0.05 * expected.norm()
    if KERNELS[name].gradient:
        weight = torch.randn_like(output)
        for gradient, reference in zip(
            torch.autograd.grad(output, tokens, weight),
            torch.autograd.grad(expected, exact, weight.double()),
            strict=True,
        ):
            assert (gradient - reference).norm() <= 0.02 * reference.norm()
