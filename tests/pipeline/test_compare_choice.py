"""The rule that chooses a learning rate, case by case."""

import pytest

from naysay.pipeline import compare_choice
from naysay.pipeline.compare_choice import Candidate

BOUND = 0.10


def choose(candidates, kl_bound, budget_ratio=1.0):
    return compare_choice.choose(candidates, kl_bound, budget_ratio)


def whole(rate, separation=None, margin=0.0, kl=0.05, rise=0.0):
    return Candidate(rate, separation=separation, margin=margin, kl=kl, degenerate_rise=rise)


def test_the_largest_separation_within_the_bounds():
    found = choose([whole(1e-5, 0.01), whole(1e-4, 0.05), whole(1e-3, 0.02)], BOUND)
    assert found.learning_rate == 1e-4
    assert found.reason == "largest dev separation (+0.050 nats/token) of the 3 of 3 rates within the bounds"
    assert not found.at_edge


@pytest.mark.parametrize("broken", [{"kl": 0.1001}, {"rise": 0.0501}, {"kl": None}, {"rise": None}])
def test_a_rate_that_drifted_or_broke_the_model_is_not_taken_however_good(broken):
    found = choose([whole(1e-5, 0.01), whole(1e-3, 0.90, **broken)], BOUND)
    assert found.learning_rate == 1e-5
    assert "1 of 2 rates" in found.reason


def test_the_bounds_themselves_are_within():
    found = choose([whole(1e-5, 0.01), whole(1e-3, 0.90, kl=0.10, rise=0.05)], BOUND)
    assert found.learning_rate == 1e-3
    assert found.at_edge


@pytest.mark.parametrize(("kl", "taken"), [(0.025, 1e-3), (0.0251, 1e-5)])
def test_kl_is_extrapolated_to_the_whole_budget_with_the_square_of_the_steps(kl, taken):
    rates = [whole(1e-5, 0.01, kl=0.001), whole(1e-3, 0.90, kl=kl)]
    assert choose(rates, BOUND, 2.0).learning_rate == taken
    assert choose(rates, BOUND, 1.0).learning_rate == 1e-3


def test_separation_goes_before_the_margin():
    assert choose([whole(1e-5, 0.02, margin=0.1), whole(1e-4, 0.01, margin=9.0)], BOUND).learning_rate == 1e-5


def test_without_acceptable_answers_the_margin_decides():
    found = choose([whole(1e-5, margin=0.1), whole(1e-4, margin=0.4), whole(1e-3, margin=0.2)], BOUND)
    assert (found.learning_rate, found.reason) == (
        1e-4,
        "largest dev margin (+0.400 nats) of the 3 of 3 rates within the bounds",
    )


def test_where_none_qualifies_the_smallest_kl():
    found = choose([whole(1e-5, 0.1, kl=0.2), whole(1e-4, 0.9, kl=0.15), whole(1e-3, 0.5, kl=0.05, rise=0.4)], BOUND)
    assert found.learning_rate == 1e-3
    assert found.reason == "smallest KL to base (0.050 nats/token): no rate is within the bounds"
    unmeasured = choose([whole(1e-5, 0.1, kl=None), whole(1e-4, 0.1, kl=3.0)], BOUND)
    assert unmeasured.learning_rate == 1e-4


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_of_exactly_equal_rates_the_smaller(order):
    equal = [whole(1e-5, 0.01), whole(1e-4, 0.05), whole(1e-3, 0.05)]
    assert choose([equal[i] for i in order], BOUND).learning_rate == 1e-4
    drifted = [whole(1e-5, 0.1, kl=0.5), whole(1e-4, 0.1, kl=0.4), whole(1e-3, 0.1, kl=0.4)]
    assert choose([drifted[i] for i in order], BOUND).learning_rate == 1e-4


def test_diverged_runs_are_no_candidates_and_if_all_did_there_is_no_choice():
    lost = Candidate(1e-3, diverged="loss is NaN")
    found = choose([whole(1e-4, -0.2), lost], BOUND)
    assert found.learning_rate == 1e-4
    assert "1 of 2 rates" in found.reason
    assert choose([lost, Candidate(1e-4, diverged="loss is NaN")], BOUND) is None


def test_a_negative_separation_is_still_chosen_and_said():
    assert "-0.010" in choose([whole(1e-5, -0.01), whole(1e-4, -0.02)], BOUND).reason


def test_one_rate_is_no_edge():
    assert not choose([whole(1e-4, 0.1)], BOUND).at_edge


def test_a_candidate_is_read_from_an_evaluation():
    def estimate(value):
        return {"value": value, "ci_low": None, "ci_high": None, "n": 3}

    evaluation = {
        "heldout": {"separation": estimate(0.02), "margin": estimate(0.3)},
        "kl": {"base_to_tuned": estimate(0.04), "tuned_to_base": estimate(0.07)},
        "generations": {"change": {"degenerate": estimate(0.01)}},
    }
    assert Candidate.of(1e-4, evaluation) == Candidate(1e-4, separation=0.02, margin=0.3, kl=0.07, degenerate_rise=0.01)
    evaluation["kl"]["tuned_to_base"] = estimate(None)
    assert Candidate.of(1e-4, evaluation).kl is None


def test_a_kl_that_was_never_measured_is_said():
    choice = choose([Candidate(2e-4, margin=1.0), Candidate(1e-4, margin=2.0)], 0.1, 2.0)
    assert (choice.learning_rate, choice.reason) == (1e-4, "smallest rate: no KL to base could be measured")
