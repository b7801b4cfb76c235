"""Training in the world: what an objective is given, and the identities that tie objectives together on a path."""

import math

import pytest
import torch

from naysay.core.objective import d2o_loss
from naysay.lab.learning import (
    Course,
    Draws,
    References,
    balanced_prompts,
    draw,
    harm_left,
    make_batch,
    objectives,
    prepare,
    ratio_summary,
    summary,
    train,
)
from naysay.lab.world import annotated, answer_logps, answer_unlikelihoods, make_world, random_policies

WORLD = make_world()
START = random_policies(3, torch.Generator().manual_seed(1))
INITIAL = answer_logps(WORLD, START)
SAME = References(INITIAL, INITIAL)


def data(groups=6, anchors=4, seed=2) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    prompts = balanced_prompts(3, groups)
    return Draws(
        prompts,
        draw(annotated(WORLD, INITIAL, 0.0), prompts, 1, generator)[..., 0],
        draw(INITIAL.exp(), prompts, anchors, generator),
        draw(annotated(WORLD, INITIAL, 1.0), prompts, 1, generator),
    )


def path(name, *, beta=1.0, draws=None, references=SAME, **settings):
    settings = {"steps": 12, "rate": 0.2} | settings
    return train(WORLD, START, references, draws or data(), objectives(beta)[name], **settings).path


def test_every_group_gets_its_own_log_probs_and_the_references_are_crossed():
    negative, positive = answer_logps(WORLD, START + 0.3), answer_logps(WORLD, START.flip(1))
    draws = data()
    batch = make_batch(START, prepare(WORLD, References(negative=negative, positive=positive), draws))
    unlikelihood = answer_unlikelihoods(WORLD, START)
    for policy in range(3):
        for group in range(6):
            row, prompt = policy * 6 + group, int(draws.prompts[policy, group])
            bad = int(draws.negatives[policy, group])
            assert batch.group.negatives[row, 0] == INITIAL[policy, prompt, bad]
            assert batch.group.ref_negatives[row, 0] == positive[policy, prompt, bad]
            assert batch.negative_tokens[row, 0] == WORLD.tokens[bad]
            assert batch.negative_unlikelihood[row, 0] == unlikelihood[policy, prompt, bad]
            for place, answer in enumerate(draws.anchors[policy, group].tolist()):
                assert batch.group.anchors[row, place] == INITIAL[policy, prompt, answer]
                assert batch.group.ref_anchors[row, place] == negative[policy, prompt, answer]
            assert draws.chosen is not None
            good = int(draws.chosen[policy, group, 0])
            assert batch.chosen.logps[row, 0] == INITIAL[policy, prompt, good]
            assert batch.chosen.ref_logps[row, 0] == negative[policy, prompt, good]
            assert batch.chosen.tokens[row, 0] == WORLD.tokens[good]


def test_policies_do_not_touch_each_other():
    alone = Draws(*(part[1:2] for part in (data().prompts, data().negatives, data().anchors)))
    own = References(INITIAL[1:2], INITIAL[1:2])
    single = train(WORLD, START[1:2], own, alone, objectives(1.0)["d2o"], steps=12, rate=0.2).path
    assert torch.allclose(single[:, 0], path("d2o")[:, 1], atol=1e-12)


def test_dpo_on_the_first_anchor_is_dpo_self_and_d2o_with_one_anchor():
    draws = data(anchors=1)
    chosen_is_anchor = Draws(draws.prompts, draws.negatives, draws.anchors, draws.anchors)
    one = path("d2o", draws=draws)
    assert torch.allclose(one, path("dpo_self", draws=draws), atol=1e-12)
    assert torch.allclose(one, path("dpo", draws=chosen_is_anchor), atol=1e-12)


def test_at_small_beta_d2o_and_altpo_take_the_same_path():
    small = 1e-4
    d2o = path("d2o", beta=small, rate=0.2 / small)
    assert torch.allclose(d2o, path("altpo", beta=small, rate=0.2 / small, scale=small / 2), atol=1e-3)
    assert float((d2o[-1] - d2o[0]).norm()) > 0.5


