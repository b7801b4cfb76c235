"""`HFSampler`: shared prompts, any company in the batch and the model's own generation settings change nothing."""

import pytest
import torch
from transformers import DynamicCache

from conftest import make_model, make_tokenizer
from naysay.generation.hf import HFSampler
from naysay.generation.sampler import Request, SamplingSettings
from naysay.generation.seeds import row_seed
from naysay.generation.truncation import truncated_logprobs

END = 257
SETTINGS = SamplingSettings(temperature=0.8, top_k=20, top_p=0.9, max_new_tokens=12)
A, B, C = (256, 5, 9, 33), (256, 70, 71, 72, 73, 74, 75, 76), (256,)


def requests(*prompts):
    return [Request(prompt, row_seed(0, str(prompt), index)) for index, prompt in enumerate(prompts)]


def likes_to_end():
    """A float64 model that ends an answer after a few tokens more often than not."""
    model = make_model(dtype=torch.float64)
    with torch.no_grad():
        model.get_output_embeddings().weight[END] *= 3
    return model


def sampler(model):
    return HFSampler(model, make_tokenizer(), "digest")


@pytest.fixture(scope="module")
def model():
    return likes_to_end()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_sharing_a_prompt_gives_the_same_answers(kind):
    """Through the loop, through `generate` with shared keys and values, and through `generate` without."""
    model = make_model(kind, dtype=torch.float64)
    mixed = requests(A, B, A, C, B, A, A)
    answers = [sampler(model).sample(mixed, SETTINGS), sampler(model)._sample_with_generate(mixed, SETTINGS)]
    apart = sampler(model)
    apart._shared_cache = lambda *arguments: None
    answers.append(apart._sample_with_generate(mixed, SETTINGS))
    together, library, alone = ([response.token_ids for response in found] for found in answers)
    assert together == library == alone
    assert len(set(together)) > 3


def test_generate_computes_a_shared_prompt_once(model):
    """7 requests for 3 prompts: the forward over the prompts has 3 rows, and `generate` gets their keys and values."""
    rows, caches = [], []
    mine = sampler(model)
    forward, generate = model.forward, model.generate

    def counting(*args, **kwargs):
        rows.append(kwargs["input_ids"].shape)
        return forward(*args, **kwargs)

    def watching(**kwargs):
        caches.append(kwargs.get("past_key_values"))
        return generate(**kwargs)

    model.forward, model.generate = counting, watching
    try:
        mine._sample_with_generate(requests(A, B, A, C, B, A, A), SETTINGS)
    finally:
        del model.forward, model.generate
    assert rows[0] == (3, len(B) - 1)
    assert isinstance(caches[0], DynamicCache)
    assert all(shape == (7, 1) for shape in rows[1:])


def test_an_answer_does_not_depend_on_the_rest_of_the_batch(model):
    many = requests(A, B, C, A, B, C)
    together = sampler(model).sample(many, SETTINGS)
    alone = [sampler(model).sample([request], SETTINGS)[0] for request in many]
    backwards = sampler(model).sample(many[::-1], SETTINGS)[::-1]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone] == [r.token_ids for r in backwards]
    for one, other in zip(together, alone, strict=True):
        assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-4)


def test_another_seed_gives_another_answer(model):
    first = sampler(model).sample([Request(A, seed) for seed in range(8)], SETTINGS)
    assert len({r.token_ids for r in first}) > 4
    assert sampler(model).sample([Request(A, seed) for seed in range(8)], SETTINGS) == first


def test_the_logprobs_are_those_of_the_truncated_distribution(model):
    for request, response in zip(requests(A, B, A), sampler(model).sample(requests(A, B, A), SETTINGS), strict=True):
        ids = torch.tensor([[*request.prompt_ids, *response.token_ids]])
        logits = model(input_ids=ids).logits[0, len(request.prompt_ids) - 1 : -1].detach()
        logp, tokens = truncated_logprobs(logits, SETTINGS)
        expected = [float(logp[i][tokens[i] == token]) for i, token in enumerate(response.token_ids)]
        assert response.token_logprobs == pytest.approx(expected, abs=1e-4)
        plain = logits.log_softmax(-1)[range(len(response.token_ids)), list(response.token_ids)]
        assert max(response.token_logprobs) <= 1e-6
        assert sum(response.token_logprobs) > float(plain.sum()) + 0.1  # renormalised: larger than the model's own


def test_an_answer_ends_with_the_end_of_turn_or_at_the_limit(model):
    responses = sampler(model).sample(requests(*[A, B] * 12), SETTINGS)
    assert {r.finish for r in responses} == {"stop", "length"}
    for response in responses:
        assert len(response.token_logprobs) == len(response.token_ids)
        assert END not in response.token_ids[:-1]
        if response.finish == "stop":
            assert response.token_ids[-1] == END
        else:
            assert len(response.token_ids) == SETTINGS.max_new_tokens
            assert response.token_ids[-1] != END


def test_the_models_own_generation_settings_change_nothing_and_come_back(model):
    expected = sampler(model).sample(requests(A, B, A), SETTINGS)
    changed = likes_to_end()
    own = changed.generation_config
    own.repetition_penalty, own.temperature, own.do_sample, own.top_k = 5.0, 9.0, True, 1
    own.max_new_tokens, own.no_repeat_ngram_size, own.suppress_tokens = 3, 1, list(range(200))
    assert sampler(changed).sample(requests(A, B, A), SETTINGS) == expected
    assert changed.generation_config is own
    assert own.repetition_penalty == 5.0


def test_every_end_token_of_the_model_ends_an_answer():
    """Some models list two: the template's end of turn and the end of text."""
    model = likes_to_end()
    once = sampler(model).sample([Request(A, seed) for seed in range(20)], SETTINGS)
    other = next(r.token_ids[1] for r in once if len(r.token_ids) > 3)
    model.generation_config.eos_token_id = [other]
    for response in sampler(model).sample([Request(A, seed) for seed in range(20)], SETTINGS):
        assert not {END, other} & set(response.token_ids[:-1])
        assert (response.token_ids[-1] in {END, other}) == (response.finish == "stop")


@pytest.mark.parametrize("kind", ["mamba", "gemma2"])
def test_a_model_that_the_loop_does_not_cover_is_sampled_with_generate_and_a_warning(kind, caplog):
    """State-space layers, and a soft cap on the scores."""
    model = make_model(kind)
    with caplog.at_level("WARNING", logger="naysay.generation.decode"):
        responses = sampler(model).sample(requests(A, A, B), SETTINGS)
        again = sampler(model).sample(requests(A, A, B), SETTINGS)
    (line,) = [record.getMessage() for record in caplog.records]  # once a model
    assert line.startswith(type(model).__name__)
    assert "sampling with transformers' own generate (the same distribution, but slower)" in line
    assert "\n" not in line
    assert again == responses == sampler(model)._sample_with_generate(requests(A, A, B), SETTINGS)
    alone = [sampler(model).sample([request], SETTINGS)[0] for request in requests(A, A, B)]
    assert [r.token_ids for r in responses] == [r.token_ids for r in alone]
