"""What the report says where judges of harm were asked: the table, the bars, the agreement, the model card."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from naysay.artifacts.run_directory import RunDirectory
from naysay.config import RunConfig
from naysay.judging.scorer import LABELS
from naysay.reporting import judged, stage, tables
from naysay.reporting.model_card import card_path

Evaluation = dict[str, Any]


def test_the_table_has_each_outcome_of_each_kind(judged_evaluation: Evaluation) -> None:
    table = judged.judged_outcomes(judged_evaluation)
    assert table is not None
    rows = {row.name: row.cells for row in table.rows}
    assert len(rows) == 3 * len(LABELS)
    assert rows["Held-out prompts: harmful"] == (
        "50.0 %\n[40.0, 60.0]",
        "18.8 %\n[8.8, 28.8]",
        "-31.2 points\n[-36.2, -26.2]",
        "48",
        "< 0.001",
    )
    assert rows["Look-alike prompts: refusal"][-1] == "1.000"
    notes = [row.note for row in table.rows if row.note]
    assert set(notes) == {"refusals by form that the judge calls harmful: 0 of the base's answers, 1 of the tuned's"}
    assert "Harm is what offline:mine says" in table.foot


def test_unadjusted_p_values_stand_where_few_were_compared(judged_evaluation: Evaluation) -> None:
    judged_evaluation["outcomes"]["by_kind"]["heldout"]["p_holm"] = dict.fromkeys(LABELS)
    table = judged.judged_outcomes(judged_evaluation)
    assert table is not None
    assert {row.cells[-1] for row in table.rows if row.name.startswith("Held-out")} == {"0.010"}


def test_what_was_not_compared_has_no_p_value(judged_evaluation: Evaluation) -> None:
    for p in ("p_value", "p_holm"):
        judged_evaluation["outcomes"]["by_kind"]["heldout"][p] = dict.fromkeys(LABELS)
    table = judged.judged_outcomes(judged_evaluation)
    assert table is not None
    assert {row.cells[-1] for row in table.rows if row.name.startswith("Held-out")} == {""}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.71, "on harm: Krippendorff's alpha 0.71 [0.61, 0.81] (n=192 answers)."),
        (0.5, "(n=192 answers), below 0.667: no conclusion should rest on one of them."),
        (None, "is not defined"),
    ],
)
def test_agreement(judged_evaluation: Evaluation, value: float | None, expected: str) -> None:
    outcomes = judged_evaluation["outcomes"]
    outcomes["agreement"]["value"] = value
    said = judged.agreement(outcomes)
    assert "Agreement of offline:mine and qwen3guard:guard on harm" in said
    assert expected in said
    assert judged.agreement(outcomes | {"agreement": None}) == ""


def test_bars_speak_and_have_ids_of_their_own(judged_evaluation: Evaluation) -> None:
    bars = judged.outcome_bars(judged_evaluation)
    assert [item.title for item in bars] == ["Held-out prompts", "Benign prompts", "Look-alike prompts"]
    assert "harmful from 50.0 % [40.0, 60.0] to 18.8 % [8.8, 28.8]" in bars[0].alternative
    assert "var(--series-1)" in bars[0].svg
    assert "var(--series-2)" in bars[0].svg
    ids = [name for item in bars for name in re.findall(r'\bid="([^"]+)"', item.svg)]
    assert len(ids) == len(set(ids))


def test_an_outcome_that_was_not_measured_has_no_bar(judged_evaluation: Evaluation) -> None:
    nothing = {"value": None, "ci_low": None, "ci_high": None, "n": 0}
    judged_evaluation["outcomes"]["by_kind"]["benign"]["tuned"] |= dict.fromkeys(LABELS, nothing)
    (_, benign, _) = judged.outcome_bars(judged_evaluation)
    assert "harmful from 2.0 % [-8.0, 12.0] to not measured" in benign.alternative


def test_without_a_judge_there_is_none_of_it(evaluation: Evaluation) -> None:
    for found in (evaluation, evaluation | {"outcomes": None}):
        assert judged.judged_outcomes(found) is None
        assert judged.outcome_bars(found) == []
        assert "Harmful answers, change" not in [row.name for row in tables.headline(found, 0.1).rows]


def test_page_headline_and_card(make_run: Callable[..., RunDirectory], judged_evaluation: Evaluation) -> None:
    run = make_run(judged_evaluation)
    stage.run(RunConfig(), run)
    page = run.report.read_text(encoding="utf-8")
    assert page.count('<svg aria-hidden="true"') == 5 + 3
    assert "Outcomes by judge, same prompts and seeds" in page
    assert [row.cells for row in tables.headline(judged_evaluation, 0.1).rows][:2] == [
        ("-31.2 points", "[-36.2, -26.2]", "48"),
        ("+1.0 points", "[-4.0, +6.0]", "20"),
    ]
    card = card_path(RunConfig(), run).read_text(encoding="utf-8")
    assert "was judged by offline:mine, qwen3guard:guard, which may err" in " ".join(card.split())
    assert "Nobody judged" not in card
