"""A decoder layer as two functions == the layer's own forward: log-probs and gradients."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint

from conftest import make_model
from joined_layers import count_calls
from naysay.core import products
from naysay.core.prefix import pack_groups
from naysay.modeling import layer_forward
from naysay.modeling.branch_attention import BranchMasks
from naysay.modeling.forward import enable_group_forward, one_at_a_time_logps, response_logps

GROUPS = [([5, 9, 11, 3], [[7, 6, 256], [1], [9, 9, 4, 2, 256]]), ([2], [[4, 256]]), ([8, 8], [[3] * 16, [5] * 16])]
WIDE = {"sliding_window": 64}


def adapted(kind="llama", dtype=torch.float32, changes=None, **settings):
    """A model with an adapter whose B is not zero, and norms and biases that are not the usual ones, so that every part
    of it matters."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": "all-linear"} | settings)
    model = get_peft_model(make_model(kind, **changes or {}), config).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=generator)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def bind(model, calls):
    """Enable the group forward, and forget the calls by which it checks the layers."""
    assert enable_group_forward(model)
    calls.clear()


@pytest.fixture
def calls(monkeypatch):
    """The calls of the two functions."""
    return count_calls(monkeypatch, layer_forward._AttentionHalf, layer_forward._MlpHalf)


def logps_and_gradients(model, groups=GROUPS, logps=response_logps, **how):
    model.zero_grad()
    found = logps(model, groups, **how)
    (found * torch.linspace(-1, 1, len(found), dtype=found.dtype)).sum().backward()
    return found.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found, expected, tolerance):
    assert found[1].keys() == expected[1].keys()
    assert torch.allclose(found[0].double(), expected[0].double(), rtol=tolerance, atol=tolerance)
    for name, gradient in expected[1].items():
        scale = gradient.abs().max().item()
        assert torch.allclose(found[1][name].double(), gradient.double(), rtol=tolerance, atol=tolerance * scale), name


@pytest.mark.parametrize(("kind", "changes"), [("llama", {}), ("qwen2", {}), ("mistral_sliding", WIDE)])
@pytest.mark.parametrize("embeddings", [False, True], ids=["frozen embeddings", "embeddings with a gradient"])
def test_log_probs_and_gradients_equal_the_oracle(kind, changes, embeddings, calls):
    model = adapted(kind, changes=changes)
    oracle = copy.deepcopy(model).double()
    if embeddings:  # of the first layer's input, which is not asked for else
        model.enable_input_require_grads()
    expected = logps_and_gradients(oracle, logps=one_at_a_time_logps)
    bind(model, calls)
    found = logps_and_gradients(model, head_chunk=8)
    assert len(calls) == 2 * len(model.base_model.model.model.layers)
    assert_close(found, expected, 2e-4)


@pytest.mark.parametrize("settings", [{"rank_pattern": {"k_proj": 2, "up_proj": 5}, "alpha_pattern": {"v_proj": 9}}])
def test_layers_may_have_ranks_and_scalings_of_their_own(settings, calls):
    model = adapted(**settings)
    expected = logps_and_gradients(copy.deepcopy(model).double(), logps=one_at_a_time_logps)
    bind(model, calls)
    assert_close(logps_and_gradients(model, head_chunk=8), expected, 2e-4)
    assert calls


def test_a_new_adapter_changes_no_bit(calls, monkeypatch):
    """log-ratios are 0 at the first step."""
    monkeypatch.setattr(products, "_ONEDNN", None)  # without the adapter the products are torch's own
    model = get_peft_model(make_model(), LoraConfig(r=3, target_modules="all-linear"))
    bind(model, calls)
    with model.disable_adapter(), torch.no_grad():
        expected = response_logps(model, GROUPS, head_chunk=8)
    assert not calls
    assert torch.equal(response_logps(model, GROUPS, head_chunk=8).detach(), expected)
    assert calls


def test_gradient_checkpointing_takes_the_layers_own_forward(calls):
    model = adapted()
    bind(model, calls)
    expected = logps_and_gradients(model, head_chunk=8)
    calls.clear()
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    found = logps_and_gradients(model, head_chunk=8)
    assert not calls
    assert_close(found, expected, 1e-4)


def test_checkpoints_around_the_layers_change_nothing(calls):
    """Whoever puts them there, e.g. accelerate for FSDP; what is kept may be asked for once then."""
    model = adapted()
    bind(model, calls)
    expected = logps_and_gradients(model, head_chunk=8)

    def checkpointed(*args, **how):
        return checkpoint(response_logps, *args, use_reentrant=False, **how)

    assert_close(logps_and_gradients(model, logps=checkpointed, head_chunk=8), expected, 1e-6)


def first_layer(model):
    return model.base_model.model.model.layers[0]


