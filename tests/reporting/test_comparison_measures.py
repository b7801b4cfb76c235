"""What objectives are compared by, worked by hand."""

import pytest

from naysay.records import PromptEvaluation
from naysay.reporting.comparison_measures import (
    BY_KEY,
    MEASURES,
    base_value,
    by_seed,
    difference,
    difference_by_seed,
    value,
)
from naysay.statistics.paired import bootstrap_mean, clustered_share, paired_proportion_change

SAMPLES = 300


def heldout(i, separation=0.0, margins=(0.0,), negative=(0.0, 4), right=(True,), outcome="answer", **more):
    return PromptEvaluation(
        f"p-{i}",
        "heldout",
        margins=margins,
        separation=separation,
        pairs_right_base=tuple(False for _ in right),
        pairs_right_tuned=right,
        negative_log_ratio=negative[0],
        negative_tokens=negative[1],
        outcome_base="answer",
        outcome_tuned=outcome,
        **more,
    )


def benign(i, change=0.0, tokens=5, kl=(0.0, 10), back=(0.0, 10), outcome="answer", kind="benign"):
    return PromptEvaluation(
        f"b-{i}",
        kind,
        acceptable_log_ratio=change,
        acceptable_tokens=tokens,
        kl_base_to_tuned=kl,
        kl_tuned_to_base=back,
        outcome_base="answer",
        outcome_tuned=outcome,
    )


def measured(key, rows, seeds=1):
    return value(BY_KEY[key], dict.fromkeys(range(seeds), rows), SAMPLES)


def test_every_measure_reads_its_own_kind_of_prompt():
    rows = [
        heldout(0, 0.2, (1.0, 3.0), (-4.0, 8), anchor_log_ratio=-1.0, anchor_tokens=10),
        heldout(1, None, (), (-2.0, 4), right=(), outcome="refusal", acceptable_log_ratio=3.0, acceptable_tokens=6),
        benign(0, -1.0, 5, (0.5, 10), (0.9, 6)),
        benign(1, 0.5, 5, (0.3, 6), (0.3, 6), outcome="refusal", kind="lookalike"),
    ]
    expected = {
        "separation": (0.2, 1),
        "pair_accuracy": (1.0, 1),
        "acceptable": (0.5, 1),
        "rejected": (-6 / 12, 2),
        "anchors": (-0.1, 1),
        "margin": (2.0, 1),
        "refusal": (0.5, 2),
        "degenerate": (0.0, 4),
        "over_refusal": (1.0, 1),
        "benign_refusal": (0.0, 1),
        "benign": (0.5 / 10, 2),
        "kl_base_to_tuned": (0.8 / 16, 2),
        "kl_tuned_to_base": (1.2 / 12, 2),
    }
    assert list(expected) == [measure.key for measure in MEASURES]
    for key, (number, n) in expected.items():
        found = measured(key, rows)
        assert (found.value, found.n) == (pytest.approx(number), n), key


def test_what_nobody_has_is_not_measured():
    for measure in MEASURES:
        assert value(measure, {}, SAMPLES).value is None
        assert value(measure, {0: []}, SAMPLES).n == 0
        assert difference(measure, {}, {0: [heldout(0)]}, SAMPLES).value is None


def test_a_second_seed_of_the_same_prompts_is_no_new_evidence():
    rows = [heldout(i, 0.01 * i * i) for i in range(12)]
    once, twice = measured("separation", rows), measured("separation", rows, seeds=2)
    assert once == twice
    shares = [heldout(i, outcome="refusal" if i < 3 else "answer") for i in range(12)]
    assert measured("refusal", shares) == measured("refusal", shares, seeds=2)


def test_values_are_means_over_seeds():
    rows = {0: [heldout(i, 0.1) for i in range(9)], 1: [heldout(i, 0.3) for i in range(9)]}
    assert value(BY_KEY["separation"], rows, SAMPLES).value == pytest.approx(0.2)
    assert by_seed(BY_KEY["separation"], rows) == pytest.approx([0.1, 0.3])


