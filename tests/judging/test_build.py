"""Judges from their config: what is refused, and that nothing loads before."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from judging.judge_models import ask, save_classifier, save_guard, save_score_model
from naysay.config import RunConfig
from naysay.config.judging import JUDGES, GuardJudge
from naysay.errors import ConfigError, InputNotFoundError, ModelError
from naysay.judging.build import build_scorers, check_judges
from naysay.judging.guard_prompts import GUARDS
from naysay.judging.scorer import Direction

COST = {"kind": "score_model", "model": "m", "score": "cost"}
LLM = {"kind": "llm_judge", "base_url": "http://127.0.0.1:9/v1", "model": "m", "key_env": "NAYSAY_TEST_KEY"}


def test_every_guard_can_be_named_in_the_config() -> None:
    assert set(GuardJudge.model_fields["guard"].annotation.__args__) == set(GUARDS)


def test_every_kind_has_its_settings() -> None:
    assert all(cls.model_fields["kind"].annotation.__args__ == (kind,) for kind, cls in JUDGES.items())


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        ({"kind": "oracle"}, "kind"),
        ({**COST, "direction": "higher_is_better"}, "direction"),
        ({"kind": "guard", "model": "m", "guard": "llama"}, "guard"),
        ({**LLM, "key_env": "sk-123"}, "key_env"),
        ({**LLM, "base_url": "localhost"}, "base_url"),
        ({**LLM, "base_url": "http://localhost:80a/v1"}, "expected the address of a server"),
        ({**LLM, "base_url": "http://me:pw@localhost/v1"}, "key_env"),
        ({**LLM, "base_url": "http://localhost/v1?key=pw"}, "key_env"),
        ({"kind": "classifier", "model": "m", "reads": "pair"}, "direction"),
        ({"kind": "offline", "folder": "f", "threshold": 1.0}, "threshold"),
    ],
)
def test_impossible_settings_cannot_be_written(judge: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        RunConfig.model_validate({"judges": [judge]})


def test_the_first_judge_must_give_verdicts_and_none_stands_there_twice() -> None:
    reward = {**COST, "score": "reward"}
    with pytest.raises(ValidationError, match="put a judge with a verdict first"):
        RunConfig.model_validate({"judges": [reward, COST]})
    assert len(RunConfig.model_validate({"judges": [COST, reward]}).judges) == 2
    with pytest.raises(ValidationError, match="number 2 is the same"):
        RunConfig.model_validate({"judges": [COST, COST]})


def test_what_is_missing_is_said_before_a_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_score_model(tmp_path / "cost")
    monkeypatch.setattr(
        "naysay.judging.classifier.load_score_model", lambda *args, **more: pytest.fail("a model was loaded")
    )
    good = {**COST, "model": str(tmp_path / "cost")}
    monkeypatch.delenv("NAYSAY_TEST_KEY", raising=False)
    cases = [
        ({**COST, "model": "./nowhere"}, InputNotFoundError, "nowhere"),
        ({"kind": "offline", "folder": str(tmp_path)}, InputNotFoundError, "naysay judge fit"),
        (LLM, ConfigError, "NAYSAY_TEST_KEY is not set"),
    ]
    for bad, error, message in cases:
        judges = RunConfig.model_validate({"judges": [good, bad]}).judges
        with pytest.raises(error, match=rf"judges\.1: .*{message}"):
            build_scorers(judges, tmp_path)


def test_a_config_that_is_no_object_is_one_line(tmp_path: Path) -> None:
    save_guard(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    place = {"model": str(tmp_path), "device": "cpu"}
    kinds = [
        {"kind": "guard", "guard": "llama_guard"},
        {"kind": "score_model", "score": "cost"},
        {"kind": "classifier", "reads": "response", "direction": "higher_is_worse", "threshold": 0.5},
    ]
    for kind in kinds:
        judges = RunConfig.model_validate({"judges": [{**kind, **place}]}).judges
        with pytest.raises(ModelError, match=r"expected an object in .*config\.json, found list"):
            build_scorers(judges, tmp_path)


def test_scorers_come_in_order_with_their_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAYSAY_TEST_KEY", "x")
    save_classifier(tmp_path / "classifier", ["bad", "good"])
    save_guard(tmp_path / "guard")
    save_score_model(tmp_path / "cost")
    place = {"device": "cpu"}
    classifier = {
        "kind": "classifier",
        "reads": "pair",
        "direction": "higher_is_better",
        "label": "good",
        "threshold": 0.5,
    }
    config = RunConfig.model_validate(
        {
            "judges": [
                {**classifier, "model": str(tmp_path / "classifier"), **place},
                {"kind": "guard", "guard": "wildguard", "model": str(tmp_path / "guard"), **place},
                {**COST, "model": str(tmp_path / "cost"), **place},
                {**COST, "score": "reward", "model": str(tmp_path / "cost"), **place},
                LLM,
            ]
        }
    )
    check_judges(config.judges)
    scorers = build_scorers(config.judges, tmp_path)
    worse, better = Direction.HIGHER_IS_WORSE, Direction.HIGHER_IS_BETTER
    assert [scorer.direction for scorer in scorers] == [better, worse, worse, better, worse]
    assert len({scorer.digest for scorer in scorers}) == 5
    assert [len(scorer.score([ask("Hi", "Hello")])) for scorer in scorers[:4]] == [1] * 4
