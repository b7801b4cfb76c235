"""Rotary embeddings as one function == the library's: the same bits forward, the same gradients, this model alone."""

import copy
import inspect

import pytest
import torch
from transformers.models.llama import modeling_llama

from conftest import make_model
from joined_layers import IDS, count_calls, outputs_and_gradients
from naysay.modeling import rotary_forward
from naysay.modeling.forward import enable_group_forward
from naysay.modeling.rotary_forward import bind_rotary


@pytest.fixture
def calls(monkeypatch):
    """The calls of the joined function."""
    return count_calls(monkeypatch, rotary_forward._Rotary)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral_sliding", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_are_the_same_bits_and_gradients_equal(kind, dtype, checkpointing, calls):
    model = make_model(kind, dtype=dtype)
    expected, expected_gradients = outputs_and_gradients(model)
    bound = copy.deepcopy(model)
    bind_rotary(bound)
    if checkpointing:
        bound.activation_checkpointing_enable({"use_reentrant": False})
        bound.train()
    assert not calls
    found, gradients = outputs_and_gradients(bound)
    assert len(calls) == (8 if checkpointing else 4)  # queries and keys of two layers
    assert torch.equal(found, expected)
    assert gradients.keys() == expected_gradients.keys()
    tolerance = 1e-6 if dtype == torch.float64 else 0.05  # the norms are float32 in a float64 model too
    for name, expected_gradient in expected_gradients.items():
        difference = (gradients[name] - expected_gradient).norm()
        assert difference <= tolerance * expected_gradient.norm() + 1e-12, name


def test_the_backward_is_the_derivative():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    cos, sin = torch.randn(2, 2, 1, 4, 6, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rotary_forward._Rotary.apply(x, cos, sin), (x,))


def test_the_group_forward_uses_it_and_no_other_model_does(calls):
    theirs, other = modeling_llama.apply_rotary_pos_emb, make_model()
    model = make_model()
    enable_group_forward(model)
    calls.clear()
    other(input_ids=IDS)
    assert modeling_llama.apply_rotary_pos_emb is theirs
    assert not calls
    model(input_ids=IDS)
    assert len(calls) == 4
    bound, plain = (type_of.model.layers[0].self_attn.forward for type_of in (model, other))
    assert inspect.signature(bound) == inspect.signature(plain)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_a_model_that_turns_otherwise_is_left_alone(kind, calls):
    """GPT-2 turns nothing; NeoX turns a part of each head, so that its function is another."""
    model = make_model(kind)
    expected = model(input_ids=IDS).logits
    bind_rotary(model)
    assert torch.equal(model(input_ids=IDS).logits, expected)
    assert not calls


def turns_whole_heads(q, k, cos, sin, unsqueeze_dim=1):
    return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)


def turns_the_other_way(q, k, cos, sin):
    return modeling_llama.apply_rotary_pos_emb(q, k, cos, -sin)


def takes_something_else(x, cos, sin):
    return x * cos + sin


def fails(q, k, cos, sin):
    raise RuntimeError("no")


def test_what_computes_something_else_is_told_apart():
    assert rotary_forward._is_rotary(turns_whole_heads)
    for function in (turns_the_other_way, takes_something_else, fails):
        assert not rotary_forward._is_rotary(function)


def test_other_shapes_arguments_and_autocast_go_to_the_librarys_function(calls):
    joined = rotary_forward._joined(modeling_llama.apply_rotary_pos_emb)
    query, key, cos, sin = torch.randn(1, 3, 4, 8), torch.randn(1, 3, 2, 8), torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    expected = modeling_llama.apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=2)
    assert all(map(torch.equal, joined(query, key, cos, sin, unsqueeze_dim=2), expected))
    learned = cos.clone().requires_grad_()
    assert joined(query.transpose(1, 2), key.transpose(1, 2), learned, sin)[0].requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        joined(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
    assert not calls
    joined(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
    assert len(calls) == 2
