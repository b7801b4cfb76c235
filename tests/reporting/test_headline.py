"""The first figures of the page, and the words beside the curves."""

from collections.abc import Callable
from typing import Any

import pytest

from naysay.artifacts.run_directory import RunDirectory
from naysay.config import RunConfig
from naysay.reporting import decide, stage
from naysay.reporting.curves import explanation, training_curves
from naysay.reporting.headline import headline_figures

ROW = {
    "step": 1,
    "margin": 0.1,
    "anchor_log_ratio_per_token": -0.1,
    "negative_log_ratio_per_token": -0.4,
    "weight": 0.5,
}


def test_separation_stands_first_beside_the_pairs(evaluation: dict[str, Any]) -> None:
    separation, pairs = headline_figures(evaluation)
    assert (separation.name, separation.value) == ("Separation", "+0.052")
    assert separation.detail == "nats/token [+0.032, +0.072], n=48 held-out prompts"
    assert pairs.value == "52.0 % -> 65.0 %"
    assert pairs.detail == ("[38.0, 66.0] -> [52.0, 78.0], change +13.0 points [+4.0, +22.0], n=48 held-out prompts")


def test_a_figure_that_may_be_no_change_says_so(evaluation: dict[str, Any]) -> None:
    for name in ("separation", "pair_accuracy_change"):
        evaluation["heldout"][name] |= {"ci_low": -0.01}
    assert all(figure.detail.endswith("prompts: no evidence of a change") for figure in headline_figures(evaluation))


@pytest.mark.parametrize("missing", [None, {"value": None, "ci_low": None, "ci_high": None, "n": 0}])
def test_without_both_kinds_of_answers_there_is_none(evaluation: dict[str, Any], missing: Any) -> None:
    evaluation["heldout"]["separation"] = missing
    assert headline_figures(evaluation) == []


def test_no_other_figure_comes_before_it(make_run: Callable[..., RunDirectory], evaluation: dict[str, Any]) -> None:
    run = make_run()
    stage.run(RunConfig(), run)
    main = run.report.read_text(encoding="utf-8").split("<main>")[1]
    first = main.index('<dd class="value">+0.052</dd>')
    assert main.index('<dd class="value">52.0 % -&gt; 65.0 %</dd>') > first
    assert main.index(decide(evaluation, 0.10).text[:40]) > first
    assert not any(character.isdigit() for character in main[:first].split("</h2>")[1].replace("<h2", ""))


def test_why_both_fall_is_said_where_both_are_drawn() -> None:
    why, watch, sources = explanation([ROW], "d2o")
    assert "minus the KL from the initial to the tuned model" in why
    assert "What D²O trains is the gap alone" in watch
    assert "the weight should go towards 0" in watch
    assert "docs/lab.md, section b" in sources
    assert "What D²O trains" not in explanation([ROW], "ga")[1]
    assert explanation([{"step": 1, "margin": 0.1}], "d2o") == []


def test_the_weight_is_drawn() -> None:
    assert [curve.title for curve in training_curves([ROW])] == [
        "Margin",
        "Log-ratios, anchors and negatives apart",
        "Weight",
    ]
