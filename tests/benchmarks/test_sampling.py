"""The sampling benchmark: both sides draw the same number of answers, tokens and operations are counted by hand."""

import pytest
import torch

from benchmarks import sampling as benchmark
from conftest import make_model, make_tokenizer
from naysay.config.model import ModelConfig
from naysay.generation.hf import HFSampler
from naysay.generation.sampler import SamplingSettings


@pytest.fixture
def tiny(monkeypatch):
    """3 answers of at most 5 tokens to prompts of 4, of a random model that ends some of them early."""
    model = make_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[257] *= 3
    monkeypatch.setattr(benchmark, "load_model", lambda config: model if config == ModelConfig() else None)
    monkeypatch.setattr(benchmark, "load_tokenizer", lambda config: make_tokenizer())
    monkeypatch.setattr(benchmark, "matmul_rate", lambda threads: 2e9)
    settings = SamplingSettings(temperature=0.7, top_k=50, top_p=0.9, max_new_tokens=5)
    for name, value in {"K": 3, "PROMPT_TOKENS": 4, "NEW_TOKENS": 5, "SETTINGS": settings, "PROMPTS": 4}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "random_prompts", lambda count: [(i, 7, 8, 9) for i in range(count)])
    return model


def test_both_sides_draw_as_many_answers_of_the_same_prompts(tiny, monkeypatch):
    counts = []
    forward = HFSampler.sample
    monkeypatch.setattr(
        HFSampler, "sample", lambda self, *given: [counts.append(r) or r for r in forward(self, *given)]
    )
    drawn = benchmark.draw(HFSampler(tiny, make_tokenizer(), "d"), benchmark.random_prompts(2))
    assert len(counts) == 6
    assert drawn == sum(len(response.token_ids) for response in counts)
    tiny.generation_config.eos_token_id = 300  # never drawn
    assert benchmark.generate(tiny, benchmark.random_prompts(2), 1) == 2 * 3 * 5


def test_what_follows_an_end_of_text_does_not_count(tiny, monkeypatch):
    answers = torch.tensor([[4, 257, 258, 258, 258], [4, 5, 6, 7, 8], [257, 258, 258, 258, 258]])
    monkeypatch.setattr(tiny, "generate", lambda input_ids, **kwargs: torch.cat([input_ids.expand(3, -1), answers], 1))
    assert benchmark.generate(tiny, benchmark.random_prompts(1), 1) == 2 + 5 + 1


def test_a_ratio_is_of_neighbours_in_time(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "PROMPTS_A_TURN", 3)
    asked, given = [], iter([(100, 1.0), (50, 1.0), (120, 1.0), (40, 1.0)])

    def timed(run, *arguments):
        asked.append((run.__name__, [prompt[0] for prompt in arguments[1]]))
        return next(given)

    monkeypatch.setattr(benchmark, "timed", timed)
    (found,) = benchmark.sampling(tmp_path / "none.json", quick=False, threads=1)
    assert asked == [("draw", [0, 1, 2]), ("generate", [0, 1, 2]), ("draw", [3]), ("generate", [3])]
    assert found["ratio"] == 2.5
    assert found["ratio_range"] == [2.0, 3.0]
    assert found["tokens_per_second"] == [110.0, 45.0]
    assert found["generate_prompts_a_call"] == 2
    assert found["prompts_a_turn"] == 3
    assert found["share_of_matmul_rate"] == pytest.approx(benchmark.needed_flops(tiny, 4, 220) / 2.0 / 2e9)
    assert "2 prompts a call, 45: 2.50x [2.00, 3.00] (target 2.2x); " in found["text"]


def test_flops_by_hand(tiny):
    body = sum(p.numel() for name, p in tiny.named_parameters() if "proj" in name)
    pairs = 2 * 10 + 30 * (4 + 3)  # of two prompts, and 30 tokens at the 5 places of an answer
    assert benchmark.needed_flops(tiny, 2, 30) == 2 * body * (2 * 4 + 30) + 2 * 259 * 32 * 30 + 4 * pairs * 32 * 2


def test_generate_gets_the_number_of_prompts_that_was_found_for_it(tiny, monkeypatch, tmp_path):
    settings = tmp_path / "peer.json"
    assert benchmark.peer_prompts(settings) == 2
    monkeypatch.setattr(benchmark, "PEER_PROMPTS", (1, 8))
    rates = iter([(10, 1.0), (30, 1.0)])
    asked = []
    monkeypatch.setattr(
        benchmark, "timed", lambda run, model, prompts, batch: asked.append(len(prompts)) or next(rates)
    )
    benchmark.tune_generate(settings, threads=1)
    assert asked == [4, 8]
    assert benchmark.peer_prompts(settings) == 8
