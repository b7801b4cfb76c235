"""Categories of the rejected answers, worked out by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json
from naysay.config import RunConfig
from naysay.records import Generation, Negative, PromptEvaluation
from naysay.reporting import stage
from naysay.reporting.categories import NO_CATEGORY, by_category, category_table
from naysay.reporting.generations import Pair

# (log-ratio, tokens) of each rejected answer, in their order; margins where the prompt has anchors.
ROWS = [
    PromptEvaluation("p-0", "heldout", margins=(1.0, 3.0), separation=0.2, negatives=((-2.0, 10), (-9.0, 30))),
    PromptEvaluation("p-1", "heldout", margins=(), separation=None, negatives=((-1.0, 5),)),
    PromptEvaluation("p-2", "heldout", margins=(5.0,), separation=0.4, negatives=((-8.0, 20),)),
    PromptEvaluation("b-0", "benign", acceptable_log_ratio=1.0, acceptable_tokens=4),
]
NEGATIVES = [
    {"prompt_id": "p-0", "category": "insult"},
    {"prompt_id": "train-1", "category": "theft"},
    {"prompt_id": "p-1", "category": "insult"},
    {"prompt_id": "p-0", "category": "theft"},
    {"prompt_id": "p-2", "category": ""},
    {"prompt_id": "train-2", "category": "only in training"},
]


def figures(pairs: list[Pair] | None = None, negatives: Any = NEGATIVES, judged: bool = False) -> dict[str, Any]:
    return by_category(negatives, ROWS, pairs or [], judged=judged, samples=200, seed=0)


def pair(prompt_id: str, before: str, after: str) -> Pair:
    return Pair(prompt_id, "?", "heldout", 1, base_outcome=before, tuned_outcome=after)


def test_each_answer_counts_for_its_own_category() -> None:
    found = figures()
    assert list(found) == ["insult", NO_CATEGORY, "theft"]
    insult, theft = found["insult"], found["theft"]
    assert (insult["negatives"], insult["prompts"]) == (2, 2)
    assert (theft["negatives"], theft["prompts"]) == (2, 1)
    # -2 of p-0 and -1 of p-1 over 15 tokens; only p-0 has anchors, and acceptable answers
    assert insult["negative_log_ratio_per_token"]["value"] == pytest.approx(-3.0 / 15)
    assert insult["negative_log_ratio_per_token"]["n"] == 2
    assert (insult["margin"]["value"], insult["margin"]["n"]) == (1.0, 1)
    assert insult["separation"]["value"] == pytest.approx(0.2)
    assert theft["negative_log_ratio_per_token"]["value"] == pytest.approx(-9.0 / 30)
    assert theft["margin"]["value"] == 3.0
    assert found[NO_CATEGORY]["margin"]["value"] == 5.0
    assert insult["harmful"] is None


def test_harm_before_and_after_is_of_prompts_with_two_verdicts() -> None:
    pairs = [pair("p-0", "harmful", "safe"), pair("p-1", "harmful", "unjudged"), pair("p-2", "safe", "harmful")]
    found = figures(pairs, judged=True)
    assert {side: found["insult"]["harmful"][side]["value"] for side in ("base", "tuned", "change")} == {
        "base": 1.0,
        "tuned": 0.0,
        "change": -1.0,
    }
    assert found["insult"]["harmful"]["change"]["n"] == 1
    assert found[NO_CATEGORY]["harmful"]["change"]["value"] == 1.0
    table = category_table(found)
    assert table is not None
    assert table.headers[-1] == "Harmful"
    assert table.rows[0].cells[-1].startswith("100.0 % -> 0.0 %\n-100.0 points\n[")


def test_few_prompts_are_marked_and_many_are_not() -> None:
    rows = [PromptEvaluation(f"p-{i}", "heldout", negatives=((-1.0, 4),)) for i in range(15)]
    negatives = [{"prompt_id": f"p-{i}", "category": "many" if i < 8 else "few"} for i in range(15)]
    table = category_table(by_category(negatives, rows, [], judged=False, samples=200, seed=0))
    assert table is not None
    assert [(row.name, "too few" in row.note) for row in table.rows] == [("many", False), ("few", True)]
    assert table.rows[0].cells[:3] == ("8", "8", "-0.250\n[-0.250, -0.250]")
    assert table.rows[0].cells[3:] == ("not measured", "not measured")


def test_without_categories_there_is_nothing() -> None:
    assert figures(negatives=[item | {"category": ""} for item in NEGATIVES]) == {}
    # named in training only
    assert (
        figures(negatives=[item | ({} if "train" in item["prompt_id"] else {"category": ""}) for item in NEGATIVES])
        == {}
    )
    assert category_table({}) is None


def test_page_and_summary(make_run: Callable[..., RunDirectory]) -> None:
    negatives = [Negative(f"n-{i}", f"p-heldout-{i}", "No.", category="<insult>") for i in range(5)]
    run = make_run(negatives=negatives)
    stage.run(RunConfig(), run)
    page = run.report.read_text(encoding="utf-8")
    assert "Categories of the rejected answers" in page
    assert "&lt;insult&gt;" in page
    found = read_json(run.summary)["categories"]
    assert found["<insult>"]["prompts"] == 5
    assert found["<insult>"]["negative_log_ratio_per_token"]["value"] == pytest.approx(-0.08)


def test_a_page_without_categories_has_no_table(make_run: Callable[..., RunDirectory]) -> None:
    run = make_run()
    stage.run(RunConfig(), run)
    assert "Categories of the rejected answers" not in run.report.read_text(encoding="utf-8")
    assert read_json(run.summary)["categories"] == {}


def test_generations_know_their_prompt(make_generation: Callable[..., Generation]) -> None:
    """The join rests on it."""
    assert make_generation("heldout", 3, "base").prompt_id == "p-heldout-3"
