"""Numbers as people read them, counts that add up, curves."""

from typing import Any

import pytest

from naysay.artifacts.manifest import Manifest
from naysay.reporting import tables
from naysay.reporting.curves import training_curves
from naysay.reporting.formatting import duration, interval, number, with_interval

ESTIMATE = {"value": 0.052, "ci_low": 0.0314, "ci_high": 0.0742, "n": 48}


def manifest(
    stage: str, counts: dict[str, object] | None = None, processor: str = "cpu", seconds: float = 1.0
) -> Manifest:
    return Manifest(stage, "k", {}, {}, {}, counts or {}, seconds, {"processor": processor})


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (0.052, "signed", "+0.052"),
        (-0.0001, "signed", "+0.000"),
        (0.031, "plain", "0.031"),
        (0.0416, "percent", "4.2 %"),
        (-0.291, "points", "-29.1 points"),
        (None, "plain", "not measured"),
    ],
)
def test_numbers(value: float | None, style: tables.Style, text: str) -> None:
    assert number(value, style) == text


def test_intervals() -> None:
    assert with_interval(ESTIMATE) == "+0.052 [+0.031, +0.074]"
    assert with_interval(ESTIMATE, "percent") == "5.2 % [3.1, 7.4]"
    assert interval({**ESTIMATE, "ci_low": None, "ci_high": None}) == ""
    assert with_interval(None) == "not measured"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (605, "10 min 05 s"), (7265, "2 h 01 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_are_indented_and_groups_show_their_sum() -> None:
    table = tables.counts(
        manifest("score", {"anchors": {"in": 1704, "kept": 1690, "dropped": {"loop": 12, "empty": 2}}})
    )
    assert [(row.name, row.cells, row.depth) for row in table.rows] == [
        ("anchors", ("as below",), 0),
        ("in", ("1,704",), 1),
        ("kept", ("1,690",), 1),
        ("dropped", ("14",), 1),
        ("loop", ("12",), 2),
        ("empty", ("2",), 2),
    ]
    assert table.foot


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"in": 10, "out": 8, "dropped": {"a": 1, "b": 1}}, True),
        ({"in": 10, "out": 8, "dropped": {"a": 1}}, False),
        ({"rows": {"in": 3, "used": 3}, "answers": {"in": 4, "out": 3}}, False),
        ({"rows": {"in": 3, "used": 3}, "steps": 5}, True),
        ({"steps": 5}, False),
    ],
)
def test_counts_are_said_to_add_up_only_where_they_do(counts: dict[str, object], expected: bool) -> None:
    assert tables.adds_up(counts) is expected


def test_environments_show_once_what_all_stages_share() -> None:
    same = tables.environments([manifest("ingest"), manifest("train")])
    assert [(row.cells, row.note) for row in same.rows] == [(("cpu",), "")]
    different = tables.environments([manifest("ingest"), manifest("train", processor="gpu")])
    assert [(row.cells, row.note) for row in different.rows] == [(("cpu",), "ingest"), (("gpu",), "train")]


def test_wall_time_has_a_total() -> None:
    table = tables.seconds([manifest("ingest", seconds=2.0), manifest("train", seconds=70.0)])
    assert [row.cells[0] for row in table.rows] == ["2.0 s", "1 min 10 s", "1 min 12 s"]


def test_a_curve_says_in_words_what_it_shows() -> None:
    rows = [{"step": step, "margin": 0.1 * step, "loss": None} for step in (1, 2, 3)]
    curves = training_curves(rows)
    assert [curve.title for curve in curves] == ["Margin"]
    assert curves[0].alternative == "Margin: margin from 0.100 at step 1 to 0.300 at step 3."
    assert "#0102" not in curves[0].svg
    assert "var(--series-1)" in curves[0].svg


def test_anchors_and_negatives_are_apart_on_one_axis() -> None:
    row = {"step": 1, "anchor_log_ratio_per_token": -0.1, "negative_log_ratio_per_token": -0.4}
    (curve,) = training_curves([row, {**row, "step": 2}])
    assert "anchors from -0.100" in curve.alternative
    assert "negatives from -0.400" in curve.alternative
    assert "var(--series-2)" in curve.svg
    assert training_curves([]) == []


def test_the_table_of_suites_says_where_every_prompt_went(evaluation: dict[str, Any]) -> None:
    table = tables.suites(evaluation)
    assert table is not None
    (row,) = table.rows
    assert row.name == "xstest"
    assert dict(zip(table.headers[1:], row.cells, strict=True)) == {
        "Kinds used": "look-alike 240, safety 199",
        "Prompts": "450",
        "Exact": "3",
        "Near": "4",
        "Repeated": "2",
        "Other": "2",
        "Used": "439",
    }
    assert tables.suites(evaluation | {"suites": []}) is None


def test_a_suite_of_trained_prompts_says_why_it_has_no_kinds(evaluation: dict[str, Any]) -> None:
    (suite,) = evaluation["suites"]
    leaked = suite | {"kinds": {}, "prompts": 7, "used": 0}
    for others, said in (
        ({"other_kind": 0, "duplicate": 0}, "none: all prompts were trained on"),
        ({"prompts": 8}, "none"),
    ):
        table = tables.suites(evaluation | {"suites": [leaked | others]})
        assert table is not None
        assert table.rows[0].cells[0] == said


def test_no_count_is_an_empty_cell() -> None:
    table = tables.counts(manifest("ingest", {"rows": {"in": 2, "by_reason": {}, "used": 2}, "languages": []}))
    assert [(row.name, row.cells) for row in table.rows] == [
        ("rows", ("as below",)),
        ("in", ("2",)),
        ("used", ("2",)),
        ("languages", ("none",)),
    ]
