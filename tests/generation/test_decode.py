"""The decoding loop draws what `generate` draws, and computes no token that is not part of an answer or a prompt."""

from types import SimpleNamespace

import pytest
import torch

from conftest import make_model, make_tokenizer
from naysay.generation import decode as decode_module
from naysay.generation import shared_attention
from naysay.generation.decode import ROWS_AT_A_TIME, _rows_that_suit, decode, why_not
from naysay.generation.hf import HFSampler
from naysay.generation.sampler import Request, SamplingSettings
from naysay.generation.seeds import row_seed

COVERED = ["llama", "llama_tied", "qwen2", "qwen3", "gpt2", "gpt_neox", "mistral_sliding", "gemma3"]
PROMPTS = [(256, *range(n, 3 * n)) for n in (9, 1, 4, 6)] + [(256,)]
MIXED = [PROMPTS[i] for i in (0, 1, 2, 0, 3, 0, 4, 2, 0, 1, 3, 3, 0, 2, 0, 4, 1, 0, 3, 0)]
REQUESTS = [Request(prompt, row_seed(0, "p", index)) for index, prompt in enumerate(MIXED)]
TRUNCATED = SamplingSettings(temperature=0.8, top_k=20, top_p=0.9, max_new_tokens=14)
WHOLE = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=14)


def ragged(kind="llama", dtype=torch.float64):
    """A model whose answers end anywhere from the first token to the limit: every twelfth token ends one."""
    model = make_model(kind, dtype=dtype)
    model.generation_config.eos_token_id = list(range(0, 257, 12))
    return model


def sampler(model, rows_at_a_time):
    return HFSampler(model, make_tokenizer(), "digest", rows_at_a_time)


class Watched:
    """What a model's forward was asked: (rows, tokens a row, whether it is a step of the loop)."""

    def __init__(self, model):
        self.model, self.asked, self.stored = model, [], []

    def __enter__(self):
        forward = self.model.forward

        def watching(*args, **kwargs):
            how = kwargs.get("naysay_decode")
            self.asked.append((*kwargs["input_ids"].shape, isinstance(how, shared_attention.Step)))
            if isinstance(how, shared_attention.Step):
                self.stored.append(len(how.prompt_lengths))
            return forward(*args, **kwargs)

        self.model.forward = watching
        return self

    def __exit__(self, *error):
        del self.model.forward


@pytest.mark.parametrize("settings", [TRUNCATED, WHOLE], ids=["truncated", "whole"])
@pytest.mark.parametrize("kind", COVERED)
def test_rows_that_come_and_go_are_drawn_as_generate_draws_them(kind, settings):
    model = ragged(kind)
    assert why_not(model) == ""
    found = sampler(model, 5).sample(REQUESTS, settings)
    expected = sampler(model, 5)._sample_with_generate(REQUESTS, settings)
    assert [(r.token_ids, r.finish) for r in found] == [(r.token_ids, r.finish) for r in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-4)
    assert {r.finish for r in found} == {"stop", "length"}
    assert len({len(r.token_ids) for r in found}) > 4


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_float32_too(kind):
    model = ragged(kind, torch.float32)
    found = sampler(model, 5).sample(REQUESTS, TRUNCATED)
    expected = sampler(model, 5)._sample_with_generate(REQUESTS, TRUNCATED)
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 7, 128])
def test_how_many_rows_are_computed_together_changes_last_bits_only(rows_at_a_time):
    model = ragged()
    expected = sampler(model, 5).sample(REQUESTS, TRUNCATED)
    found = sampler(model, rows_at_a_time).sample(REQUESTS, TRUNCATED)
    assert [(r.token_ids, r.finish) for r in found] == [(r.token_ids, r.finish) for r in expected]
    assert sampler(model, rows_at_a_time).sample(REQUESTS, TRUNCATED) == found


def test_nothing_is_computed_for_nothing():
    """Each step computes the rows that are being drawn, at most as many as there are places; each prompt once."""
    model = ragged()
    why_not(model)
    with Watched(model) as watched:
        responses = sampler(model, 6).sample(REQUESTS, TRUNCATED)
    steps = [rows for rows, _, step in watched.asked if step]
    assert sum(steps) == sum(len(response.token_ids) for response in responses)
    assert max(steps) == 6
    assert steps.count(6) > len(steps) / 3  # kept full while rows wait
    assert all(tokens == 1 for _, tokens, step in watched.asked if step)
    prefilled = [(rows, tokens) for rows, tokens, step in watched.asked if not step]
    assert sum(rows for rows, _ in prefilled) in {len(PROMPTS), len(PROMPTS) - 1}  # one has a single token
    assert len(watched.asked) < 14 * len(REQUESTS) / 2