def test_a_difference_is_taken_within_prompt_and_seed():
    """Prompts differ by whole units, seeds by tenths; the objectives by 0.05 for every prompt and seed."""
    reference = {seed: [heldout(i, i + 0.1 * seed) for i in range(10)] for seed in (0, 1)}
    other = {seed: [heldout(i, i + 0.1 * seed + 0.05) for i in range(10)] for seed in (0, 1)}
    found = difference(BY_KEY["separation"], reference, other, SAMPLES)
    assert (found.value, found.ci_low, found.ci_high, found.n) == (*[pytest.approx(0.05)] * 3, 10)
    alone = value(BY_KEY["separation"], reference, SAMPLES)
    assert alone.ci_high - alone.ci_low > 1.0


def test_the_paired_difference_by_hand():
    """Two seeds of eight prompts: the interval is that of the eight means over seeds."""
    first, second = [0.1, 0.2, 0.0, 0.3, 0.1, 0.2, 0.4, 0.1], [0.3, 0.2, 0.2, 0.1, 0.1, 0.0, 0.2, 0.3]
    zero = {seed: [heldout(i, 0.0) for i in range(8)] for seed in (0, 1)}
    other = {seed: [heldout(i, row[i]) for i in range(8)] for seed, row in ((0, first), (1, second))}
    found = difference(BY_KEY["separation"], zero, other, 2000)
    expected = bootstrap_mean([(a + b) / 2 for a, b in zip(first, second, strict=True)], samples=2000)
    assert (found.value, found.ci_low, found.ci_high, found.n) == pytest.approx(
        (expected.value, expected.ci_low, expected.ci_high, 8)
    )
    assert difference_by_seed(BY_KEY["separation"], zero, other) == pytest.approx([0.175, 0.175])


def test_shares_are_paired_by_newcombes_method():
    outcomes = [("refusal", "answer"), ("refusal", "refusal"), ("answer", "answer"), ("answer", "refusal")] * 3
    before = {0: [heldout(i, outcome=old) for i, (old, _) in enumerate(outcomes)]}
    after = {0: [heldout(i, outcome=new) for i, (_, new) in enumerate(outcomes[:-1])]}
    found = difference(BY_KEY["refusal"], before, after, SAMPLES)
    pairs = [(old == "refusal", new == "refusal") for old, new in outcomes[:-1]]
    assert found == paired_proportion_change([p[0] for p in pairs], [p[1] for p in pairs])


def test_pairs_of_a_prompt_stay_together():
    before = {0: [heldout(i, right=(True, False, False)) for i in range(9)]}
    after = {0: [heldout(i, right=(True, True, i % 2 == 0)) for i in range(9)]}
    found = difference(BY_KEY["pair_accuracy"], before, after, SAMPLES)
    assert found.value == pytest.approx((9 + 5) / 27)
    assert found.n == 9


def test_prompts_and_seeds_that_one_side_lacks_are_left_out():
    reference = {0: [heldout(i, 0.0) for i in range(10)], 1: [heldout(i, 5.0) for i in range(10)]}
    other = {0: [heldout(i, 1.0) for i in range(3, 12)], 2: [heldout(0, 9.0)]}
    found = difference(BY_KEY["separation"], reference, other, SAMPLES)
    assert (found.value, found.n) == (1.0, 7)
    unmeasured = {0: [heldout(i, None) for i in range(10)]}
    assert difference(BY_KEY["separation"], reference, unmeasured, SAMPLES).value is None


def test_the_kl_on_own_answers_is_a_difference_of_two_ratios():
    before = {0: [benign(i, back=(1.0 + i, 10)) for i in range(2)]}
    after = {0: [benign(i, back=(2.0 + i, 5 + 15 * i)) for i in range(2)]}
    assert difference(BY_KEY["kl_tuned_to_base"], before, after, SAMPLES).value == pytest.approx(5 / 25 - 3 / 20)


def test_the_base_has_shares_of_its_own():
    rows = {0: [heldout(i, right=(True, True)) for i in range(5)], 1: []}
    assert base_value(BY_KEY["pair_accuracy"], rows, SAMPLES) == clustered_share(
        [False] * 10, [i // 2 for i in range(10)]
    )
    assert base_value(BY_KEY["refusal"], rows, SAMPLES).value == 0.0
    assert base_value(BY_KEY["separation"], rows, SAMPLES) is None
