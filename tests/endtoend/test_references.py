"""`references.positive` stands under the negatives, `references.negative` under the anchors; each can be replaced."""

import math
from typing import Any

import pytest
from peft import PeftModel

from conftest import make_tokenizer
from endtoend.plain import load, plain_logp
from endtoend.workplace import save_model
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, read_jsonl
from naysay.modeling.chat import encode_prompt, encode_response
from naysay.training.rows import training_rows


@pytest.fixture(scope="session")
def other_model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("other") / "llama", seed=1)


def trained_groups(run: RunDirectory) -> list[dict[str, Any]]:
    return list(read_jsonl(run.train / "groups.jsonl"))


def column(run: RunDirectory, name: str) -> list[float]:
    return [row[name] for row in trained_groups(run)]


def first_loss(run: RunDirectory) -> float:
    return next(read_jsonl(run.metrics))["loss"]


def expected(run: RunDirectory, anchors_under: Any, negatives_under: Any) -> tuple[list[float], list[float]]:
    """Sums over each group, computed one sequence at a time by plain transformers."""
    tokenizer = make_tokenizer()
    of_anchors, of_negatives = [], []
    for row in training_rows(run, "train"):
        prompt = encode_prompt(tokenizer, row["prompt"])
        negatives = [encode_response(tokenizer, answer["text"], ended=True) for answer in row["rejected"]]
        of_anchors.append(sum(plain_logp(anchors_under, prompt, ids) for ids in row["anchors"]))
        of_negatives.append(sum(plain_logp(negatives_under, prompt, ids) for ids in negatives))
    return of_anchors, of_negatives


@pytest.mark.parametrize("role", ["positive", "negative"])
def test_a_reference_that_is_another_model(naysay, finished, other_model, role):
    run = naysay.do("a", f"references.{role}={other_model}")
    initial, other = load(naysay.model), load(other_model)
    anchors, negatives = expected(run, *((initial, other) if role == "positive" else (other, initial)))
    assert column(run, "anchor_ref_logp") == pytest.approx(anchors, rel=1e-4)
    assert column(run, "negative_ref_logp") == pytest.approx(negatives, rel=1e-4)
    touched, untouched = ("negative", "anchor") if role == "positive" else ("anchor", "negative")
    assert column(run, f"{untouched}_ref_logp") == pytest.approx(column(finished, f"{untouched}_ref_logp"), rel=1e-6)
    assert column(run, f"{touched}_ref_logp") != pytest.approx(column(finished, f"{touched}_ref_logp"), rel=0.01)
    references = read_json(run.summary)["counts"]["train"]["references"]
    assert references[role] != read_json(run.evaluation)["policy"]["base_digest"]


def test_the_evaluation_takes_the_margin_against_the_references(naysay, other_model):
    """Of a policy that did not move, the margin is 0 against itself and far from 0 against another r+."""
    run = naysay.do("a", f"references.positive={other_model}", "training.learning_rate=1e-9")
    margin = read_json(run.evaluation)["heldout"]["margin"]["value"]
    assert abs(margin) > 0.05
    same = naysay.do("b", "training.learning_rate=1e-9")
    assert abs(read_json(same.evaluation)["heldout"]["margin"]["value"]) < 1e-4


def test_an_adapter_folder_as_reference_and_swapping_the_two_changes_the_loss(naysay, finished):
    adapter = finished.adapter
    plus = naysay.do("a", f"references.positive={adapter}")
    minus = naysay.do("b", f"references.negative={adapter}")
    initial = load(naysay.model)
    tuned = PeftModel.from_pretrained(load(naysay.model), str(adapter)).eval()
    anchors, negatives = expected(plus, initial, tuned)
    assert column(plus, "negative_ref_logp") == pytest.approx(negatives, rel=1e-4)
    assert column(plus, "anchor_ref_logp") == pytest.approx(anchors, rel=1e-4)
    # The adapter made the negatives unlikely. As r+ that raises their log-ratio, so the loss starts above log 2.
    assert first_loss(finished) == pytest.approx(math.log(2), abs=1e-5)
    assert first_loss(plus) > 1.0
    assert first_loss(minus) != pytest.approx(first_loss(plus), rel=0.1)
    assert first_loss(minus) != pytest.approx(first_loss(finished), rel=0.01)


def test_a_reference_that_is_not_there_is_refused_before_anything_is_done(naysay):
    error = naysay.refused(*naysay.command("a", "references.negative=./no-such-model"))
    assert "./no-such-model" in error
    assert not naysay.run("a").path.exists()


def test_a_reference_with_another_vocabulary_is_refused(naysay, tmp_path):
    small = save_model(tmp_path / "small", vocab_size=300)
    error = naysay.refused(*naysay.command("a", f"references.negative={small}"))
    assert "its vocabulary has 300 tokens, the policy's 259" in error
