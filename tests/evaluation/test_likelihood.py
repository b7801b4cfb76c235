"""The held-out figures, against values worked by hand."""

import math
from dataclasses import replace

import pytest

from naysay.evaluation.likelihood import HeldoutGroup, Scores, group_of, heldout_metrics, nats_per_token, source_counts
from naysay.evaluation.stage import _jeffrey
from naysay.statistics.paired import bootstrap_ratio_mean

SETTINGS = {"alpha": 0.5, "beta": 0.2, "samples": 200, "seed": 0}


def group(prompt_id, anchors, negatives, acceptable, ref_anchors=None, ref_negatives=None):
    return HeldoutGroup(
        prompt_id,
        *([Scores(*item) for item in items] for items in (anchors, negatives, acceptable)),
        ref_anchors=[item[0] for item in anchors] if ref_anchors is None else ref_anchors,
        ref_negatives=[item[0] for item in negatives] if ref_negatives is None else ref_negatives,
    )


# (before, after, tokens). Two anchors that gained 1 and 3, one negative that lost 4 in 4 tokens, and so on.
FIRST = group("p-1", [(-10, -9, 5), (-12, -9, 6)], [(-8, -12, 4)], [(-12, -11, 4)])
SECOND = group("p-2", [(-5, -6, 1)], [(-6, -7, 2), (-3, -9, 3)], [(-20, -22, 4), (-4, -1, 3)])
NO_ACCEPTABLE = group("p-3", [(-5, -5, 5)], [(-6, -5, 2)], [])
NO_ANCHOR = group("p-4", [], [(-6, -16, 2)], [])


def values(*groups):
    return {name: estimate.value for name, estimate in heldout_metrics(groups, **SETTINGS).items()}


def test_the_margin_is_that_of_training():
    # beta * mean anchor log-ratio - alpha * negative log-ratio: 0.2 * (1 + 3) / 2 + 0.5 * 4
    assert FIRST.margins(alpha=0.5, beta=0.2) == pytest.approx([2.4])
    # 0.2 * -1 + 0.5 * 1, and 0.2 * -1 + 0.5 * 6
    assert SECOND.margins(alpha=0.5, beta=0.2) == pytest.approx([0.3, 2.8])
    # Under other references: 0.2 * ((-9 + 11) + (-9 + 8)) / 2 - 0.5 * (-12 + 10)
    other = group("p", [(-10, -9, 5), (-12, -9, 6)], [(-8, -12, 4)], [], ref_anchors=[-11, -8], ref_negatives=[-10])
    assert other.margins(alpha=0.5, beta=0.2) == pytest.approx([1.1])


def test_the_margin_is_over_pairs_of_prompts_that_have_an_anchor():
    metrics = heldout_metrics([FIRST, SECOND, NO_ACCEPTABLE, NO_ANCHOR], **SETTINGS)
    assert metrics["margin"].value == pytest.approx((2.4 + 0.3 + 2.8 - 0.5) / 4)
    assert metrics["margin"].n == 3
    assert metrics["margin"].ci_low < metrics["margin"].value < metrics["margin"].ci_high


def test_log_ratios_are_sums_or_means_over_tokens():
    found = values(FIRST, SECOND, NO_ANCHOR)
    assert found["negative_log_ratio"] == pytest.approx((-4 - 1 - 6 - 10) / 4)
    assert found["negative_log_ratio_per_token"] == pytest.approx((-4 - 1 - 6 - 10) / (4 + 2 + 3 + 2))
    assert found["anchor_log_ratio_per_token"] == pytest.approx((1 + 3 - 1) / (5 + 6 + 1))
    assert found["acceptable_log_ratio_per_token"] == pytest.approx((1 - 2 + 3) / (4 + 4 + 3))


def test_separation_is_per_prompt_acceptable_minus_rejected_per_token():
    first = 1 / 4 - -4 / 4
    second = (-2 / 4 + 3 / 3) / 2 - (-1 / 2 - 6 / 3) / 2
    metrics = heldout_metrics([FIRST, SECOND, NO_ACCEPTABLE, NO_ANCHOR], **SETTINGS)
    assert metrics["separation"].value == pytest.approx((first + second) / 2)
    assert metrics["separation"].n == 2
    fell_alike = group("p", [], [(-8, -12, 4)], [(-6, -8, 2)])
    assert values(fell_alike)["separation"] == pytest.approx(0)
    assert values(group("p", [], [(-8, -12, 4)], [(-6, -9, 2)]))["separation"] == pytest.approx(-0.5)


def test_pairs_are_ranked_by_log_prob_per_token():
    # FIRST: acceptable -3, rejected -2 a token before; -2.75 and -3 after. SECOND has 2 x 2 pairs:
    # before: acceptable -5, -4/3 and rejected -3, -1; after: acceptable -5.5, -1/3 and rejected -3.5, -3.
    before = [False, False, False, True, False]
    after = [True, False, False, True, True]
    metrics = heldout_metrics([FIRST, SECOND], **SETTINGS)
    assert metrics["pair_accuracy_base"].value == pytest.approx(sum(before) / 5)
    assert metrics["pair_accuracy_tuned"].value == pytest.approx(sum(after) / 5)
    assert metrics["pair_accuracy_change"].value == pytest.approx((3 - 1) / 5)
    # Gains a token: FIRST 0.25 against -1; SECOND -0.5 and 1 against -0.5 and -2: a tie is not a gain.
    assert metrics["implicit_pair_accuracy"].value == pytest.approx((1 + 0 + 1 + 1 + 1) / 5)
    assert {metrics[name].n for name in metrics if "pair" in name} == {2}


