"""Shared prompt == one sequence at a time: log-probs and gradients, over architectures, with ragged groups."""

import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import make_model
from naysay.core.logprobs import kl_by_token, token_logps
from naysay.core.prefix import branch_mask, layout_groups, plan_microbatches, split_group
from naysay.errors import DataError, ModelError
from naysay.modeling.forward import causal_lm, enable_group_forward, one_at_a_time_logps, response_logps

ARCHITECTURES = ["llama", "llama_tied", "qwen2", "qwen3", "gpt2", "gpt_neox", "mistral_sliding", "gemma3"]
GROUPS = [
    ([5, 9, 11, 3, 8, 20, 31], [[7, 6, 256], [1], [9, 9, 4, 2, 256], [7, 6, 3]]),
    ([2], [[4, 256], [8]]),
    ([100, 101, 102], [[103] * 9]),
]


def gradients(model, logps):
    model.zero_grad()
    coefficients = torch.linspace(-1, 2, len(logps), dtype=logps.dtype)
    (coefficients * logps).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_equals_one_at_a_time(kind):
    model = make_model(kind, dtype=torch.float64)
    assert enable_group_forward(model)
    oracle = one_at_a_time_logps(model, GROUPS)
    expected = gradients(model, oracle)
    shared = response_logps(model, GROUPS, head_chunk=4)
    assert torch.allclose(shared, oracle, rtol=1e-6, atol=1e-6)
    found = gradients(model, shared)
    assert found.keys() == expected.keys()
    assert len(found) > 10
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_equals_one_at_a_time_in_float32(kind):
    model = make_model(kind)
    enable_group_forward(model)
    oracle = one_at_a_time_logps(model, GROUPS)
    expected = gradients(model, oracle)
    shared = response_logps(model, GROUPS, head_chunk=1024)
    assert torch.allclose(shared, oracle, rtol=1e-4, atol=1e-4)
    found = gradients(model, shared)
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-4 * value.norm() + 1e-6, name


def test_equals_one_at_a_time_with_lora():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model(dtype=torch.float64), LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.double()
    assert enable_group_forward(model)
    expected = gradients(model, one_at_a_time_logps(model, GROUPS))
    shared = response_logps(model, GROUPS, head_chunk=3)
    assert torch.allclose(shared, one_at_a_time_logps(model, GROUPS), rtol=1e-8)
    found = gradients(model, shared)
    assert all("lora" in name for name in found)
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-5), name


def test_gradient_checkpointing_changes_nothing():
    model = make_model(dtype=torch.float64)
    enable_group_forward(model)
    expected = gradients(model, response_logps(model, GROUPS, head_chunk=8))
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    found = gradients(model, response_logps(model, GROUPS, head_chunk=8))
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-10, atol=1e-12), name


def test_an_architecture_that_cannot_share_falls_back_loudly(caplog):
    model = make_model("mamba", dtype=torch.float64)
    with caplog.at_level(logging.WARNING, logger="naysay"):
        assert not enable_group_forward(model)
    assert "falling back to one answer at a time" in caplog.text
    found = response_logps(model, GROUPS, head_chunk=8)
    assert torch.allclose(found, one_at_a_time_logps(model, GROUPS), rtol=1e-12)


def test_plain_use_of_the_model_is_unchanged():
    model = make_model()
    ids = torch.tensor([[1, 2, 3]])
    before = model(input_ids=ids).logits
    enable_group_forward(model)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert model.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape[1] >= 4


def test_prompt_tuning_is_refused():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(make_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="virtual tokens"):
        causal_lm(model)


def test_the_first_token_of_every_branch_is_predicted_by_the_last_prompt_position():
    batch = layout_groups([([1, 2, 3], [[4, 5], [6], [7, 8]])])
    triples = list(zip(batch.scored_at.tolist(), batch.target_ids.tolist(), batch.response_of.tolist(), strict=True))
    assert triples == [(2, 4, 0), (3, 5, 0), (2, 6, 1), (2, 7, 2), (6, 8, 2)]
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4]]


def test_who_sees_whom():
    batch = layout_groups([([1, 2], [[3, 4], [5]]), ([1], [[2]])])
    mask = branch_mask(batch.branch_ids, batch.position_ids)[:, 0].int().tolist()
    assert mask[0] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert mask[1] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]


def test_a_sliding_window_counts_positions_not_places():
    batch = layout_groups([([1, 2, 3], [[4, 5], [6]])])
    mask = branch_mask(batch.branch_ids, batch.position_ids, window=2)[0, 0].int().tolist()
    assert mask[5] == [0, 0, 1, 0, 0, 1]
    assert mask[4] == [0, 0, 0, 1, 1, 0]


@pytest.mark.parametrize("groups", [[([], [[1]])], [([1], [[]])]])
def test_empty_sequences_are_refused(groups):
    with pytest.raises(DataError, match="at least 1 token"):
        layout_groups(groups)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def test_no_logits_beyond_a_chunk_forward_or_backward():
    M, D, V, chunk = 64, 8, 501, 4
    weight = torch.randn(V, D, requires_grad=True)
    hidden = torch.randn(M, D, requires_grad=True)
    targets = torch.randint(V, (M,))
    with LargestTensor() as seen:
        token_logps(hidden, targets, lambda h: h @ weight.T, chunk=chunk).sum().backward()
    assert seen.elements <= max(chunk * V, V * D)
    expected = torch.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None]).squeeze(1)
    assert torch.allclose(token_logps(hidden, targets, lambda h: h @ weight.T, chunk=chunk), expected, atol=1e-5)


def test_kl_is_exact_and_chunked():
    p, q = torch.randn(10, 6, dtype=torch.float64), torch.randn(10, 6, dtype=torch.float64)
    weight = torch.randn(30, 6, dtype=torch.float64)
    head = lambda h: h @ weight.T  # noqa: E731
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=head(p)), torch.distributions.Categorical(logits=head(q))
    )
    assert torch.allclose(kl_by_token(p, q, head, head, chunk=3), expected, atol=1e-10)
    assert torch.allclose(kl_by_token(p, p, head, head, chunk=3), torch.zeros(10, dtype=torch.float64), atol=1e-12)


def test_microbatches_respect_the_budget_and_take_the_worst_first():
    lengths = [3, 50, 7, 7, 20, 90, 1]
    batches = plan_microbatches(lengths, 60)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches[0] == [5]
    assert all(len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 60 for batch in batches)


def test_a_split_group_covers_every_response_within_the_budget():
    group = (list(range(10)), [[1] * n for n in (5, 9, 2, 30, 4)])
    parts = split_group(group, 25)
    assert [i for part in parts for i in part] == [0, 1, 2, 3, 4]
    assert all(len(part) == 1 or 10 + sum(len(group[1][i]) for i in part) <= 25 for part in parts)
