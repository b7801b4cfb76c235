"""The batch plan is a function of the inputs, and an interrupted drawing goes on at a batch boundary, bitwise equal."""

import pytest
import torch

from conftest import make_model, make_tokenizer
from naysay.generation.hf import HFSampler
from naysay.generation.plan import draw, plan_batches, plan_digest
from naysay.generation.sampler import Request, SamplingSettings
from naysay.generation.seeds import row_seed

SETTINGS = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=6)
PROMPTS = [(256, 1), (256, 2, 3, 4), (256, 5, 6), (256, 7, 8, 9), (256, 1)]
REQUESTS = [Request(prompt, row_seed(0, str(i), k)) for i, prompt in enumerate(PROMPTS) for k in range(3)]


class Counting:
    """A sampler that counts its batches, and can be killed before one of them."""

    def __init__(self, killed_at=None, rows_at_a_time=4):
        self.inner = HFSampler(make_model(), make_tokenizer(), "digest", rows_at_a_time)
        self.batches, self.killed_at = [], killed_at

    def sample(self, requests, settings):
        if len(self.batches) == self.killed_at:
            raise KeyboardInterrupt
        self.batches.append(len(requests))
        return self.inner.sample(requests, settings)


def draw_all(sampler, parts, batch_size=4):
    def to_row(i, response):
        return {"i": i, "ids": response.token_ids, "logprobs": response.token_logprobs, "finish": response.finish}

    return draw(sampler, REQUESTS, SETTINGS, batch_size=batch_size, parts=parts, description="drawing", to_row=to_row)


def test_every_request_is_in_one_batch_longest_prompts_first_equal_ones_together():
    batches = plan_batches(REQUESTS, 4)
    assert sorted(i for batch in batches for i in batch) == list(range(15))
    assert [len(batch) for batch in batches] == [4, 4, 4, 3]
    order = [REQUESTS[i].prompt_ids for batch in batches for i in batch]
    assert [len(prompt) for prompt in order] == [4] * 6 + [3] * 3 + [2] * 6
    assert order[:3] == [(256, 2, 3, 4)] * 3
    assert order[9:] == [(256, 1)] * 6


def test_the_plan_is_a_function_of_the_inputs():
    digest = plan_digest(REQUESTS, SETTINGS, 4)
    assert plan_digest(list(REQUESTS), SETTINGS, 4) == digest
    assert plan_batches(REQUESTS, 4) == plan_batches(tuple(REQUESTS), 4)
    other_seed = [Request(REQUESTS[0].prompt_ids, 1), *REQUESTS[1:]]
    others = [
        plan_digest(REQUESTS, SETTINGS, 5),
        plan_digest(other_seed, SETTINGS, 4),
        plan_digest(REQUESTS[1:], SETTINGS, 4),
        plan_digest(REQUESTS, SamplingSettings(1.1, 0, 1.0, 6), 4),
        plan_digest(REQUESTS, SamplingSettings(1.0, 0, 1.0, 7), 4),
    ]
    assert len({digest, *others}) == 6


def test_rows_come_in_the_order_of_the_requests(tmp_path):
    sampler = Counting()
    rows = draw_all(sampler, tmp_path)
    assert [row["i"] for row in rows] == list(range(15))
    assert sampler.batches == [4, 4, 4, 3]
    assert len({tuple(row["ids"]) for row in rows}) > 10


@pytest.mark.parametrize("rows_at_a_time", [4, 2])
@pytest.mark.parametrize("killed_at", [0, 1, 3])
def test_a_killed_drawing_goes_on_where_it_was_bitwise(tmp_path, killed_at, rows_at_a_time):
    """With 2 rows at a time the rows of a batch make room for each other, and a batch begins with none of another's."""
    expected = draw_all(Counting(rows_at_a_time=rows_at_a_time), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        draw_all(Counting(killed_at, rows_at_a_time), tmp_path / "killed")
    rest = Counting(rows_at_a_time=rows_at_a_time)
    assert draw_all(rest, tmp_path / "killed") == expected
    assert len(rest.batches) == 4 - killed_at


def test_lost_parts_are_drawn_again_and_the_others_are_read(tmp_path):
    expected = draw_all(Counting(), tmp_path)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 4
    for lost in (parts[1], parts[3]):
        lost.unlink()
    rest = Counting()
    assert draw_all(rest, tmp_path) == expected
    assert rest.batches == [4, 3]


def test_drawing_does_not_touch_the_global_random_state(tmp_path):
    sampler = Counting()
    state = torch.get_rng_state()
    draw_all(sampler, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
