"""The enumerated world: every probability against a slow oracle that walks letter by letter."""

import math

import pytest
import torch

from naysay.lab.world import (
    BENIGN,
    HARMFUL,
    JUNK,
    LETTERS,
    LONGEST,
    annotated,
    answer_logps,
    answer_unlikelihoods,
    choice_logps,
    entropy,
    jeffrey,
    kind_of,
    kl,
    make_world,
    mass,
    only,
    random_policies,
    tilted,
)

WORLD = make_world()
THETA = random_policies(3, torch.Generator().manual_seed(5))
LOGP = answer_logps(WORLD, THETA)


def path_of(text: str) -> list[tuple[int, int]]:
    """(state, choice) pairs of an answer: state 0 is the start, choice 4 the end."""
    choices = [LETTERS.index(letter) for letter in text] + ([4] if len(text) < LONGEST else [])
    states = [0] + [choice + 1 for choice in choices]
    return list(zip(states[: len(choices)], choices, strict=True))


def test_there_are_84_answers_and_their_probabilities_sum_to_1():
    assert len(set(WORLD.texts)) == 4 + 16 + 64
    assert torch.all((LOGP.exp().sum(-1) - 1).abs() < 1e-12)


def test_the_harm_function():
    kinds = {text: kind_of(text) for text in ("cd", "dac", "ccd", "c", "adb", "aa", "cc", "acc", "aba")}
    assert kinds == {
        "cd": HARMFUL,
        "dac": HARMFUL,
        "ccd": HARMFUL,
        "c": BENIGN,
        "adb": BENIGN,
        "aa": JUNK,
        "cc": JUNK,
        "acc": JUNK,
        "aba": BENIGN,
    }
    assert torch.bincount(WORLD.kinds).tolist() == [36, 20, 28]


def test_log_probs_and_unlikelihoods_letter_by_letter():
    steps = choice_logps(THETA)
    unlikelihoods = answer_unlikelihoods(WORLD, THETA)
    for row, text in enumerate(WORLD.texts):
        path = path_of(text)
        assert WORLD.tokens[row] == len(path)
        for policy in range(3):
            for prompt in range(2):
                taken = [float(steps[policy, prompt, state, choice]) for state, choice in path]
                assert float(LOGP[policy, prompt, row]) == pytest.approx(sum(taken), abs=1e-12)
                against = sum(math.log1p(-math.exp(value)) for value in taken)
                assert float(unlikelihoods[policy, prompt, row]) == pytest.approx(against, abs=1e-12)


def test_prompts_share_the_table():
    """A gradient that comes from an answer to one prompt changes answers to the other."""
    theta = THETA.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(answer_logps(WORLD, theta)[0, 0, WORLD.texts.index("cd")], theta)
    moved = answer_logps(WORLD, THETA - 0.1 * gradient)[0, 1, WORLD.texts.index("cd")]
    assert float(moved) < float(LOGP[0, 1, WORLD.texts.index("cd")]) - 1e-3


def test_masses_and_divergences():
    masses = torch.stack([mass(WORLD, LOGP, kind) for kind in (BENIGN, HARMFUL, JUNK)])
    assert torch.all((masses.sum(0) - 1).abs() < 1e-12)
    other = LOGP.roll(1, 0)
    p, q = LOGP.exp(), other.exp()
    assert torch.allclose(kl(LOGP, other), (p * torch.log(p / q)).sum(-1), atol=1e-12)
    assert torch.allclose(jeffrey(LOGP, other), kl(LOGP, other) + kl(other, LOGP), atol=1e-12)
    assert torch.allclose(entropy(LOGP), math.log(84) - kl(LOGP, torch.full_like(LOGP, -math.log(84))), atol=1e-12)
    assert torch.allclose(only(WORLD, LOGP, BENIGN).exp().sum(-1), torch.ones(3, 2, dtype=torch.float64))


def test_tilting_moves_the_log_odds_of_harm():
    harmful = WORLD.kinds == HARMFUL

    def log_odds(logp):
        p = logp.exp()[..., harmful].sum(-1)
        return torch.log(p / (1 - p))

    assert torch.allclose(log_odds(tilted(WORLD, LOGP, -1.5)) - log_odds(LOGP), torch.full((3, 2), -1.5).double())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_annotator_is_wrong_as_often_as_told(share):
    negatives = annotated(WORLD, LOGP, share)
    harmful = WORLD.kinds == HARMFUL
    assert torch.allclose(negatives.sum(-1), torch.ones(3, 2, dtype=torch.float64))
    assert torch.allclose(negatives[..., ~harmful].sum(-1), torch.full((3, 2), share).double())
    if share < 1:  # within the harmful answers the policy's own proportions stay
        ratio = negatives[..., harmful] / LOGP.exp()[..., harmful]
        assert torch.allclose(ratio, ratio[..., :1].expand_as(ratio))
