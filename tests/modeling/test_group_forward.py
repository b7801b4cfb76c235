"""Shared prompt == one sequence at a time: log-probs and gradients, over architectures, with ragged groups."""

import copy
import inspect
import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import make_model
from naysay.core.logprobs import FrozenLinear, _sum_in_order, kl_by_token, sum_by_response, token_logps
from naysay.core.prefix import branch_mask, layout_groups, pack_groups, plan_microbatches, split_group
from naysay.errors import DataError, ModelError
from naysay.modeling import branch_attention
from naysay.modeling.branch_attention import BranchMasks
from naysay.modeling.branch_varlen import Spans
from naysay.modeling.forward import causal_lm, enable_group_forward, lm_head, one_at_a_time_logps, response_logps
from peak_bytes import PeakBytes

ARCHITECTURES = ["llama", "llama_tied", "qwen2", "qwen3", "gpt2", "gpt_neox", "mistral_sliding", "gemma3"]
GROUPS = [
    ([5, 9, 11, 3, 8, 20, 31], [[7, 6, 256], [1], [9, 9, 4, 2, 256], [7, 6, 3]]),
    ([2], [[4, 256], [8]]),
    ([100, 101, 102], [[103] * 9]),
    ([50, 51, 52, 53], [[1, 2, 3], [4, 5, 6], [7], [8, 9, 256], [10, 11, 12], [13, 14, 15]]),  # runs of equal lengths
    ([60, 61], [[1, 256], [3, 4], [5, 6]]),
    ([70, 71, 72], [[1], [256]]),  # nothing but the prompt is read
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
    assert model._naysay.masks == "branches"
    oracle = one_at_a_time_logps(model, GROUPS)
    expected = gradients(model, oracle)
    shared = response_logps(model, GROUPS, head_chunk=4)
    assert torch.allclose(shared, oracle, rtol=1e-6, atol=1e-6)
    found = gradients(model, shared)
    assert found.keys() == expected.keys()
    assert len(found) > 10
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral_sliding", "gemma3"])
def test_equals_one_at_a_time_with_a_dense_mask(kind):
    """What is used where the attention needs more than a branch layout knows, e.g. a soft cap."""
    model = make_model(kind, dtype=torch.float64)
    model.config._attn_implementation = "eager"
    assert enable_group_forward(model)
    assert model._naysay.masks in {"full", "sliding", "by_type"}
    oracle = one_at_a_time_logps(model, GROUPS)
    expected = gradients(model, oracle)
    shared = response_logps(model, GROUPS, head_chunk=4)
    assert torch.allclose(shared, oracle, rtol=1e-6, atol=1e-6)
    found = gradients(model, shared)
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-5), name


def test_an_attention_with_a_soft_cap_is_left_to_the_dense_mask():
    model = make_model("gemma2", dtype=torch.float64)
    assert enable_group_forward(model)
    assert model._naysay.masks == "by_type"
    assert model.config._attn_implementation == "eager"
    assert torch.allclose(
        response_logps(model, GROUPS, head_chunk=4), one_at_a_time_logps(model, GROUPS), rtol=1e-6, atol=1e-6
    )


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


