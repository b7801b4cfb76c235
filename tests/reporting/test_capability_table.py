"""The table of what lm-eval measured, and when the report shows it."""

import pytest

from naysay.artifacts.store import write_json
from naysay.config.run import RunConfig
from naysay.reporting import stage
from naysay.reporting.capability import MOST_ROWS, capability_table

POLICY = {"base_digest": "b" * 32, "tuned_digest": "t" * 32}


def capability(rows: int = 1, **changes):
    score = {
        "task": "arc_easy",
        "metric": "acc",
        "filter": "none",
        "group": False,
        "higher_is_better": True,
        "base": 0.61,
        "base_stderr": 0.02,
        "tuned": 0.6,
        "tuned_stderr": None,
        "change": {"value": -0.01, "ci_low": -0.03, "ci_high": 0.01, "n": 1500},
    }
    return {
        "policy": POLICY,
        "settings": {"limit": None},
        "lm_eval": "0.4.13",
        "scores": [score | changes for _ in range(rows)],
    }


def test_a_score_is_a_row_with_its_paired_change():
    table = capability_table(capability(), POLICY)
    assert table is not None
    (row,) = table.rows
    assert row.name == "arc_easy: acc"
    assert row.cells == ("0.610 (0.020)", "0.600", "-0.010 [-0.030, +0.010]", "1,500")
    assert row.note == "higher is better"


def test_a_score_without_a_paired_change_says_so():
    table = capability_table(capability(change=None, filter="strict", higher_is_better=None), POLICY)
    assert table is not None
    assert (table.rows[0].name, table.rows[0].cells[2:]) == ("arc_easy: acc (strict)", ("not measured", ""))


def test_limits_and_rows_left_out_are_named():
    measured = capability(MOST_ROWS + 3)
    measured["settings"]["limit"] = 10
    table = capability_table(measured, POLICY)
    assert table is not None
    assert len(table.rows) == MOST_ROWS
    assert "first 10 questions" in table.foot
    assert "3 more rows" in table.foot


@pytest.mark.parametrize("policy", [None, POLICY | {"tuned_digest": "x" * 32}])
def test_scores_of_other_weights_are_not_shown(policy):
    assert capability_table(capability(), policy) is None


def test_the_report_shows_the_table_where_the_file_is_there(make_run):
    run = make_run()
    stage.run(RunConfig(), run)
    assert "<caption>Capability</caption>" not in run.report.read_text()
    write_json(run.capability, capability())
    assert stage.inputs(RunConfig(), run)["capability"] == run.capability
    stage.run(RunConfig(), run)
    page = run.report.read_text()
    assert "<caption>Capability</caption>" in page
    assert "-0.010 [-0.030, +0.010]" in page