def test_one_pair_a_prompt_gets_a_wilson_interval():
    metrics = heldout_metrics([FIRST, group("p-9", [], [(-4, -4, 4)], [(-1, -1, 4)])], **SETTINGS)
    assert metrics["pair_accuracy_base"].value == 0.5
    # Wilson with 1 of 2: (1/2 + z²/4 ± z sqrt(1/8 + z²/16)) / (1 + z²/2), z = 1.96
    assert metrics["pair_accuracy_base"].ci_low == pytest.approx(0.0945, abs=1e-3)
    assert metrics["pair_accuracy_base"].ci_high == pytest.approx(0.9055, abs=1e-3)


def test_what_was_not_measured_is_none_not_zero():
    assert values(NO_ANCHOR)["separation"] is None
    assert values(NO_ANCHOR)["margin"] is None
    assert values(NO_ANCHOR)["pair_accuracy_change"] is None
    assert values()["negative_log_ratio"] is None
    assert nats_per_token([], samples=200, seed=0)["nats_per_token_change"].value is None


def test_nats_per_token_weigh_tokens_and_above_zero_is_less_likely():
    answers = [("p-1", Scores(-10, -14, 10)), ("p-2", Scores(-30, -30, 10)), ("p-2", Scores(-4, -3, 20))]
    found = nats_per_token(answers, samples=200, seed=0)
    assert found["nats_per_token_base"].value == pytest.approx(44 / 40)
    assert found["nats_per_token_tuned"].value == pytest.approx(47 / 40)
    assert found["nats_per_token_change"].value == pytest.approx(3 / 40)
    assert found["nats_per_token_change"].n == 2


def test_the_jeffrey_value_is_the_sum_of_both_kls():
    """Each is a mean over its own tokens; the interval uses that both are from the same prompts."""
    forward = {f"p-{i}": (0.5 * i, 10 + i) for i in range(12)}
    backward = {f"p-{i}": (0.3 * i + 1, 7 + 3 * i) for i in range(12)}
    parts = [
        bootstrap_ratio_mean([v for v, _ in kl.values()], [n for _, n in kl.values()]) for kl in (forward, backward)
    ]
    jeffrey = _jeffrey({"base_to_tuned": forward, "tuned_to_base": backward}, 500, 0)
    assert jeffrey.value == pytest.approx(parts[0].value + parts[1].value)
    assert jeffrey.value == pytest.approx(33 / 186 + 31.8 / 282)
    assert jeffrey.n == 12
    assert 0 < jeffrey.ci_low < jeffrey.value < jeffrey.ci_high
    # Fully dependent parts: the widths add up, instead of their squares.
    twice = _jeffrey({"base_to_tuned": forward, "tuned_to_base": forward}, 500, 0)
    single = _jeffrey({"base_to_tuned": forward, "tuned_to_base": dict.fromkeys(forward, (0.0, 1))}, 500, 0)
    assert twice.ci_high - twice.ci_low == pytest.approx(2 * (single.ci_high - single.ci_low))
    assert _jeffrey({"base_to_tuned": {}, "tuned_to_base": {}}, 500, 0).value is None


def test_a_group_holds_each_answer_once():
    prompt, answers = group_of([1, 2], [[3], [4]], [[3]], [[5], [4]])
    assert (prompt, answers) == ([1, 2], [(3,), (4,), (5,)])
    assert math.isclose(Scores(-3.0, -1.0, 4).change_per_token, 0.5)


def test_the_change_of_the_end_of_turn_is_a_mean_over_answers_that_ended():
    ended = replace(FIRST, end_log_ratios=[-0.5, 0.1])
    metrics = heldout_metrics([ended, SECOND, replace(NO_ANCHOR, end_log_ratios=[-2.0])], **SETTINGS)
    assert metrics["end_of_turn_log_ratio"].value == pytest.approx((-0.5 + 0.1 - 2.0) / 3)
    assert metrics["end_of_turn_log_ratio"].n == 2
    assert heldout_metrics([FIRST], **SETTINGS)["end_of_turn_log_ratio"].value is None


def from_sources(prompt_id, acceptable, negatives):
    """A prompt whose acceptable answers gain 1 nat a token and whose rejected ones lose theirs: source -> loss."""
    return HeldoutGroup(
        prompt_id,
        [],
        [Scores(-4.0, -4.0 - 4 * loss, 4, source) for source, loss in negatives.items()],
        [Scores(-8.0, -6.0, 2, source) for source in acceptable],
        [],
        [-4.0] * len(negatives),
    )


def test_answers_of_different_sources_are_not_compared():
    groups = [
        from_sources("p-1", ["mine"], {"mine": 1.0, "theirs": 5.0}),
        from_sources("p-2", ["mine"], {"theirs": 7.0}),
        from_sources("p-3", ["mine"], {"": 3.0}),
        from_sources("p-4", [], {"mine": 9.0}),
    ]
    metrics = heldout_metrics(groups, **SETTINGS)
    # p-1: 1 + 1, without the answer of theirs; p-3: 1 + 3
    assert metrics["separation"].value == pytest.approx((2 + 4) / 2)
    assert {metrics[name].n for name in metrics if "pair" in name} == {2}
    assert [len(group.pairs) for group in groups] == [1, 0, 1, 0]
    assert source_counts(groups) == {"same": 1, "unknown": 1, "different": 1}
    # All other figures are over all answers.
    assert metrics["negative_log_ratio"].n == 4


def test_whose_style_fell_is_no_separation():
    """A model that only made everything of `own` less likely, and acceptable answers of another: nothing is claimed."""
    groups = [from_sources(f"p-{i}", ["other"], {"own": 1.0 + 0.1 * i}) for i in range(12)]
    assert heldout_metrics(groups, **SETTINGS)["separation"].value is None
    assert source_counts(groups) == {"same": 0, "unknown": 0, "different": 12}
