"""What is made of two results of lm-eval: hand-worked, without lm-eval."""

import pytest

from naysay.evaluation.capability import compare_results


def result(scores: dict[str, list[float]], metric: str = "acc", **changes) -> dict:
    """A result as lm-eval gives it, with the mean of each task's scores as its value."""
    tasks = {
        name: {"alias": name, f"{metric},none": sum(values) / len(values), f"{metric}_stderr,none": 0.1}
        for name, values in scores.items()
    }
    samples = {
        name: [{"doc_id": i, "filter": "none", metric: value} for i, value in enumerate(values)]
        for name, values in scores.items()
    }
    higher = {name: {metric: True} for name in scores}
    return {"results": tasks, "samples": samples, "higher_is_better": higher, "group_subtasks": {}} | changes


def test_right_and_wrong_answers_are_paired_with_newcombes_interval():
    base = result({"a": [1.0] * 30 + [0.0] * 20})
    tuned = result({"a": [1.0] * 18 + [0.0] * 12 + [1.0] * 2 + [0.0] * 18})
    (score,) = compare_results(base, tuned)
    assert (score.task, score.metric, score.filter, score.group) == ("a", "acc", "none", False)
    assert (score.base, score.tuned, score.base_stderr) == (0.6, 0.4, 0.1)
    # 12 lost, 2 won, 18 both, 18 neither. Newcombe 1998, method 10, by hand: z = 1.959964,
    # Wilson of 20/50 is [0.27610, 0.53815] and of 30/50 [0.46185, 0.72390]; the product of the cells is
    # 18 * 18 - 12 * 2 = 300, less 25 for continuity, over sqrt(30 * 20 * 20 * 30) = 600: phi = 0.45833.
    assert score.change is not None
    assert score.change.value == pytest.approx(-0.2)
    assert score.change.n == 50
    low, high = 0.4 - 0.27610, 0.72390 - 0.6
    up_tuned, down_base = 0.53815 - 0.4, 0.6 - 0.46185
    phi = 275 / 600
    expected = (
        -0.2 - (low**2 - 2 * phi * low * high + high**2) ** 0.5,
        -0.2 + (up_tuned**2 - 2 * phi * up_tuned * down_base + down_base**2) ** 0.5,
    )
    assert (score.change.ci_low, score.change.ci_high) == pytest.approx(expected, abs=1e-4)


def test_other_numbers_are_bootstrapped_as_differences():
    base = result({"a": [0.2 * (i % 5) for i in range(40)]}, "f1")
    tuned = result({"a": [0.2 * (i % 5) + 0.05 for i in range(40)]}, "f1")
    (score,) = compare_results(base, tuned)
    # Every question gained the same: paired, there is no doubt, although the scores themselves spread widely.
    assert score.change is not None
    assert (score.change.value, score.change.ci_low, score.change.ci_high) == pytest.approx((0.05, 0.05, 0.05))


def test_a_score_that_is_no_mean_over_questions_has_no_change():
    perplexity = result({"a": [1.0, 2.0]}, "ppl")
    perplexity["results"]["a"]["ppl,none"] = 4.2
    pairs = result({"a": [1.0, 2.0]}, "ppl")
    for sample in pairs["samples"]["a"]:
        sample["ppl"] = (sample["ppl"], 7)
    for side in (perplexity, pairs):
        (score,) = compare_results(side, side)
        assert score.change is None
        assert score.base == side["results"]["a"]["ppl,none"]


def test_a_standard_error_that_lm_eval_does_not_have_is_none():
    side = result({"a": [1.0, 0.0]})
    side["results"]["a"]["acc_stderr,none"] = "N/A"
    (score,) = compare_results(side, side)
    assert score.base_stderr is None


def test_other_questions_on_the_two_sides_are_not_paired():
    base, tuned = result({"a": [1.0, 0.0]}), result({"a": [1.0, 0.0]})
    tuned["samples"]["a"][1]["doc_id"] = 7
    (score,) = compare_results(base, tuned)
    assert score.change is None


def test_a_filter_is_a_score_of_its_own():
    side = result({"a": [1.0, 0.0]})
    side["results"]["a"]["acc,strict"] = 0.0
    side["samples"]["a"] += [{"doc_id": i, "filter": "strict", "acc": 0.0} for i in range(2)]
    found = {score.filter: score for score in compare_results(side, side)}
    assert {name: score.base for name, score in found.items()} == {"none": 0.5, "strict": 0.0}
    assert all(score.change is not None and score.change.n == 2 for score in found.values())


def test_a_group_is_paired_over_the_questions_of_its_tasks():
    nested = {"all": ["some", "c"], "some": ["a", "b"]}
    scores = {"a": [1.0, 1.0], "b": [0.0, 0.0, 1.0], "c": [1.0]}
    after = {"a": [1.0, 0.0], "b": [0.0, 0.0, 0.0], "c": [1.0]}
    base = result(scores, groups={"all": {"acc,none": 4 / 6}, "some": {"acc,none": 3 / 5}}, group_subtasks=nested)
    tuned = result(after, groups={"all": {"acc,none": 2 / 6}, "some": {"acc,none": 1 / 5}}, group_subtasks=nested)
    found = compare_results(base, tuned)
    assert [score.task for score in found] == ["all", "some", "a", "b", "c"]
    changes = {score.task: score.change for score in found if score.change is not None}
    assert {name: change.n for name, change in changes.items()} == {"all": 6, "some": 5, "a": 2, "b": 3, "c": 1}
    assert changes["all"].value == pytest.approx(-2 / 6)
    # A group whose score weighs its tasks alike is another mean than that over all questions.
    base["groups"]["some"]["acc,none"] = (1.0 + 1 / 3) / 2
    assert {score.task: score.change for score in compare_results(base, tuned)}["some"] is None
