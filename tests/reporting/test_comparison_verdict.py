"""Better, worse or no evidence: every rule, and that nothing else is called a win."""

import pytest

from naysay.reporting.comparison_measures import BY_KEY, MEASURES
from naysay.reporting.comparison_verdict import COSTS, PRIMARY, Judgement, claim, headline, judge, primary


def estimate(value, half=0.01, n=48, by_seed=None):
    seeds = [value, value] if by_seed is None else by_seed
    if value is None:
        return {"value": None, "ci_low": None, "ci_high": None, "n": 0, "by_seed": [None, None]}
    return {"value": value, "ci_low": value - half, "ci_high": value + half, "n": n, "by_seed": seeds}


NONE = estimate(0.0)


def judged(values=None, reference_values=None, **changes):
    differences = dict.fromkeys(BY_KEY, NONE) | changes
    return judge("npo", "d2o", differences, values or {}, kl_bound=0.10, reference_values=reference_values or {})


def test_a_claim_needs_an_interval_on_one_side_of_zero():
    separation, degenerate = BY_KEY["separation"], BY_KEY["degenerate"]
    assert claim(separation, estimate(0.02)) == "better"
    assert claim(separation, estimate(-0.02)) == "worse"
    assert claim(degenerate, estimate(0.02)) == "worse"
    assert claim(degenerate, estimate(-0.02)) == "better"
    assert claim(separation, estimate(0.02, half=0.02)) == ""
    assert claim(separation, estimate(-0.02, half=0.03)) == ""


def test_a_claim_needs_seeds_that_agree_and_enough_prompts():
    separation = BY_KEY["separation"]
    assert claim(separation, estimate(0.02, by_seed=[0.05, -0.01])) == ""
    assert claim(separation, estimate(-0.02, by_seed=[-0.05, 0.0])) == ""
    assert claim(separation, estimate(0.02, by_seed=[0.02, None])) == ""
    assert claim(separation, estimate(0.02, n=7)) == ""
    assert claim(separation, estimate(0.02, n=8)) == "better"


def test_what_was_not_measured_or_has_no_good_direction_claims_nothing():
    assert claim(BY_KEY["separation"], estimate(None)) == ""
    assert claim(BY_KEY["separation"], None) == ""
    assert [measure.key for measure in MEASURES if not measure.good] == ["anchors", "refusal"]
    assert claim(BY_KEY["anchors"], estimate(0.5)) == claim(BY_KEY["refusal"], estimate(-0.5)) == ""


def test_better_and_worse():
    found = judged(separation=estimate(0.05))
    assert found == Judgement("better", "npo: better than d2o; separation +0.050 [+0.040, +0.060] (n=48).")
    found = judged(separation=estimate(-0.05))
    assert found == Judgement("worse", "npo: worse than d2o; separation -0.050 [-0.060, -0.040] (n=48).")


@pytest.mark.parametrize("cost", COSTS)
def test_a_gain_that_was_paid_for_is_no_win(cost):
    found = judged(separation=estimate(0.05), **{cost: estimate(0.05)})
    assert found.label == "mixed"
    assert "mixed, better than d2o by separation, but not by all costs" in found.text
    assert "; worse: " in found.text


@pytest.mark.parametrize("cost", COSTS)
def test_a_loss_that_saved_something_is_said(cost):
    found = judged(separation=estimate(-0.05), **{cost: estimate(-0.05)})
    assert found.label == "mixed"
    assert "; better: " in found.text


def test_costs_that_go_the_same_way_change_nothing():
    assert judged(separation=estimate(0.05), degenerate=estimate(-0.05)).label == "better"
    assert judged(separation=estimate(-0.05), kl_base_to_tuned=estimate(0.05)).label == "worse"


def test_above_the_kl_bound_nothing_is_better():
    found = judged({"kl_tuned_to_base": {"value": 0.12}}, separation=estimate(0.05))
    assert found.label == "mixed"
    assert "its KL to base, 0.120, is above the bound 0.1" in found.text
    assert judged({"kl_tuned_to_base": {"value": 0.10}}, separation=estimate(0.05)).label == "better"


def test_lower_costs_alone_are_no_win():
    found = judged(kl_base_to_tuned=estimate(-0.05))
    assert found.label == "no_evidence"
    assert found.text == (
        "npo: no evidence of a difference from d2o; separation +0.000 [-0.010, +0.010] (n=48); "
        "better: KL, base to tuned -0.050 [-0.060, -0.040] (n=48)."
    )


@pytest.mark.parametrize(
    ("separation", "why"),
    [
        (estimate(0.05, n=5), "the interval excludes 0, but on fewer than 8 prompts"),
        (estimate(0.05, by_seed=[0.2, -0.1]), "the interval excludes 0, but the seeds do not agree"),
    ],
)
def test_why_an_interval_supports_nothing_is_said(separation, why):
    found = judged(separation=separation)
    assert found.label == "no_evidence"
    assert why in found.text
    assert "excludes 0" not in judged().text


def test_the_margin_decides_only_where_there_is_no_separation():
    found = judged(separation=estimate(0.0), margin=estimate(0.5))
    assert found.label == "no_evidence"
    found = judged(separation=estimate(None), margin=estimate(-0.5))
    assert found.label == "worse"
    assert "no acceptable answers, so by the margin, which D²O itself is trained on" in found.text
    assert primary({"separation": estimate(0.1)}) == "separation"
    assert primary({"separation": estimate(None)}) == primary({}) == "margin"
    assert not set(PRIMARY) & set(COSTS)


def test_a_diverged_objective_is_nothing_else():
    found = judge(
        "ga", "d2o", {"separation": estimate(0.5)}, {}, kl_bound=0.1, reference_values={}, diverged="at seed 1"
    )
    assert found == Judgement("diverged", "ga: diverged; the loss was not finite at seed 1.")


def test_the_headline_names_everyone():
    judgements = {
        "npo": Judgement("worse", ""),
        "ga": Judgement("diverged", ""),
        "altpo": Judgement("no_evidence", ""),
        "dpo_self": Judgement("worse", ""),
    }
    assert headline("d2o", judgements) == (
        "Compared with d2o: worse: npo, dpo_self; no evidence of a difference: altpo; diverged: ga."
    )


def test_a_kl_above_the_bound_is_no_cost_where_the_reference_is_above_it_too():
    above, own = {"kl_base_to_tuned": estimate(0.15)}, {"kl_tuned_to_base": estimate(0.30)}
    found = judged(values=above, reference_values=own, separation=estimate(0.05), kl_base_to_tuned=estimate(-0.1))
    assert found.label == "better"
    assert found.text.endswith(
        "its KL to base, 0.150, is above the bound 0.1; d2o's own KL to base, 0.300, is above the bound 0.1."
    )
    assert judged(values=above, separation=estimate(0.05)).label == "mixed"


def test_the_headline_says_that_the_reference_diverged():
    judgements = {"npo": Judgement("no_evidence", "")}
    assert headline("d2o", judgements, reference_diverged=True).startswith("d2o itself diverged")