def test_rows_of_long_prompts_wait_until_the_keys_of_others_are_gone(monkeypatch):
    model = ragged()
    expected = sampler(model, 20).sample(REQUESTS, TRUNCATED)
    monkeypatch.setattr(decode_module, "_PROMPT_TOKENS", 40)  # two prompts of the longest one's 19 tokens
    with Watched(model) as watched:
        found = sampler(model, 20).sample(REQUESTS, TRUNCATED)
    assert max(watched.stored) == 2
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]
    monkeypatch.setattr(decode_module, "_PROMPT_TOKENS", 1)  # there is always place for one
    assert [r.token_ids for r in sampler(model, 20).sample(REQUESTS, TRUNCATED)] == [r.token_ids for r in expected]


def test_long_prompts_are_computed_in_parts_of_the_token_budget(monkeypatch):
    model = ragged()
    expected = sampler(model, 20).sample(REQUESTS, TRUNCATED)
    monkeypatch.setattr(decode_module, "token_budget", lambda configured, device: 20)
    with Watched(model) as watched:
        found = sampler(model, 20).sample(REQUESTS, TRUNCATED)
    assert max(rows * tokens for rows, tokens, step in watched.asked if not step) <= 20
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]


def test_a_loop_whose_logits_differ_is_not_used(monkeypatch, caplog):
    model = ragged()
    expected = sampler(model, 5)._sample_with_generate(REQUESTS, TRUNCATED)
    weigh = shared_attention._weigh
    monkeypatch.setattr(shared_attention, "_weigh", lambda *args: (weigh(*args)[0] * 1.01, weigh(*args)[1]))
    with caplog.at_level("WARNING", logger="naysay.generation.decode"):
        assert sampler(model, 5).sample(REQUESTS, TRUNCATED) == expected
    assert "LlamaForCausalLM: sharing a prompt changes log-probs by up to" in caplog.text


def test_the_model_attends_as_before_afterwards_even_after_an_error():
    model = ragged()
    ids = torch.tensor([[5, 6, 7]])
    before, name = model(input_ids=ids).logits, model.config._attn_implementation
    sampler(model, 5).sample(REQUESTS, TRUNCATED)

    def failing(logits, rows):
        raise KeyError

    with pytest.raises(KeyError):
        decode(model, MIXED, failing, lambda row: True, length=1)
    assert model.config._attn_implementation == name
    assert torch.equal(model(input_ids=ids).logits, before)


def test_an_adapter_is_sampled_from():
    """Through peft, with the group forward bound: what redrawing anchors in training does."""
    from peft import LoraConfig, get_peft_model

    from naysay.modeling.forward import enable_group_forward

    base = ragged(dtype=torch.float32)
    plain = sampler(base, 5).sample(REQUESTS, TRUNCATED)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    enable_group_forward(model)
    assert why_not(model) == ""
    found = sampler(model, 5).sample(REQUESTS, TRUNCATED)
    assert [r.token_ids for r in found] != [r.token_ids for r in plain]
    expected = sampler(model, 5)._sample_with_generate(REQUESTS, TRUNCATED)
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]
    for parameter in model.parameters():
        assert not parameter.is_inference()


@pytest.mark.parametrize(("length", "rows"), [(8, 2048), (1024, 64), (10**6, 1)])
def test_a_gpu_takes_as_many_rows_as_an_eighth_of_its_memory_holds(length, rows, monkeypatch):
    weight = SimpleNamespace(device=torch.device("cuda"), element_size=lambda: 2)
    model = SimpleNamespace(parameters=lambda: iter([weight]), config=make_model().config)
    # Two layers of two key heads of eight numbers, keys and values, two bytes each: 128 bytes a token.
    memory = SimpleNamespace(total_memory=8 * 128 * 1024 * 64)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert _rows_that_suit(model, length) == rows
    assert _rows_that_suit(make_model(), length) == ROWS_AT_A_TIME
