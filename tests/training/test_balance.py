"""Ranks of an optimizer step get about equal costs, and the step has the groups that it has anyway."""

import random

import pytest

from naysay.training.balance import Dealing, deal_evenly
from naysay.training.data import GroupSampler


def heavy_tailed(count, seed=0):
    """Tokens of groups: log-normal, the dearest in a hundred about ten times the median."""
    generator = random.Random(seed)
    return [1 + round(generator.lognormvariate(6.0, 1.0)) for _ in range(count)]


def rank_costs(order, costs, dealt):
    """[steps][ranks] costs, as the loader deals the batches: one after another round the ranks."""
    batches = [order[i : i + dealt.groups] for i in range(0, len(order), dealt.groups)]
    steps = [
        batches[i : i + dealt.ranks * dealt.accumulated] for i in range(0, len(batches), dealt.step // dealt.groups)
    ]
    return [
        [
            sum(costs[i % len(costs)] for batch in step[rank :: dealt.ranks] for i in batch)
            for rank in range(dealt.ranks)
        ]
        for step in steps
    ]


def imbalance(by_step):
    """Time of the slowest rank over that of even ones, where time is cost and ranks wait after each step."""
    return sum(map(max, by_step)) / sum(sum(step) / len(step) for step in by_step)


@pytest.mark.parametrize("dealt", [Dealing(2, 8), Dealing(4, 8), Dealing(8, 16), Dealing(4, 4, 4)], ids=str)
def test_heavy_tailed_groups_are_dealt_evenly(dealt):
    """Measured in this order: 1.23, 1.43, 1.44, 1.29 in the order of the permutation; 1.02, 1.03, 1.01, 1.00 dealt."""
    costs = heavy_tailed(dealt.step * 50)
    permuted = list(GroupSampler(costs, seed=1, dealt=Dealing(1, dealt.step)))
    evenly = list(GroupSampler(costs, seed=1, dealt=dealt))
    assert imbalance(rank_costs(permuted, costs, dealt)) > 1.2
    assert imbalance(rank_costs(evenly, costs, dealt)) < 1.1
    for start in range(0, len(costs), dealt.step):
        assert sorted(permuted[start : start + dealt.step]) == sorted(evenly[start : start + dealt.step])


def test_batches_of_like_cost_meet():
    order = deal_evenly([10, 10, 9, 9, 8, 8, 3, 3, 2, 2, 1, 1], Dealing(2, 2, 3))
    assert order == [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11]


def test_a_group_above_a_ranks_share_gets_the_cheapest_beside_it():
    costs = [1, 9, 2, 3]
    order = deal_evenly(costs, Dealing(2, 2))
    assert order == [1, 0, 3, 2]
    assert rank_costs(order, costs, Dealing(2, 2)) == [[10, 5]]


def test_the_order_is_a_function_of_seed_epoch_and_costs():
    costs = heavy_tailed(30)
    orders = []
    for epoch in (0, 0, 1):
        sampler = GroupSampler(costs, seed=2, dealt=Dealing(2, 4))
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[1] != orders[2]
    assert sorted(i for i in orders[0] if i < 30) == list(range(30))
    assert sum(i >= 30 for i in orders[0]) == 2