def trained_norm(model):
    first_layer(model).input_layernorm.weight.requires_grad_()


def hooked_mlp(model):
    first_layer(model).mlp.register_forward_hook(lambda *args: None)


def hooked_attention(model):
    first_layer(model).self_attn.register_forward_hook(lambda *args: None)


def other_activation(model):
    first_layer(model).mlp.act_fn = torch.nn.GELU()


def other_mlp(model):
    first_layer(model).mlp = torch.nn.Identity()


def other_norm(model):
    first_layer(model).post_attention_layernorm = torch.nn.LayerNorm(32)


def patched_attention(model):
    attention = first_layer(model).self_attn
    theirs = attention.forward
    attention.forward = lambda *args, **kwargs: theirs(*args, **kwargs)


def patched_norm(model):
    norm = first_layer(model).input_layernorm
    theirs = norm.forward
    norm.forward = lambda x: theirs(x) * 2


def without_lora_in_k(model):
    attention = first_layer(model).self_attn
    attention.k_proj = attention.k_proj.base_layer


def two_adapters(model):
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])


def merged(model):
    model.merge_adapter()


CHANGES = [
    trained_norm,
    hooked_mlp,
    hooked_attention,
    other_activation,
    other_mlp,
    other_norm,
    patched_attention,
    patched_norm,
    without_lora_in_k,
    two_adapters,
    merged,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_is_more_keeps_its_own_forward(change, calls):
    model = adapted()
    bind(model, calls)
    change(model)
    with torch.no_grad():
        found = response_logps(model, GROUPS, head_chunk=8)
        wanted = one_at_a_time_logps(model, GROUPS)
    joined = 0 if change in (merged, two_adapters) else 2 * (len(model.base_model.model.model.layers) - 1)
    assert len(calls) == joined
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "gpt_neox"])
def test_other_layers_are_left_alone(kind, calls):
    """Qwen3 has norms of queries and keys, Gemma four norms, NeoX one product for all three."""
    model = adapted(kind)
    bind(model, calls)
    logps_and_gradients(model, head_chunk=8)
    assert not calls


@pytest.mark.parametrize(("kind", "joined"), [("granite", 0), ("smollm3", 1)])
def test_layers_of_the_same_parts_that_compute_otherwise_keep_their_own_forward(kind, joined, calls):
    """Granite multiplies the residual, and of SmolLM3's layers here the second turns no heads."""
    model = adapted(kind)
    expected = logps_and_gradients(copy.deepcopy(model), logps=one_at_a_time_logps)
    bind(model, calls)
    found = logps_and_gradients(model, head_chunk=8)
    assert len(calls) == 2 * joined
    assert_close(found, expected, 2e-4)


def test_heads_that_are_turned_in_part_take_the_layers_own_forward():
    model = adapted()
    layer = first_layer(model)
    batch, branches = pack_groups(GROUPS)
    masks = BranchMasks(branches, batch.position_ids[0])
    x = torch.randn(1, len(masks.positions), 32)
    whole, half = (torch.randn(1, len(masks.positions), size) for size in (8, 4))
    of = layer_forward._Parts.of
    assert of(layer, x, {"naysay_branches": masks, "position_embeddings": (whole, whole)}) is not None
    assert of(layer, x, {"naysay_branches": masks, "position_embeddings": (half, half)}) is None


def test_a_layer_of_the_same_parts_that_computes_otherwise_is_told_apart(calls):
    model = adapted()
    layer = first_layer(model)

    class Scaled(type(layer)):
        def forward(self, hidden_states, **kwargs):
            return super().forward(hidden_states, **kwargs) * 1.01

    layer.__class__ = Scaled
    bind(model, calls)
    assert "forward" not in vars(layer)
    logps_and_gradients(model, head_chunk=8)
    assert len(calls) == 2 * (len(model.base_model.model.model.layers) - 1)


def test_the_adapter_may_come_later_and_half_precision_is_left_alone(calls):
    base = make_model()
    enable_group_forward(base)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    bind(model, calls)
    logps_and_gradients(model, head_chunk=8)
    assert calls
    half = adapted(dtype=torch.bfloat16)
    bind(half, calls)
    logps_and_gradients(half, head_chunk=8)
    assert not calls


def test_a_window_that_hides_something_takes_the_layers_own_forward(calls):
    model = adapted("mistral_sliding")
    bind(model, calls)
    window = model.config.sliding_window
    long = [(list(range(window)), [[3, 4, 5], [6, 7]])]
    expected = logps_and_gradients(copy.deepcopy(model), long, logps=one_at_a_time_logps)
    assert_close(logps_and_gradients(model, long, head_chunk=8), expected, 2e-4)
    assert not calls
