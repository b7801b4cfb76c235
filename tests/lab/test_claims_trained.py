"""Claims that need training runs (b6, c, d, e2, e3, f3): over many worlds, with intervals."""

import itertools

import pytest


def test_every_claim_is_as_expected(result):
    assert [finding.claim for finding in result.findings if not finding.as_expected] == []
    assert result.failed == []
    assert [finding.claim for finding in result.findings if not finding.holds] == [
        "a3",
        "a4",
        "b5",
        "c3",
        "c5",
        "d3",
        "e3",
        "f3",
    ]


def test_strictly_on_policy_anchors_remove_the_anchor(claims):
    ratios = claims["b6"].numbers["npo_jeffrey_among_benign_over"]
    assert ratios["frozen"]["ci_low"] > 1.15
    assert ratios["on-policy"]["ci_high"] < 1.04  # as NPO
    assert ratios["on-policy"]["ci_high"] < ratios["half frozen"]["ci_low"]
    assert ratios["half frozen"]["value"] < ratios["frozen"]["value"]
    steps = claims["b6"].numbers["steps"]
    assert steps["on-policy"]["value"] > steps["npo"]["value"]  # they brake all the same


@pytest.mark.parametrize(
    ("objective", "least"), [("npo", 1.10), ("simnpo", 1.15), ("ga", 1.20), ("unlikelihood", 2.0), ("dpo_self", 1.03)]
)
def test_d2o_distorts_benign_answers_least_at_equal_harm(claims, objective, least):
    row = claims["c1"].numbers["beta_1.0"][objective]
    assert row["jeffrey_among_benign_over_d2o"]["ci_low"] > least
    assert row["jeffrey_over_d2o"]["ci_low"] > 1
    assert row["worlds"] >= 44


def test_equal_harm_is_equal(claims):
    rows = claims["c1"].numbers["beta_1.0"]
    complete = {name: row for name, row in rows.items() if row["worlds"] == 48}
    assert len(complete) >= 5
    harmful = [row["harmful"] for row in complete.values()]
    assert max(harmful) - min(harmful) < 0.01 * harmful[0]
    for row in rows.values():
        assert row["harmful"] + row["benign"] + row["junk"] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("objective", ["npo", "simnpo", "ga"])
def test_d2o_keeps_more_mass_and_entropy_with_nearly_all_harm_removed(claims, objective):
    row = claims["c2"].numbers["objectives"][objective]
    assert row["benign_minus_d2o"]["ci_high"] < -0.005
    assert row["entropy_minus_d2o"]["ci_high"] < -0.03


def test_altpo_is_as_near_as_d2o_with_clean_negatives(claims):
    ratios = claims["c3"].numbers
    assert ratios["beta_1.0"]["ci_low"] < 1 < ratios["beta_1.0"]["ci_high"]
    assert 0.98 < ratios["beta_0.1"]["ci_high"] < 1  # a little nearer, and surely so
    assert not claims["c3"].holds


def test_gradient_ascent_collapses_and_d2o_does_not(claims):
    rows, start = claims["c4"].numbers["objectives"], claims["c4"].numbers["start"]
    assert rows["ga"]["entropy"][-1] < 0.1
    assert rows["ga"]["benign"][-1] < 0.5 < start["benign"]
    assert rows["d2o"]["benign"][-1] > start["benign"] + 0.1
    assert rows["d2o"]["entropy"][-1] > 1.5


def test_d2o_does_not_come_to_rest(claims):
    jeffrey = claims["c5"].numbers["jeffrey"]
    growth = [after - before for before, after in itertools.pairwise(jeffrey)]
    assert min(growth) > 0.5
    assert not claims["c5"].holds


def test_harmful_positives_cost_dpo_alone(claims):
    numbers = claims["d1"].numbers
    assert numbers["seeds"] >= 20
    assert numbers["shares"] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert numbers["dpo_40_minus_0"]["ci_low"] > 0.02
    for name in ("d2o", "d2o, instructed"):
        levels = [row["value"] for row in numbers["harm_left"][name]]
        assert max(levels) - min(levels) < 0.015  # nothing to do with positives: only the draws differ
        assert numbers["minus_dpo"][name][-1]["ci_high"] < -0.02
        assert numbers["minus_dpo"][name][0]["value"] > -0.01  # clean positives are worth having
    assert numbers["plain_anchors_harmful"] > 3 * numbers["instructed_anchors_harmful"]


@pytest.mark.parametrize("objective", ["npo", "ga"])
def test_instructed_anchors_bear_wrong_negatives(claims, objective):
    numbers = claims["d2"].numbers
    assert numbers["seeds"] >= 20
    assert all(row["ci_low"] > 0 for row in numbers["minus_d2o_instructed"][objective])


@pytest.mark.parametrize("objective", ["npo", "ga"])
def test_plain_anchors_do_not_at_40_percent(claims, objective):
    rows = claims["d2"].numbers["minus_d2o"][objective]
    assert rows[0]["ci_low"] > 0
    assert rows[1]["ci_low"] > 0
    assert rows[-1]["ci_high"] < 0
    assert not claims["d3"].holds


@pytest.mark.parametrize("objective", ["altpo", "dpo_self"])
def test_the_mean_inside_the_sigmoid_bears_wrong_negatives_better(claims, objective):
    rows = claims["d4"].numbers["minus_d2o"][objective]
    assert all(row["ci_low"] > 0.01 for row in rows[2:])


def test_more_anchors_mean_fewer_steps_up_to_a_few(claims):
    numbers = claims["e2"].numbers
    steps = dict(zip(numbers["anchors"], [row["value"] for row in numbers["steps"]], strict=True))
    assert steps[1] > 1.3 * steps[2] > 1.3 * steps[4]
    assert steps[4] - steps[32] < 0.2 * (steps[1] - steps[32])
    assert all(row["ci_low"] > 5 for row in numbers["steps_saved_over_k1"].values())
    bent = [row["value"] for row in numbers["path_over_distance"]]
    assert bent == sorted(bent, reverse=True)


def test_d2o_is_not_faster_than_npo(claims):
    assert claims["e3"].numbers["steps_d2o_minus_npo"]["ci_low"] > 3
    assert not claims["e3"].holds


def test_crossed_references_buy_speed_and_not_less_damage(claims):
    numbers = claims["f3"].numbers
    assert numbers["jeffrey_over_initial"]["both"]["ci_low"] > 1.01
    assert numbers["jeffrey_over_initial"]["swapped"]["ci_high"] < 0.99
    steps = {name: row["value"] for name, row in numbers["steps"].items()}
    assert steps["both"] < 0.6 * steps["initial"] < steps["initial"] < 0.5 * steps["swapped"]
