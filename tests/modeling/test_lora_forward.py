"""A LoRA layer or gated MLP as one function == peft's and the model's own forward: outputs and gradients."""

import copy

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model

from conftest import make_model
from joined_layers import IDS, count_calls, outputs_and_gradients
from naysay.core import products
from naysay.core.products import add_frozen_linear, frozen_linear
from naysay.modeling import lora_forward
from naysay.modeling.forward import enable_group_forward, response_logps
from naysay.modeling.lora_forward import bind_lora_layers

GROUPS = [([5, 9, 11, 3], [[7, 6, 256], [1], [9, 9, 4, 2, 256]]), ([2], [[4, 256]])]


def adapted(kind="llama", dtype=torch.float64, **settings):
    """A model with an adapter whose B is not zero, so that every part of it matters."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": "all-linear"} | settings)
    model = get_peft_model(make_model(kind), config).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


def calls_of(monkeypatch):
    """The calls of the joined functions."""
    return count_calls(monkeypatch, lora_forward._LoraLinear, lora_forward._LoraGatedMlp)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_gradients_equal_pefts(kind, checkpointing, monkeypatch):
    model = adapted(kind)
    expected, expected_gradients = outputs_and_gradients(model)
    bound = copy.deepcopy(model)
    bind_lora_layers(bound)
    if checkpointing:
        bound.activation_checkpointing_enable({"use_reentrant": False})
        bound.enable_input_require_grads()
        bound.train()
    seen = calls_of(monkeypatch)
    found, gradients = outputs_and_gradients(bound)
    assert seen
    # Gemma's gate is a GELU and NeoX has no gate: there the layers are joined and the MLP is not.
    assert (lora_forward._LoraGatedMlp in seen) == (kind not in {"gemma3", "gpt_neox"})
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert gradients.keys() == expected_gradients.keys()
    for name, expected_gradient in expected_gradients.items():
        assert torch.allclose(gradients[name], expected_gradient, rtol=1e-8, atol=1e-10), name


def test_pefts_float32_matrices_around_a_bfloat16_model_learn_as_in_float32(monkeypatch):
    """What a GPU does, computed here: as near to the truth, the same rounded weights in float64, as peft itself."""
    model = adapted(dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)
    truth, of_truth = outputs_and_gradients(copy.deepcopy(model).double())
    pefts, of_pefts = outputs_and_gradients(copy.deepcopy(model))
    bind_lora_layers(model)
    seen = calls_of(monkeypatch)
    outputs_and_gradients(copy.deepcopy(model))
    assert not seen  # on a CPU the products would take longer
    monkeypatch.setattr(lora_forward, "_MIXED_ON", ("cpu",))
    found, gradients = outputs_and_gradients(model)
    assert len(seen) == 2 * 5
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())

    def off(parts):
        total = sum(part.square().sum() for part in of_truth.values())
        return (sum((parts[name].double() - part).square().sum() for name, part in of_truth.items()) / total).sqrt()

    assert (found - truth).norm() <= 1.5 * (pefts - truth).norm()
    assert off(gradients) <= 1.5 * off(of_pefts)


def test_the_group_forward_uses_it_also_where_the_adapter_came_later(monkeypatch):
    base = make_model(dtype=torch.float64)
    enable_group_forward(base)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    enable_group_forward(model)
    seen = calls_of(monkeypatch)
    response_logps(model, GROUPS, head_chunk=8).sum().backward()
    assert seen.count(lora_forward._LoraGatedMlp) == 2
    assert seen.count(lora_forward._LoraLinear) == 8


def use_two(model):
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])


@pytest.mark.parametrize(
    ("settings", "change", "joined"),
    [
        ({"use_dora": True}, None, 0),
        ({"lora_dropout": 0.5}, lambda model: model.train(), 0),
        ({}, use_two, 0),
        ({}, lambda model: model.merge_adapter(), 0),
        ({}, lambda model: model.base_model.disable_adapter_layers(), 0),
        ({"lora_bias": True, "target_modules": ["q_proj", "k_proj"]}, None, 0),
        ({"bias": "all"}, None, 4),  # Qwen2's q, k and v have biases; in both layers o_proj and the MLP have none
    ],
    ids=["dora", "dropout", "two adapters", "merged", "disabled", "lora bias", "trained bias"],
)
def test_what_is_more_than_a_plain_layer_is_left_to_peft(settings, change, joined, monkeypatch):
    model = adapted("qwen2", **settings)
    if change:
        change(model)
    model.double()
    bound = copy.deepcopy(model)
    bind_lora_layers(bound)
    seen = calls_of(monkeypatch)
    torch.manual_seed(0)  # for the dropout
    expected = model(input_ids=IDS).logits
    torch.manual_seed(0)
    found = bound(input_ids=IDS).logits
    assert len(seen) == joined
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_autocast_and_hooks_are_left_to_peft(monkeypatch):
    model = adapted(dtype=torch.float32)
    bind_lora_layers(model)
    seen = calls_of(monkeypatch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=IDS)
    assert not seen
    heard = []
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda *args: heard.append(1))
    layer.base_layer.register_forward_hook(lambda *args: heard.append(2))
    model(input_ids=IDS)
    assert heard == [2, 1]


def test_a_forward_that_another_library_put_there_stays():
    model = adapted()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    theirs = layer.forward
    layer.forward = theirs
    bind_lora_layers(model)
    assert layer.forward is theirs


@pytest.fixture(params=["oneDNN", "MKL"])
def product(request, monkeypatch):
    """Each of the two products, whichever suits this processor."""
    found = products.onednn_product() if request.param == "oneDNN" else None
    if request.param == "oneDNN" and found is None:
        pytest.skip("this torch was built without oneDNN")
    monkeypatch.setattr(products, "_ONEDNN", found)


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("rows", [1, 31, 32, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_frozen_product_equals_linear(rows, dtype):
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((rows, 24), (40, 24), (40,)))
    expected = x.double() @ weight.double().T + bias.double()
    found = frozen_linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.2}[dtype]
    assert (found.double() - expected).abs().max() < tolerance
    back = frozen_linear(expected.to(dtype), weight.to(dtype).T)
    assert (back.double() - expected @ weight.double()).abs().max() < 40 * tolerance
    room = torch.full_like(found, torch.nan)
    assert torch.equal(frozen_linear(x.to(dtype), weight.to(dtype), bias.to(dtype), out=room), found)
    sum_ = found.clone()
    add_frozen_linear(sum_, x.to(dtype), weight.to(dtype))
    assert (sum_.double() - 2 * expected + bias.double()).abs().max() < 3 * tolerance


def test_autocast_sees_the_products():
    x, weight, room = torch.randn(40, 24), torch.randn(8, 24), torch.zeros(40, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert frozen_linear(x, weight, out=room).dtype == torch.bfloat16
        expected = frozen_linear(x, weight).float()
        add_frozen_linear(room, x, weight)
    assert torch.equal(room, expected)


@pytest.mark.parametrize("way", ["merge_and_unload", "unload"])
def test_a_model_runs_on_without_its_adapter(way):
    model = adapted()
    expected = model(input_ids=IDS).logits.detach()
    with model.disable_adapter():
        without = model(input_ids=IDS).logits.detach()
    bind_lora_layers(model)
    bare = getattr(model, way)()
    found = bare(input_ids=IDS).logits
    assert torch.allclose(found, expected if way == "merge_and_unload" else without, rtol=1e-8, atol=1e-9)
    assert (expected - without).abs().max() > 0.1
    bind_lora_layers(bare)
    assert torch.equal(bare(input_ids=IDS).logits, found)


def test_another_kind_of_adapter_may_take_its_place(monkeypatch):
    model = adapted()
    bind_lora_layers(model)
    bare = model.unload()
    expected = bare(input_ids=IDS).logits.detach()
    other = get_peft_model(bare, LoHaConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj"]))
    bind_lora_layers(other)
    seen = calls_of(monkeypatch)
    assert torch.allclose(other(input_ids=IDS).logits, expected, rtol=1e-10, atol=1e-12)  # a new LoHa changes nothing
    again = get_peft_model(other.unload(), LoraConfig(r=2, target_modules="all-linear"))
    bind_lora_layers(again)
    again(input_ids=IDS)
    assert seen.count(lora_forward._LoraGatedMlp) == 2


@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32)])
def test_no_tokens_give_no_rows_and_gradients_of_zero(shape):
    model = adapted()
    layer = model.base_model.model.model.layers[0]
    modules = (layer.mlp, layer.self_attn.q_proj)
    expected = [module(torch.zeros(shape, dtype=torch.float64)).shape for module in modules]
    bind_lora_layers(model)
    for module, wanted in zip(modules, expected, strict=True):
        x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        out = module(x)
        assert out.shape == wanted
        out.sum().backward()
        assert x.grad.shape == shape
    assert not layer.self_attn.q_proj.lora_B.default.weight.grad.any()


@pytest.mark.usefixtures("product")
def test_a_bias_with_gaps_is_read_as_it_is():
    x, weight, bias = torch.randn(64, 24), torch.randn(40, 24), torch.randn(80)[::2]
    assert torch.allclose(frozen_linear(x, weight, bias), x @ weight.T + bias, atol=1e-5)
