"""Enumeration over anchors, against tuples in every order, and the library's own identities in this setting."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from naysay.lab.exact import (
    anchor_sets,
    expected_loss,
    limit_loss,
    margin_identity,
    mean_margin,
    random_instance,
    set_probabilities,
    variance_of_ratio,
)

INSTANCE = random_instance(4, torch.Generator().manual_seed(3), alpha=0.7, beta=1.9)


def tuples(size: int) -> list[tuple[float, float]]:
    """(probability, mean log-ratio) of every tuple of anchors, in plain Python."""
    s, ratio = INSTANCE.sampler.exp().tolist(), (INSTANCE.policy - INSTANCE.negative).tolist()
    return [
        (math.prod(s[i] for i in chosen), sum(ratio[i] for i in chosen) / size)
        for chosen in itertools.product(range(4), repeat=size)
    ]


def over_negatives(anchor_mean: float) -> float:
    total = 0.0
    for share, ratio in zip(
        INSTANCE.annotator.exp().tolist(), (INSTANCE.policy - INSTANCE.positive).tolist(), strict=True
    ):
        total += share * math.log1p(math.exp(-(INSTANCE.beta * anchor_mean - INSTANCE.alpha * ratio)))
    return total


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_expected_loss_is_that_of_all_tuples(size):
    by_hand = sum(probability * over_negatives(mean) for probability, mean in tuples(size))
    assert expected_loss(INSTANCE, size) == pytest.approx(by_hand, abs=1e-12)


def test_limit_loss_is_that_of_the_mean():
    mean = sum(probability * ratio for probability, ratio in tuples(1))
    assert limit_loss(INSTANCE) == pytest.approx(over_negatives(mean), abs=1e-12)


def test_the_loss_goes_to_its_limit():
    gaps = [expected_loss(INSTANCE, size) - limit_loss(INSTANCE) for size in (4, 8, 16)]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.15)


def test_multisets_are_all_there_with_their_probabilities():
    index, log_orders = anchor_sets(4, 5)
    assert len(index) == math.comb(8, 5)
    assert float(log_orders.exp().sum()) == pytest.approx(4**5)
    assert float(set_probabilities(INSTANCE.sampler, index, log_orders).sum()) == pytest.approx(1, abs=1e-12)
    assert anchor_sets(4, 0)[0].shape == (1, 0)


def test_the_margin_identity_needs_every_one_of_its_terms():
    """Exact with the right references, off by much with r⁻ and r⁺ exchanged."""
    assert mean_margin(INSTANCE, 3) == pytest.approx(margin_identity(INSTANCE), abs=1e-12)
    exchanged = replace(INSTANCE, negative=INSTANCE.positive, positive=INSTANCE.negative)
    assert abs(mean_margin(INSTANCE, 3) - margin_identity(exchanged)) > 0.05


def test_variance_of_the_log_ratio():
    mean = sum(probability * ratio for probability, ratio in tuples(1))
    by_hand = sum(probability * (ratio - mean) ** 2 for probability, ratio in tuples(1))
    assert variance_of_ratio(INSTANCE) == pytest.approx(by_hand, abs=1e-12)
