"""An RMS norm as one function == the library's: the same bits forward, the same gradients."""

import copy

import pytest
import torch
from torch import nn

from conftest import make_model
from joined_layers import IDS, count_calls, outputs_and_gradients
from naysay.modeling import norm_forward
from naysay.modeling.forward import enable_group_forward
from naysay.modeling.norm_forward import bind_norms


def model_with_norms(kind="llama", dtype=torch.float32):
    """A model whose norms' weights are not all 1."""
    model = make_model(kind).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 2)
    return model


@pytest.fixture
def calls(monkeypatch):
    """The calls of the joined function."""
    return count_calls(monkeypatch, norm_forward._RmsNorm)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral_sliding"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained norms", "frozen norms"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_are_the_same_bits_and_gradients_equal(kind, trained, checkpointing, calls):
    model = model_with_norms(kind)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained or "norm" not in name)
    expected, expected_gradients = outputs_and_gradients(model)
    bound = copy.deepcopy(model)
    bind_norms(bound)
    if checkpointing:
        bound.activation_checkpointing_enable({"use_reentrant": False})
        bound.train()
    assert not calls
    found, gradients = outputs_and_gradients(bound)
    norms = 2 * (4 if kind == "qwen3" else 2) + 1  # Qwen3 has norms of queries and keys too
    assert len(calls) == norms + (norms - 1 if checkpointing else 0)
    assert torch.equal(found, expected)
    assert gradients.keys() == expected_gradients.keys()
    assert any("norm" in name for name in gradients) == trained
    for name, expected_gradient in expected_gradients.items():
        assert (gradients[name] - expected_gradient).norm() <= 1e-5 * expected_gradient.norm(), name


def test_the_backward_is_the_derivative():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: norm_forward._RmsNorm.apply(x, weight, 0.3), (x, weight))


def test_the_group_forward_uses_it(calls):
    model = make_model()
    enable_group_forward(model)
    calls.clear()
    model(input_ids=IDS)
    assert len(calls) == 5


@pytest.mark.parametrize("kind", ["gemma3", "gpt_neox"])
def test_a_model_with_another_norm_is_left_alone(kind, calls):
    """Gemma's weight is around 1, NeoX has a LayerNorm."""
    model = make_model(kind)
    bind_norms(model)
    model(input_ids=IDS)
    assert not calls


class RmsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))  # says nothing about what the class does with it
        self.variance_epsilon = 1e-6

    def forward(self, x):
        return norm_forward.normed(x, self.weight, self.variance_epsilon)[0]


class OtherEpsilon(RmsNorm):
    """Adds epsilon to the root, not to the square."""

    def forward(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon) * self.weight


class AroundOne(RmsNorm):
    def forward(self, x):
        return super().forward(x) + norm_forward.normed(x, torch.ones(8), self.variance_epsilon)[0]


class LessMean(RmsNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class WithBias(RmsNorm):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(8))


class Gated(RmsNorm):
    def forward(self, x, gate):
        return super().forward(x * gate)


class GatedIfAsked(RmsNorm):
    def forward(self, x, gate=None):
        return super().forward(x if gate is None else x * gate)


@pytest.mark.parametrize("kind", [RmsNorm, OtherEpsilon, AroundOne, LessMean, WithBias, Gated, GatedIfAsked])
def test_what_computes_something_else_is_told_apart(kind):
    module = kind()
    bind_norms(module)
    assert ("forward" in vars(module)) == (kind is RmsNorm)
    assert not module.weight.any()


def test_half_precision_autocast_and_hooks_keep_the_librarys_forward(calls):
    half = model_with_norms(dtype=torch.bfloat16)
    expected = half(input_ids=IDS).logits
    bind_norms(half)
    assert torch.equal(half(input_ids=IDS).logits, expected)
    model = model_with_norms(dtype=torch.float32)
    bind_norms(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=IDS)
    assert not calls
    heard = []
    model.model.norm.register_forward_hook(lambda *args: heard.append(1))
    model(input_ids=IDS)
    assert heard == [1]
    assert len(calls) == 4
    model.bfloat16()
    calls.clear()
    assert torch.isfinite(model(input_ids=IDS).logits).all()
    assert not calls


@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32)])
def test_no_tokens_give_no_rows_and_gradients_of_zero(shape, calls):
    model = model_with_norms()
    bind_norms(model)
    x = torch.zeros(shape, requires_grad=True)
    out = model.model.norm(x)
    assert calls
    assert out.shape == shape
    out.sum().backward()
    assert x.grad.shape == shape
    assert not model.model.norm.weight.grad.any()
