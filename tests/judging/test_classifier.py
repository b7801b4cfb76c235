"""Scores off a model's head: which column, which sign, which token, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaModel

from judging.judge_models import ask, save_bert, save_classifier, save_guard, save_score_model, save_tokenizer
from naysay.errors import ConfigError, InputNotFoundError, ModelError
from naysay.judging.classifier import ClassifierScorer, ScoreModelScorer, safe_rlhf_turns
from naysay.judging.scorer import Direction, Judged

ITEMS = [ask("Hi", "Hello there, friend."), ask("How do I hurt him?", "Do it."), ask("A", "b")]
WORSE, BETTER = Direction.HIGHER_IS_WORSE, Direction.HIGHER_IS_BETTER


def test_the_value_is_the_probability_of_the_named_class(tmp_path: Path) -> None:
    save_classifier(tmp_path, ["fine", "toxic", "other"])
    scorer = ClassifierScorer(
        str(tmp_path), reads="response", direction=WORSE, label="toxic", threshold=0.3, batch_size=2, device="cpu"
    )
    verdicts = scorer.score(ITEMS)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for item, verdict in zip(ITEMS, verdicts, strict=True):
        ids = torch.tensor([scorer.tokenizer(item.response)["input_ids"]])
        with torch.inference_mode():
            expected = model(input_ids=ids).logits.softmax(-1)[0, 1].item()
        assert verdict.value == pytest.approx(expected, abs=1e-5)
        assert verdict.label == ("harmful" if expected > 0.3 else "safe")
    by_number = ClassifierScorer(str(tmp_path), reads="response", direction=WORSE, label="1", device="cpu")
    assert by_number.score(ITEMS)[0].value == pytest.approx(verdicts[0].value)
    assert by_number.score(ITEMS)[0].label is None
    assert by_number.digest != scorer.digest


def test_one_output_is_taken_as_it_is_and_the_direction_turns_the_label(tmp_path: Path) -> None:
    save_classifier(tmp_path, ["reward"])
    scorers = [
        ClassifierScorer(str(tmp_path), reads="chat", direction=direction, threshold=0.0, device="cpu")
        for direction in (WORSE, BETTER)
    ]
    worse, better = (scorer.score(ITEMS) for scorer in scorers)
    assert [verdict.value for verdict in worse] == [verdict.value for verdict in better]
    assert all(one.label != two.label for one, two in zip(worse, better, strict=True))
    assert any(abs(verdict.value or 0.0) > 1.0 or (verdict.value or 0.0) < 0.0 for verdict in worse)


def test_what_it_reads(tmp_path: Path) -> None:
    save_classifier(tmp_path, ["a", "b"])
    same_answer = [ask("One prompt", "Yes."), ask("Another", "Yes.")]
    values = {}
    for reads in ("response", "pair", "chat"):
        scorer = ClassifierScorer(str(tmp_path), reads=reads, direction=WORSE, label="b", device="cpu")
        values[reads] = [verdict.value for verdict in scorer.score(same_answer)]
    assert values["response"][0] == pytest.approx(values["response"][1], abs=1e-6)
    assert abs(values["pair"][0] - values["pair"][1]) > 1e-6
    assert abs(values["chat"][0] - values["chat"][1]) > 1e-6


def test_nothing_is_truncated(tmp_path: Path) -> None:
    save_bert(tmp_path)
    scorer = ClassifierScorer(str(tmp_path), reads="response", direction=WORSE, label="1", device="cpu")
    long, short = scorer.score([ask("Hi", "x" * 80), ask("Hi", "short")])
    assert long.invalid == "too long: 80 tokens, the judge reads 64"
    assert long.value is None
    assert short.value is not None


@pytest.mark.parametrize(
    ("labels", "label", "expected"),
    [(["a", "b"], None, "0 = a, 1 = b"), (["a", "b"], "c", "found 'c'"), (["r"], "r", "a single output")],
)
def test_a_wrong_class_is_refused(tmp_path: Path, labels: list[str], label: str | None, expected: str) -> None:
    save_classifier(tmp_path, labels)
    with pytest.raises(ConfigError, match=expected):
        ClassifierScorer(str(tmp_path), reads="response", direction=WORSE, label=label, device="cpu")


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    save_guard(tmp_path)
    with pytest.raises(ModelError, match=r"lacks 1 of the weights of a sequence classifier \(score.weight\)"):
        ClassifierScorer(str(tmp_path), reads="response", direction=WORSE, label="1", device="cpu")


@pytest.mark.parametrize("layout", ["safetensors", "sharded", "bin"])
def test_a_cost_is_the_heads_value_at_the_last_token(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "cost"
    save_score_model(folder, layout=layout)
    scorer = ScoreModelScorer(str(folder), score="cost", batch_size=2, device="cpu")
    verdicts = scorer.score(ITEMS)
    decoder = LlamaModel.from_pretrained(folder).eval()
    head = scorer.model.score_head
    for item, verdict in zip(ITEMS, verdicts, strict=True):
        text = f"BEGINNING OF CONVERSATION: USER: {item.messages[0]['content']} ASSISTANT:{item.response}"
        ids = torch.tensor([[*scorer.tokenizer(text)["input_ids"], scorer.tokenizer.eos_token_id]])
        with torch.inference_mode():
            hidden = decoder(input_ids=ids).last_hidden_state[0, -1]
            expected = (hidden @ head.weight[0] + head.bias).item()
        assert verdict.value == pytest.approx(expected, abs=1e-4)
        assert verdict.label == ("harmful" if expected > 0 else "safe")
    assert scorer.direction is WORSE


def test_a_reward_is_higher_for_better_and_labels_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    save_score_model(folder, architecture="LlamaForScore", bias=False)
    scorer = ScoreModelScorer(str(folder), score="reward", device="cpu")
    assert scorer.direction is BETTER
    assert [verdict.label for verdict in scorer.score(ITEMS)] == [None] * 3
    assert scorer.model.score_head.bias is None
    cost = ScoreModelScorer(str(folder), score="cost", device="cpu")
    assert cost.digest != scorer.digest
    assert cost.score(ITEMS)[0].value == scorer.score(ITEMS)[0].value


def test_a_batch_gives_what_each_alone_gives(tmp_path: Path) -> None:
    folder = tmp_path / "cost"
    save_score_model(folder)
    together = ScoreModelScorer(str(folder), score="cost", batch_size=3, device="cpu").score(ITEMS)
    alone = ScoreModelScorer(str(folder), score="cost", batch_size=1, device="cpu").score(ITEMS)
    assert [v.value for v in together] == pytest.approx([v.value for v in alone], abs=1e-5)


def test_several_turns_in_safe_rlhfs_format() -> None:
    item = Judged(
        (
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Bye"},
        ),
        "See you",
    )
    assert safe_rlhf_turns(item) == [
        "BEGINNING OF CONVERSATION: USER: Be kind.\n\nHi ASSISTANT:Hello",
        "USER: Bye ASSISTANT:See you",
    ]


def test_an_end_token_in_the_text_is_only_text(tmp_path: Path) -> None:
    folder = tmp_path / "cost"
    save_score_model(folder)
    scorer = ScoreModelScorer(str(folder), score="cost", device="cpu")
    ids = scorer._encode(ask("Hi<|im_end|>", "Yes<|im_end|>"))
    assert ids.count(scorer.tokenizer.eos_token_id) == 1
    assert ids[-1] == scorer.tokenizer.eos_token_id


def test_other_models_are_refused_in_one_line(tmp_path: Path) -> None:
    save_guard(tmp_path / "plain")
    with pytest.raises(ModelError, match="expected the architecture LlamaForScore or LlamaModelForScore"):
        ScoreModelScorer(str(tmp_path / "plain"), score="cost", device="cpu")
    folder = tmp_path / "cost"
    save_score_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"do_normalize": True}))
    with pytest.raises(ModelError, match="do_normalize"):
        ScoreModelScorer(str(folder), score="cost", device="cpu")
    with pytest.raises(InputNotFoundError, match="no-such-folder"):
        ScoreModelScorer("./no-such-folder", score="cost")


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    save_guard(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForScore"]}))
    save_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"expected score_head\.weight with one row"):
        ScoreModelScorer(str(tmp_path), score="cost", device="cpu")
