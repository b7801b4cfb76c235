"""Attention by slices of a packed row == one softmax under a dense mask: outputs and gradients."""

import pytest
import torch
from torch.nn import functional as F

from naysay.core.prefix import branch_mask, pack_groups
from naysay.modeling import branch_flash as module
from naysay.modeling.branch_flash import Place, Run, branch_flash


def group(prompt, *answers):
    """Tokens do not matter; an answer of n + 1 tokens has n in the row."""
    return [1] * prompt, [[1] * (length + 1) for length in answers]


CASES = {
    "one of each": [group(5, 3)],
    "a little less than 16": [group(13, 15, 15, 15, 15, 15), group(30, 14, 13, 12, 11)],
    "many of one length": [group(33, *[16] * 5, *[31] * 4, 2, 2)],
    "the last prompt ends the row": [group(15, 31), group(14, 15)],
    "a prompt in two halves": [group(384, 20, 20), group(3, 1)],
    "halves of unequal length": [group(401, 47), group(397, 47, 63)],
    "halves that read behind them": [group(412, 9), group(400, 9)],
    "queries in parts": [group(16, *[63] * 8), group(20, *[64] * 12)],
    "without answers": [group(9), group(2, 1), group(1)],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads", [(9, 3), (4, 4), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("threads", [2, 8])
def test_it_equals_a_dense_mask(case, heads, dtype, threads, monkeypatch):
    # How queries and heads are cut follows the number of threads.
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: threads)
    batch, branches = pack_groups(CASES[case])
    tokens = batch.input_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(tokens, count, 16, generator=generator, dtype=torch.float64) for count in (heads[0], *heads[1:] * 2)
    )
    weight = torch.randn(query.shape, generator=generator, dtype=torch.float64)
    allowed = torch.zeros(tokens, tokens, dtype=torch.bool)
    for number, (prompt, _) in enumerate(CASES[case]):
        inside = _tokens_of(branches, number)
        assert len(inside) >= len(prompt)
        # In the order of a prompt and its answers, as the mask expects them.
        allowed[inside[:, None], inside] = branch_mask(batch.branch_ids[:, inside], batch.position_ids[:, inside])[0, 0]
    expected = _leaves(query, key, value)
    dense = F.scaled_dot_product_attention(
        *(states.transpose(0, 1)[None] for states in expected), attn_mask=allowed, scale=0.3, enable_gqa=True
    )
    wanted = dense[0].transpose(0, 1)
    (wanted * weight).sum().backward()
    given = _leaves(*(states.to(dtype) for states in (query, key, value)))
    found = branch_flash(*given, Place.of_all(branches), 0.3)
    (found * weight.to(dtype)).sum().backward()
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    assert torch.allclose(found.double(), wanted, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(given, expected, strict=True):
        assert torch.allclose(mine.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance)


def _leaves(*states):
    return [part.detach().clone().requires_grad_() for part in states]


def _tokens_of(branches, group):
    """The tokens of a group, its prompt first."""
    mine = branches.group_of == group
    at = [
        branches.prompt_at[group][branches.prompt_mask[group]],
        branches.response_at[mine][branches.response_mask[mine]],
    ]
    return torch.cat(at)


def test_answers_of_one_length_are_one_call_and_read_16_keys_at_a_time():
    (first, second) = Place.of_all(pack_groups([group(40, 15, 15, 15, 9), group(31, 30)])[1])
    assert first.causal == (Run(0, 3, 15, 16), Run(45, 1, 9, 9), Run(84, 1, 40, 40))
    assert first.seen == ((Run(0, 1, 54, 54), Run(84, 1, 40, 40)),)
    # Behind the last prompt there is nothing to read.
    assert second.causal == (Run(54, 1, 30, 32), Run(124, 1, 31, 31))


def test_what_is_read_behind_a_sequence_has_no_part_in_it():
    """Whatever stands there: as large a number as any."""
    _, branches = pack_groups([group(8, 15, 15), group(8, 2)])
    tokens = len(branches.place)
    query, key, value = (torch.randn(tokens, 2, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    places = Place.of_all(branches)
    given = _leaves(query, key, value)
    branch_flash(*given, places, None)[:15].square().sum().backward()
    changed = _leaves(query, key, value)
    with torch.no_grad():
        for states in changed:
            states[15:30] = 1e4
    branch_flash(*changed, places, None)[:15].square().sum().backward()
    for mine, before in zip(changed, given, strict=True):
        assert torch.equal(mine.grad[:15], before.grad[:15])
        assert not mine.grad[15:30].any()


@pytest.mark.parametrize(
    ("heads", "shared", "threads", "parts"),
    [(9, 1, 2, 2), (9, 3, 2, 2), (8, 1, 2, 1), (9, 1, 1, 1), (2, 1, 4, 2), (9, 9, 2, 2), (4, 4, 4, 1)],
)
def test_queries_are_cut_where_threads_have_less_to_do_then(heads, shared, threads, parts, monkeypatch):
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: threads)
    assert Run(7, 1, 756, 756).in_parts(heads, shared) == Run(7, parts, 756 // parts, 756 // parts)
    assert Run(7, 1, 100, 100).in_parts(heads, shared).count == 1


@pytest.mark.parametrize(
    ("count", "heads", "shared", "threads", "apart"),
    [(1, 9, 3, 2, 3), (2, 9, 3, 2, 1), (1, 9, 3, 1, 1), (1, 8, 1, 3, 1), (1, 8, 8, 2, 8), (2, 9, 3, 16, 3)],
)
def test_query_heads_are_taken_apart_where_threads_would_get_unequal_shares(
    count, heads, shared, threads, apart, monkeypatch
):
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: threads)
    assert Run(7, count, 20, 20).apart(heads, shared) == apart
