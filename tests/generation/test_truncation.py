"""`InverseCdfSampling` draws from exactly the truncated distribution that its settings describe."""

import pytest
import torch

from naysay.generation.hf import InverseCdfSampling, truncated_logprobs
from naysay.generation.sampler import SamplingSettings
from naysay.generation.seeds import row_seed, uniforms

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
