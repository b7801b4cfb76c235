"""The rows of evaluation_prompts.jsonl, by hand, and that they add up to the figures of evaluation.json."""

import pytest

from naysay.artifacts.store import read_records, write_records
from naysay.evaluation.likelihood import HeldoutGroup, Scores, heldout_metrics, nats_per_token
from naysay.evaluation.prompts import prompt_rows
from naysay.records import Generation, PromptEvaluation

WEIGHTS = {"alpha": 0.5, "beta": 0.2}


def group(prompt_id, anchors, negatives, acceptable):
    scored = [[Scores(*item) for item in items] for items in (anchors, negatives, acceptable)]
    return HeldoutGroup(
        prompt_id, *scored, ref_anchors=[a[0] for a in anchors], ref_negatives=[n[0] for n in negatives]
    )


# (before, after, tokens)
GROUPS = [
    group("p-1", [(-10, -9, 5), (-12, -9, 6)], [(-8, -12, 4)], [(-12, -11, 4)]),
    group("p-2", [(-5, -6, 1)], [(-6, -7, 2), (-3, -9, 3)], [(-20, -22, 4), (-4, -1, 3)]),
    group("p-3", [], [(-6, -16, 2)], []),
]
BENIGN = [("b-1", Scores(-6, -5, 3)), ("b-1", Scores(-8, -9, 4)), ("b-2", Scores(-2, -2.5, 1))]
KINDS = {"b-2": "lookalike", "p-1": "heldout", "p-2": "heldout", "p-3": "heldout", "b-1": "benign"}
KL = {"base_to_tuned": {"b-1": (0.6, 6)}, "tuned_to_base": {"b-1": (0.4, 8)}}


def generation(prompt_id, model, outcome):
    return Generation(prompt_id, "?", KINDS[prompt_id], model, "d", 1, (1,), "x", "stop", outcome)


GENERATIONS = [
    generation("p-1", "base", "answer"),
    generation("b-1", "base", "answer"),
    generation("p-1", "tuned", "refusal"),
    generation("b-1", "tuned", "degenerate"),
]


@pytest.fixture
def rows():
    found = prompt_rows(GROUPS, BENIGN, KL, GENERATIONS, KINDS, **WEIGHTS)
    return {row.prompt_id: row for row in found}


def test_a_held_out_prompt(rows):
    row = rows["p-1"]
    # 0.2 * (1 + 3) / 2 + 0.5 * 4, and 1 / 4 + 4 / 4
    assert row.margins == pytest.approx((2.4,))
    assert row.separation == pytest.approx(1.25)
    assert (row.negative_log_ratio, row.negative_tokens) == (-4, 4)
    assert row.negatives == ((-4, 4),)
    assert (row.anchor_log_ratio, row.anchor_tokens) == (4, 11)
    assert (row.acceptable_log_ratio, row.acceptable_tokens) == (1, 4)
    # -12 / 4 against -8 / 4 before, -11 / 4 against -12 / 4 after
    assert (row.pairs_right_base, row.pairs_right_tuned) == ((False,), (True,))
    assert (row.outcome_base, row.outcome_tuned) == ("answer", "refusal")
    assert (row.kl_base_to_tuned, row.kl_tuned_to_base) == (None, None)


def test_pairs_go_by_acceptable_then_rejected(rows):
    # -5.0 and -4/3 against -3.0 and -1.0 before; -5.5 and -1/3 against -3.5 and -3.0 after
    assert rows["p-2"].pairs_right_base == (False, False, True, False)
    assert rows["p-2"].pairs_right_tuned == (False, False, True, True)


def test_rejected_answers_stand_one_by_one(rows):
    assert rows["p-2"].negatives == ((-1, 2), (-6, 3))
    assert (rows["p-2"].negative_log_ratio, rows["p-2"].negative_tokens) == (-7, 5)


def test_what_a_prompt_does_not_have_is_left_out(rows):
    assert rows["p-3"] == PromptEvaluation(
        "p-3", "heldout", negatives=((-10, 2),), negative_log_ratio=-10.0, negative_tokens=2
    )
    assert rows["b-2"] == PromptEvaluation("b-2", "lookalike", acceptable_log_ratio=-0.5, acceptable_tokens=1)


def test_a_benign_prompt_has_its_answers_and_both_kls(rows):
    row = rows["b-1"]
    assert (row.acceptable_log_ratio, row.acceptable_tokens) == (0, 7)
    assert (row.kl_base_to_tuned, row.kl_tuned_to_base) == ((0.6, 6), (0.4, 8))
    assert (row.margins, row.separation, row.outcome_tuned) == ((), None, "degenerate")


def test_rows_follow_the_prompts_and_survive_the_disk(rows, tmp_path):
    assert list(rows) == list(KINDS)
    write_records(tmp_path / "rows.jsonl", rows.values())
    assert read_records(tmp_path / "rows.jsonl", PromptEvaluation) == list(rows.values())


def test_the_rows_add_up_to_the_evaluation(rows):
    found = heldout_metrics(GROUPS, **WEIGHTS, samples=200, seed=0)
    heldout = [row for row in rows.values() if row.kind == "heldout"]

    def ratio(top, bottom):
        return sum(getattr(row, top) for row in heldout) / sum(getattr(row, bottom) for row in heldout)

    for kind in ("negative", "anchor", "acceptable"):
        expected = found[f"{kind}_log_ratio_per_token"].value
        assert ratio(f"{kind}_log_ratio", f"{kind}_tokens") == pytest.approx(expected), kind
    margins = [margin for row in heldout for margin in row.margins]
    assert sum(margins) / len(margins) == pytest.approx(found["margin"].value)
    separations = [row.separation for row in heldout if row.separation is not None]
    assert sum(separations) / len(separations) == pytest.approx(found["separation"].value)
    right = [flag for row in heldout for flag in row.pairs_right_tuned]
    assert sum(right) / len(right) == pytest.approx(found["pair_accuracy_tuned"].value)
    benign = [row for row in rows.values() if row.kind != "heldout"]
    change = nats_per_token(BENIGN, samples=200, seed=0)["nats_per_token_change"].value
    assert -sum(r.acceptable_log_ratio for r in benign) / sum(r.acceptable_tokens for r in benign) == change
