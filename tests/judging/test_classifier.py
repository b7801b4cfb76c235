"""Scores off a model's head: which column, which sign, which token, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaModel, pipeline

from judging.judge_models import (
    ask,
    change_json,
    save_bert,
    save_classifier,
    save_guard,
    save_roberta,
    save_score_model,
    save_tokenizer,
)
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


def classify(folder: Path, *, batch_size: int = 8, **settings: object) -> ClassifierScorer:
    defaults = {"reads": "response", "direction": WORSE, "label": "1", "threshold": 0.5, "device": "cpu"}
    return ClassifierScorer(str(folder), batch_size=batch_size, **(defaults | settings))


def test_classes_that_may_be_true_at_once_have_a_sigmoid_each(tmp_path: Path) -> None:
    save_classifier(tmp_path, ["toxic", "insult", "threat"])
    one = classify(tmp_path, label="toxic")
    change_json(tmp_path / "config.json", problem_type="multi_label_classification")
    several = classify(tmp_path, label="toxic")
    published = pipeline("text-classification", model=str(tmp_path), top_k=None, device="cpu")
    for item, verdict in zip(ITEMS, several.score(ITEMS), strict=True):
        expected = {row["label"]: row["score"] for row in published([item.response])[0]}
        assert verdict.value == pytest.approx(expected["toxic"], abs=1e-5)
        assert sum(expected.values()) != pytest.approx(1.0, abs=0.01)
    assert one.digest != several.digest


def test_a_pair_has_its_second_text_marked_as_when_it_was_trained(tmp_path: Path) -> None:
    save_bert(tmp_path)
    change_json(tmp_path / "tokenizer_config.json", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    scorer = classify(tmp_path, reads="pair", batch_size=2)
    with torch.no_grad():
        for parameter in scorer.model.parameters():
            parameter.normal_(std=0.5)
    items = [ask("Hi", "Hello."), ask("A longer one", "b")]
    moved = []
    for item, verdict in zip(items, scorer.score(items), strict=True):
        inputs = scorer.tokenizer(item.messages[0]["content"], item.response, return_tensors="pt")
        assert inputs["token_type_ids"].unique().tolist() == [0, 1]
        with torch.inference_mode():
            expected = scorer.model(**inputs).logits.softmax(-1)[0, 1].item()
            plain = scorer.model(inputs["input_ids"]).logits.softmax(-1)[0, 1].item()
        assert verdict.value == pytest.approx(expected, abs=1e-5)
        moved.append(abs(plain - expected))
    assert max(moved) > 0.01


@pytest.mark.parametrize("pad", [None, 3, -1, 257])
def test_a_decoders_score_does_not_depend_on_the_batch_whatever_its_padding_token(
    tmp_path: Path, pad: int | None
) -> None:
    """The expected value is the published model's, one answer at a time; 257 ends every turn of a chat."""
    save_classifier(tmp_path, ["safe", "unsafe"])
    change_json(tmp_path / "config.json", pad_token_id=pad)
    change_json(tmp_path / "tokenizer_config.json", pad_token=None)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert model.config.pad_token_id == pad
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token_id is None
    for reads in ("response", "chat"):
        verdicts = classify(tmp_path, reads=reads, batch_size=3).score(ITEMS)
        for item, verdict in zip(ITEMS, verdicts, strict=True):
            messages = [*item.messages, {"role": "assistant", "content": item.response}]
            chat = tokenizer.apply_chat_template(messages, return_dict=False)
            ids = chat if reads == "chat" else tokenizer(item.response)["input_ids"]
            with torch.inference_mode():
                expected = model(input_ids=torch.tensor([ids])).logits.softmax(-1)[0, 1].item()
            assert verdict.value == pytest.approx(expected, abs=1e-5)


def test_positions_that_robertas_padding_takes_are_not_counted(tmp_path: Path) -> None:
    """18 positions, of which 0 and 1 (the padding token's number) are never given to a token."""
    save_roberta(tmp_path, positions=18)
    long, fits = classify(tmp_path).score([ask("Hi", "x" * 17), ask("Hi", "x" * 16)])
    assert long.invalid == "too long: 17 tokens, the judge reads 16"
    assert fits.value is not None


def test_a_chat_without_a_template_is_refused_before_the_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_classifier(tmp_path, ["safe", "unsafe"])
    (tmp_path / "chat_template.jinja").unlink()
    assert classify(tmp_path).score(ITEMS)[0].value is not None
    monkeypatch.setattr("naysay.judging.classifier.load_classifier", lambda *args, **more: pytest.fail("it loads"))
    with pytest.raises(ModelError, match="its tokenizer has no chat template"):
        classify(tmp_path, reads="chat")
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(ModelError, match="found one that does not"):
        classify(tmp_path, reads="chat")


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