def test_generate_knows_the_positions_of_a_padded_prompt():
    """It asks the signature of the forward what the model takes."""
    model = make_model("gpt2")
    ids, mask = torch.tensor([[258, 258, 5, 6], [9, 8, 7, 6]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    before = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    enable_group_forward(model)
    after = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(after, before)
    assert inspect.signature(model.forward) == inspect.signature(make_model("gpt2").forward)


def test_a_model_made_from_the_config_of_one_in_use_shares_its_prompts_too():
    from transformers import AutoModelForCausalLM

    first = make_model()
    enable_group_forward(first)
    second = AutoModelForCausalLM.from_config(copy.deepcopy(first.config)).eval()
    ids = torch.tensor([[1, 2, 3]])
    logits = second(input_ids=ids).logits
    assert enable_group_forward(second)
    assert second._naysay.masks == "branches"
    assert torch.equal(second(input_ids=ids).logits, logits)
    assert "_attn_implementation" not in first.config.to_dict()


def test_prompt_tuning_is_refused():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(make_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="virtual tokens"):
        causal_lm(model)


def test_the_first_token_of_every_branch_is_predicted_by_the_last_prompt_position():
    batch = layout_groups([([1, 2, 3], [[4, 5], [6], [7, 8]])])
    triples = list(zip(batch.scored_at.tolist(), batch.target_ids.tolist(), batch.response_of.tolist(), strict=True))
    assert triples == [(2, 4, 0), (3, 5, 0), (2, 6, 1), (2, 7, 2), (4, 8, 2)]


def test_the_last_token_of_an_answer_is_predicted_and_not_read():
    batch = layout_groups([([1, 2, 3], [[4, 5, 6], [7], [8, 9]])])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 8]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert batch.branch_ids.tolist() == [[0, 0, 0, 1, 1, 3]]
    assert batch.target_ids.tolist() == [4, 5, 6, 7, 8, 9]


def test_who_sees_whom():
    batch = layout_groups([([1, 2], [[3, 4, 9], [5, 9]]), ([1], [[2, 9]])])
    mask = branch_mask(batch.branch_ids, batch.position_ids)[:, 0].int().tolist()
    assert mask[0] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert mask[1] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]


