"""`draw_tokens` (and `InverseCdfSampling`) draws from exactly the truncated distribution that its settings describe."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from conftest import make_model, make_tokenizer
from naysay.errors import NonFiniteLogitsError
from naysay.generation import truncation
from naysay.generation.hf import HFSampler, InverseCdfSampling
from naysay.generation.sampler import Request, SamplingSettings
from naysay.generation.seeds import row_seed, uniforms
from naysay.generation.truncation import draw_tokens, truncated_logprobs

LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.5, 1.4, -30.0, 0.0, 0.9], dtype=torch.float64)
ROWS = 20_000


def settings(temperature=1.0, top_k=0, top_p=1.0, steps=1):
    return SamplingSettings(temperature, top_k, top_p, steps)


def exact(logits, temperature, top_k, top_p):
    """The distribution written down plainly: scale, keep the k likeliest, keep the smallest set of mass p."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    weights = [float((logits[i] / temperature).exp()) for i in order]
    if top_k > 0:
        weights = weights[:top_k]
    total, kept, mass = sum(weights), [], 0.0
    for weight in weights:
        kept.append(weight)
        mass += weight / total
        if mass >= top_p:
            break
    result = torch.zeros(len(logits), dtype=torch.float64)
    for i, weight in zip(order, kept, strict=False):
        result[i] = weight / sum(kept)
    return result


CASES = [
    (1.0, 0, 1.0),
    (0.5, 0, 1.0),
    (2.0, 3, 1.0),
    (1.0, 0, 0.6),
    (0.7, 5, 0.9),
    (1.0, 1, 1.0),
    (1.0, 0, 1e-6),
    (1, 99, 1),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CASES)
def test_the_truncated_distribution_is_the_one_described(temperature, top_k, top_p):
    logp, tokens = truncated_logprobs(LOGITS[None], settings(temperature, top_k, top_p))
    found = torch.zeros_like(LOGITS).scatter(0, tokens[0], logp[0].double().exp())
    assert torch.allclose(found, exact(LOGITS, temperature, top_k, top_p), atol=1e-6)
    assert torch.all(logp[0, :-1] >= logp[0, 1:])  # most likely first


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CASES)
def test_many_rows_draw_from_the_exact_distribution(temperature, top_k, top_p):
    seeds = [row_seed(1, "p", index) for index in range(ROWS)]
    processor = InverseCdfSampling(settings(temperature, top_k, top_p), seeds, 3, torch.device("cpu"))
    scores = processor(torch.zeros(ROWS, 3, dtype=torch.long), LOGITS.float().expand(ROWS, -1))
    assert torch.isfinite(scores).sum(1).eq(1).all()  # greedy choice of one finite score = our draw
    drawn = scores.argmax(1)
    expected = exact(LOGITS, temperature, top_k, top_p)
    found = torch.bincount(drawn, minlength=len(LOGITS)).double() / ROWS
    assert found[expected == 0].sum() == 0
    possible = expected > 1e-9
    chi_square = float((ROWS * (found - expected)[possible] ** 2 / expected[possible]).sum())
    assert chi_square < 24.3  # 99.9 % of chi-square with 7 degrees of freedom
    logprobs = processor.logprobs[0]
    assert torch.allclose(logprobs.double(), expected[drawn].log(), atol=1e-5)