def test_the_scales_that_make_steps_comparable():
    """β = 0 makes D²O (α/2)·NPO on the whole path, and GA at scale α/2 takes the same first step."""
    draws, alpha = data(), 1.0
    without_anchors = train(
        WORLD,
        START,
        SAME,
        draws,
        lambda batch: d2o_loss(batch.group, alpha=alpha, beta=0.0),
        steps=12,
        rate=0.2,
    ).path
    assert torch.allclose(without_anchors, path("npo", scale=alpha / 2), atol=1e-12)
    assert torch.allclose(without_anchors[1], path("ga", scale=alpha / 2, steps=1)[1], atol=1e-12)
    assert float((path("ga", scale=alpha / 2)[-1] - without_anchors[-1]).norm()) > 0.1


def test_anchors_equal_to_the_negative_cancel_it():
    draws = data()
    cancelled = Draws(draws.prompts, draws.negatives, draws.negatives[..., None].expand(-1, -1, 4))
    assert torch.allclose(path("d2o", draws=cancelled)[-1], START, atol=1e-12)


def test_unit_speed_moves_by_the_rate_whatever_the_scale():
    slow, fast = (path("npo", unit_speed=True, scale=scale, rate=0.05) for scale in (1.0, 1000.0))
    assert torch.allclose(slow, fast, atol=1e-9)
    assert torch.allclose(slow.diff(dim=0).norm(dim=-1), torch.full((12, 3), 0.05).double())


def test_where_a_value_is_first_reached():
    course = Course(torch.arange(5.0).double()[:, None, None].expand(5, 3, 1))
    values = torch.tensor(
        [[1.0, 1.0, 1.0], [0.8, 0.2, 1.0], [0.4, 0.3, 0.9], [0.1, 0.1, 0.8], [0.0, 0.0, 0.7]]
    ).double()
    theta, step = course.first_at(values, 0.5)
    assert step[:2].tolist() == pytest.approx([1.75, 0.625])
    assert math.isnan(step[2])
    assert theta[:, 0].tolist() == pytest.approx([1.75, 0.625, 4.0])


def test_harm_left_starts_at_1_and_falls():
    course = Course(path("d2o"))
    left = harm_left(WORLD, course, INITIAL)
    assert torch.allclose(left[0], torch.ones(3, dtype=torch.float64))
    assert torch.all(left[-1] < 0.6)


def test_draws_follow_the_distribution_of_their_prompt():
    prompts = balanced_prompts(3, 2)
    drawn = draw(INITIAL.exp(), prompts, 40_000, torch.Generator().manual_seed(0))
    for prompt in range(2):
        shares = torch.bincount(drawn[1, prompt], minlength=84) / 40_000
        assert float((shares - INITIAL[1, prompt].exp()).abs().max()) < 0.01


def test_a_summary_is_a_mean_with_an_interval():
    row = summary(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]))
    assert row["value"] == pytest.approx(5)
    assert row["ci_low"] < 4 < 6 < row["ci_high"]
    assert row["n"] == 9


def test_chosen_answers_are_required_where_an_objective_reads_them():
    draws = data()
    with pytest.raises(AssertionError, match="no chosen answers"):
        path("dpo", draws=Draws(draws.prompts, draws.negatives, draws.anchors))


def test_a_run_that_broke_down_fails_every_comparison():
    for values in (torch.tensor([1.0, float("nan")]), torch.tensor([2.0]), torch.tensor([])):
        row = summary(values)
        assert not row["ci_low"] > 0
        assert not row["ci_high"] < 0
    assert not ratio_summary(torch.tensor([1.0, 0.0]), torch.ones(2))["ci_high"] < 1


def test_a_ratio_is_a_geometric_mean():
    row = ratio_summary(torch.tensor([1.0, 4.0, 2.0, 8.0] * 3), torch.ones(12))
    assert row["value"] == pytest.approx(2**1.5)
    assert row["ci_low"] < row["value"] < row["ci_high"]