def test_a_sliding_window_counts_positions_not_places():
    batch = layout_groups([([1, 2, 3], [[4, 5, 9], [6, 9]])])
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


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("llama", ["q_proj", "down_proj"]),
        ("llama_tied", ["q_proj", "down_proj"]),
        ("llama", ["q_proj", "lm_head"]),
    ],
)
def test_a_frozen_head_gives_the_gradients_of_the_oracle(kind, modules):
    """With the body's adapters alone the head is a `FrozenLinear`; with an adapter on the head it is not."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model(kind, dtype=torch.float64), LoraConfig(r=2, target_modules=modules))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    model.double()
    assert enable_group_forward(model)
    assert isinstance(lm_head(model), FrozenLinear) == ("lm_head" not in modules)
    oracle = one_at_a_time_logps(model, GROUPS)
    expected = gradients(model, oracle)
    shared = response_logps(model, GROUPS, head_chunk=3)
    assert torch.allclose(shared, oracle, rtol=1e-8)
    found = gradients(model, shared)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize(("bias", "scale"), [(False, 1.0), (True, 0.5)])
def test_a_frozen_linear_head_equals_autograd(bias, scale):
    generator = torch.Generator().manual_seed(1)
    M, D, V = 11, 5, 37
    weight = torch.randn(V, D, dtype=torch.float64, generator=generator)
    head = FrozenLinear(weight, torch.randn(V, dtype=torch.float64, generator=generator) if bias else None, scale)
    hidden = torch.randn(M, D, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(V, (M,), generator=generator)
    upstream = torch.randn(M, dtype=torch.float64, generator=generator)
    logits = (hidden @ weight.T + (head.bias if bias else 0.0)) * scale
    oracle = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (expected,) = torch.autograd.grad((oracle * upstream).sum(), hidden)
    for chunk in (1, 4, 11, 100):
        found = token_logps(hidden, targets, head, chunk=chunk)
        assert torch.allclose(found, oracle, rtol=1e-12)
        assert torch.allclose(torch.autograd.grad((found * upstream).sum(), hidden)[0], expected, rtol=1e-10)
    with torch.no_grad():
        assert torch.allclose(token_logps(hidden, targets, head, chunk=4), oracle, rtol=1e-12)


def test_no_logits_beyond_a_chunk_forward_or_backward():
    M, D, V, chunk = 64, 8, 501, 4
    weight = torch.randn(V, D, requires_grad=True)
    hidden = torch.randn(M, D, requires_grad=True)
    targets = torch.randint(V, (M,))
    with LargestTensor() as seen:
        token_logps(hidden, targets, lambda h: h @ weight.T, chunk=chunk).sum().backward()
    assert seen.elements <= max(chunk * V, V * D)
    with LargestTensor() as seen:
        token_logps(hidden, targets, FrozenLinear(weight.detach()), chunk=chunk).sum().backward()
    assert seen.elements <= max(chunk * V, V * D)
    expected = torch.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None]).squeeze(1)
    assert torch.allclose(token_logps(hidden, targets, lambda h: h @ weight.T, chunk=chunk), expected, atol=1e-5)


@pytest.mark.parametrize("groups", [GROUPS, GROUPS[1:2], [([4], [[3]])], [([4, 5], []), *GROUPS[2:]]])
def test_a_packed_row_holds_all_answers_and_then_all_prompts_and_says_where(groups):
    rows, (packed, branches) = layout_groups(groups), pack_groups(groups)
    width = rows.input_ids.shape[1]
    numbers = torch.arange(rows.input_ids.numel()).view_as(rows.input_ids)
    order = torch.cat([numbers[rows.branch_ids > 0], numbers[rows.branch_ids == 0]])
    for name in ("input_ids", "position_ids", "branch_ids"):
        assert getattr(packed, name)[0].tolist() == getattr(rows, name).flatten()[order].tolist()
    assert order[packed.scored_at].tolist() == (rows.scored_row * width + rows.scored_at).tolist()
    assert packed.target_ids.tolist() == rows.target_ids.tolist()
    assert packed.response_of.tolist() == rows.response_of.tolist()
    ids = packed.input_ids[0]
    assert [ids[at][mask].tolist() for at, mask in zip(branches.prompt_at, branches.prompt_mask, strict=True)] == [
        list(prompt) for prompt, _ in groups
    ]
    assert [ids[at][mask].tolist() for at, mask in zip(branches.response_at, branches.response_mask, strict=True)] == [
        list(answer[:-1]) for _, answers in groups for answer in answers if len(answer) > 1
    ]
    longer = [(i, answer) for i, (_, answers) in enumerate(groups) for answer in answers if len(answer) > 1]
    assert branches.group_of.tolist() == [i for i, _ in longer]
    flat = torch.cat([ids[branches.prompt_at].flatten(), ids[branches.response_at].flatten()])
    assert flat[branches.place].tolist() == ids.tolist()


@pytest.mark.parametrize("response_of", [[0, 0, 1, 3, 3, 3], [3, 0, 3, 1, 0, 3], [2]])
def test_sums_in_order_are_sums(response_of):
    """What a GPU does in place of `index_add`."""
    logp = torch.randn(len(response_of), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of = torch.tensor(response_of, dtype=torch.long)
    mine, theirs = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    found, expected = _sum_in_order(mine, of, 5), sum_by_response(theirs, of, 5)
    assert torch.allclose(found, expected)
    weight = torch.arange(5, dtype=torch.float64)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize(
    ("groups", "spans"),
    [
        ([([1] * 3, [[1] * 4, [1]]), ([1] * 2, [[1] * 3])], (5, [0, 3, 5, 8, 10], [0, 3, 5], [0, 3, 5], (3, 3, 3))),
        ([([1] * 3, [[1]])], (0, [0, 3], [0, 0], [0, 3], (3, 2, 3))),
        ([([1], [[1, 1]]), ([1], [[1]])], (1, [0, 1, 2, 3], [0, 1, 1], [0, 1, 2], (2, 2, 1))),
    ],
)
def test_spans_say_where_sequences_begin(groups, spans):
    found = Spans.of(pack_groups(groups)[1])
    places = (found.sequences.tolist(), found.asking.tolist(), found.prompts.tolist())
    assert (found.answers, *places, found.longest) == spans


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
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= 60 for batch in batches)
    assert batches == [[5], [1], [4, 2, 3, 0, 6]]


def test_a_split_group_covers_every_response_within_the_budget():
    group = (list(range(10)), [[1] * n for n in (5, 9, 2, 30, 4)])
    parts = split_group(group, 25)
    assert [i for part in parts for i in part] == [0, 1, 2, 3, 4]
    assert all(len(part) == 1 or 10 + sum(len(group[1][i]) - 1 for i in part) <= 25 for part in parts)


def peak_of_a_step(vocabulary):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model(vocab_size=vocabulary), LoraConfig(r=2, target_modules="all-linear"))
    enable_group_forward(model)
    groups = [(list(range(40)), [[token] * 200 for token in range(8)])]
    with PeakBytes(model) as seen:
        response_logps(model, groups, head_chunk=None).sum().backward()
    return seen.peak


def test_the_memory_of_a_step_does_not_grow_with_the_vocabulary():
    small, large = peak_of_a_step(8192), peak_of_a_step(49152)
    assert small > 4 * 2**22  # the logits of one chunk were seen
    assert large <= 1.05 * small


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("first", ["sdpa", "eager"])
def test_an_attention_that_is_set_later_is_noticed(first, attention):
    model = make_model(dtype=torch.float64)
    model.set_attn_implementation(first)
    enable_group_forward(model)
    expected = one_at_a_time_logps(model, GROUPS)
    model.set_attn_implementation(attention)
    if (first, attention) != ("eager", "eager"):
        with pytest.raises(ModelError, match=f"set to '{attention}' after .* call enable_group_forward"):
            response_logps(model, GROUPS, head_chunk=None)
    assert enable_group_forward(model)
    assert model._naysay.masks == ("branches" if attention == "sdpa" else "full")
    assert torch.allclose(response_logps(model, GROUPS, head_chunk=None), expected, atol=1e-9)
    assert torch.allclose(one_at_a_time_logps(model, GROUPS), expected, atol=1e-9)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("groups", [[], [([5, 9], [])], [([5, 9], []), ([4], [])]])
def test_groups_without_any_answer_are_refused(groups, attention):
    model = make_model()
    model.set_attn_implementation(attention)
    enable_group_forward(model)
    with pytest.raises(DataError, match="expected an answer to score, found"):
        response_logps(model, groups, head_chunk=None)


def test_a_group_without_answers_may_stand_beside_others():
    model = make_model(dtype=torch.float64)
    enable_group_forward(model)
    expected = response_logps(model, GROUPS, head_chunk=None)
    found = response_logps(model, [([5, 9], []), *GROUPS, ([7], [])], head_chunk=None)
    assert torch.allclose(found, expected, atol=1e-12)
    wanted = gradients(model, expected)
    for name, gradient in gradients(model, found).items():
        assert torch.allclose(gradient, wanted[name], atol=1e-12), name


def test_heads_with_gaps_are_not_given_to_the_flash_kernels():
    """The kernels read the last dimension as contiguous, whatever its stride is."""
    batch, branches = pack_groups(GROUPS)
    masks = BranchMasks(branches, batch.position_ids[0])
    tokens = batch.input_ids.shape[1]
    gapped = [torch.randn(1, heads, 8, tokens, dtype=torch.float64).transpose(2, 3) for heads in (4, 2, 2)]
    found = branch_attention.branch_attention(None, *gapped, None, naysay_branches=masks)[0]
    expected = branch_attention.branch_attention(None, *(x.contiguous() for x in gapped), None, naysay_branches=masks)[
        0
    ]
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral_sliding", "gemma3", "mamba"])
@pytest.mark.parametrize("attention", ["flash", "gathered", "eager"])
def test_answers_of_one_token_alone_need_the_prompt_alone(kind, attention, monkeypatch):
    groups = [([7, 8, 9], [[3], [256]]), ([4], [[5]])]
    if attention == "gathered":
        monkeypatch.setattr(branch_attention, "_flash_covers", lambda *args: False)
    model = make_model(kind, dtype=torch.float64)
    if attention == "eager":
        model.config._attn_implementation = "eager"
    enable_group_forward(model)
    oracle = one_at_a_time_logps(model, groups)
    expected = gradients(model, oracle)
    found = response_logps(model, groups, head_chunk=4)
    assert torch.allclose(found, oracle, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients(model, found).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-5, atol=1e-5), name