def test_each_row_uses_its_own_uniform_of_the_step():
    """Worked by hand on the distribution (0.3, 0.6, 0.1)."""
    seeds = [11, 12]
    processor = InverseCdfSampling(settings(steps=5), seeds, 2, torch.device("cpu"))
    scores = torch.tensor([0.3, 0.6, 0.1]).log().expand(2, -1)
    for step in range(5):
        drawn = processor(torch.zeros(2, 2 + step, dtype=torch.long), scores).argmax(1).tolist()
        # The likeliest token (1) comes first in the cumulative sum, then 0, then 2.
        expected = [[1, 0, 2][int(u >= 0.6) + int(u >= 0.9)] for u in (uniforms(seed, 5)[step] for seed in seeds)]
        assert drawn == expected


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_a_uniform_next_to_one_draws_the_last_allowed_token(top_p):
    processor = InverseCdfSampling(settings(top_p=top_p), [0], 1, torch.device("cpu"))
    processor.uniforms_ST.fill_(1.0)  # what 1 - 2**-53 becomes in float32
    drawn = int(processor(torch.zeros(1, 1, dtype=torch.long), LOGITS.float()[None]).argmax())
    expected = exact(LOGITS, 1.0, 0, top_p)
    assert expected[drawn] > 0
    assert expected[drawn] == expected[expected > 0].min()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (1.0, 0, 0.9), (0.2, 0, 0.9), (1.0, 0, 0.01)]
)
def test_candidates_grow_to_what_the_whole_vocabulary_would_draw(temperature, top_k, top_p):
    """3000 tokens, spread so that the likeliest 256 hold a part of the mass only."""
    asked = settings(temperature, top_k, top_p)
    scores = torch.randn(200, 3000, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(200, generator=torch.Generator().manual_seed(1))
    tokens, logprobs = draw_tokens(scores, uniform, asked)
    logp, order = truncated_logprobs(scores, asked)
    choice = (logp.exp().cumsum(-1) <= uniform[:, None]).sum(-1, keepdim=True)
    assert torch.equal(tokens, order.gather(1, choice)[:, 0])
    assert torch.allclose(logprobs, logp.gather(1, choice)[:, 0], atol=1e-5)


@pytest.mark.parametrize(("top_k", "top_p", "widths"), [(50, 0.9, [50]), (0, 0.9, [256]), (0, 1.0, [256])])
def test_a_peaked_row_is_not_sorted(monkeypatch, top_k, top_p, widths):
    seen = []

    def watching(scores, asked, candidates):
        found = truncated_logprobs(scores, asked, candidates)
        seen.append(found[0].shape[1])
        return found

    monkeypatch.setattr(truncation, "truncated_logprobs", watching)
    scores = torch.full((4, 3000), -20.0)
    scores[:, 7], scores[:, 9] = 3.0, 2.0
    tokens, _ = draw_tokens(scores, torch.tensor([0.1, 0.5, 0.8, 0.9]), settings(1.0, top_k, top_p))
    assert tokens.tolist() == [7, 7, 9, 9]  # the two hold 0.731 and 0.269
    assert seen == widths


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.8, 0, 1.0), (0.7, 5, 0.9), (1.0, 0, 0.6)])
def test_the_first_two_tokens_have_their_exact_probabilities(temperature, top_k, top_p):
    """20 thousand rows against the 64 pairs of an enumerated vocabulary of 8."""
    model = make_model(vocab_size=8, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    prompt, count = (3, 5, 4), 20_000
    requests = [Request(prompt, row_seed(5, "p", index)) for index in range(count)]
    responses = HFSampler(model, make_tokenizer(), "digest", 4000).sample(
        requests, SamplingSettings(temperature, top_k, top_p, 2)
    )
    counts = np.zeros((8, 8))
    np.add.at(counts, tuple(np.array([response.token_ids for response in responses]).T), 1)
    with torch.inference_mode():
        first = exact(model(torch.tensor([prompt])).logits[0, -1].double(), temperature, top_k, top_p)
        after = model(torch.tensor([[*prompt, token] for token in range(8)])).logits[:, -1].double()
    second = torch.stack([exact(logits, temperature, top_k, top_p) for logits in after])
    expected = count * (first[:, None] * second).numpy()
    assert counts[expected == 0].sum() == 0
    rare = (expected > 0) & (expected < 5)  # pooled: chi-square wants at least 5 in a cell
    cells = [
        *zip(counts[expected >= 5], expected[expected >= 5], strict=True),
        (counts[rare].sum(), expected[rare].sum()),
    ]
    statistic = sum((found - wanted) ** 2 / wanted for found, wanted in cells if wanted > 0)
    assert statistic < chi2.ppf(0.999, len(cells) - 1)
    assert len(cells) > 8


@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("bad", [[float("nan")], [float("inf")], [float("nan")] * 3000, [-float("inf")] * 3000])
def test_scores_that_are_not_finite_are_refused(top_k, top_p, bad):
    scores = torch.randn(3, 3000, generator=torch.Generator().manual_seed(0))
    scores[1, : len(bad)] = torch.tensor(bad)
    with pytest.raises(NonFiniteLogitsError, match="NaN or infinite in 1 of 3 rows"):
        draw_tokens(scores, torch.tensor([0.1, 0.5, 0.9]), settings(1.0, top_k, top_p))


@pytest.mark.parametrize("top_k", [0, 5])
def test_a_forbidden_token_is_no_broken_score(top_k):
    scores = torch.full((2, 300), -torch.inf)
    scores[:, 7] = 1.0
    tokens, logprobs = draw_tokens(scores, torch.tensor([0.1, 0.99]), settings(1.0, top_k, 0.9))
    assert tokens.tolist() == [7, 7]
    assert logprobs.tolist() == [0.0, 0.0]
