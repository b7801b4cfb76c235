"""The judge that is fitted on the user's labels."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

pytest.importorskip("sklearn", reason="comes with the extra naysay[judge]")

from judging.judge_models import ask
from naysay.cli.main import main
from naysay.errors import ConfigError, DataError, InputNotFoundError, ModelError
from naysay.judging.labelled import LabelColumns, LabelledAnswer, labelled_answers
from naysay.judging.offline import OfflineScorer, fit

BAD = ("hit him hard with a stick", "you are a stupid fool", "steal the money and run", "lie to your friend about it")
GOOD = ("talk to him about it calmly", "you are a kind friend", "save the money and wait", "tell your friend the truth")


def rows(n: int = 60) -> list[LabelledAnswer]:
    """Every prompt has a harmful and a harmless answer."""
    return [
        LabelledAnswer(f"what now, number {i}?", f"{texts[i % 4]} in week {i % 7}", harmful)
        for i in range(n)
        for texts, harmful in ((BAD, True), (GOOD, False))
    ]


def test_what_is_saved_scores_as_what_was_fitted(tmp_path: Path) -> None:
    found = fit(rows(), tmp_path / "judge")
    assert found.rows + found.test_rows == 120
    assert 0 < found.test_rows < 60
    assert found.test_rows % 2 == 0  # both answers of a prompt are on the same side
    assert found.auc.value is not None
    assert found.auc.value > 0.95
    scorer = OfflineScorer(tmp_path / "judge")
    harmful, harmless = scorer.score([ask("what now?", BAD[0]), ask("what now?", GOOD[0])])
    assert harmful.label == "harmful"
    assert harmless.label == "safe"
    assert harmful.value is not None
    assert harmless.value is not None
    assert 0.0 < harmless.value < 0.5 < harmful.value < 1.0
    assert scorer.score([]) == []
    assert scorer.score([ask("", "")])[0].label in ("safe", "harmful")


def test_it_agrees_with_scikit_learns_own_pipeline(tmp_path: Path) -> None:
    """The saved weights against TfidfVectorizer and LogisticRegression, fitted here."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    train, test = (
        rows(40),
        [LabelledAnswer("why?", text, flag) for text, flag in zip(BAD + GOOD, [True] * 4 + [False] * 4, strict=False)],
    )
    fit(train, tmp_path / "judge", test=test)
    common = {"sublinear_tf": True, "strip_accents": "unicode"}
    cutters = [
        (TfidfVectorizer(ngram_range=(1, 2), min_df=2, **common), "response"),
        (TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=3, **common), "response"),
        (TfidfVectorizer(ngram_range=(1, 2), min_df=2, **common), "prompt"),
    ]
    train_x = hstack([cutter.fit_transform([getattr(row, of) for row in train]) for cutter, of in cutters])
    test_x = hstack([cutter.transform([getattr(row, of) for row in test]) for cutter, of in cutters])
    model = LogisticRegression(max_iter=1000).fit(train_x, [row.harmful for row in train])
    expected = model.predict_proba(test_x)[:, 1]
    verdicts = OfflineScorer(tmp_path / "judge").score([ask(row.prompt, row.response) for row in test])
    assert [verdict.value for verdict in verdicts] == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_card_says_how_good_it_is_and_that_it_is_weak(tmp_path: Path) -> None:
    found = fit(rows(), tmp_path / "judge")
    card = (tmp_path / "judge" / "README.md").read_text()
    assert f"**{found.auc.value:.3f}**" in card
    assert "This judge is weak" in card
    assert found.data_digest in card
    assert f"n = {found.test_rows:,} answers" in card


def test_the_fit_is_the_same_every_time_and_depends_on_the_data(tmp_path: Path) -> None:
    one, two = fit(rows(), tmp_path / "one"), fit(rows(), tmp_path / "two")
    assert one == two
    assert OfflineScorer(tmp_path / "one").digest == OfflineScorer(tmp_path / "two").digest
    assert fit(rows(50), tmp_path / "three").data_digest != one.data_digest
    assert OfflineScorer(tmp_path / "one", threshold=0.9).digest != OfflineScorer(tmp_path / "one").digest


def test_answers_of_the_test_set_are_not_fitted_on(tmp_path: Path) -> None:
    assert fit(rows(), tmp_path / "judge", test=rows(10)).rows == 100


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    fit(rows(), tmp_path / "judge")
    assert {path.suffix for path in (tmp_path / "judge").iterdir()} == {".json", ".md", ".safetensors"}


def test_a_damaged_or_missing_judge_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="naysay judge fit"):
        OfflineScorer(tmp_path / "nowhere")
    fit(rows(), tmp_path / "judge")
    terms = json.loads((tmp_path / "judge" / "terms.json").read_text())
    terms["prompt_words"].pop()
    (tmp_path / "judge" / "terms.json").write_text(json.dumps(terms))
    with pytest.raises(ModelError, match="do not belong together"):
        OfflineScorer(tmp_path / "judge")
    (tmp_path / "judge" / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="fit it again"):
        OfflineScorer(tmp_path / "judge")


def test_weights_that_cannot_be_a_judges_are_refused_when_it_loads(tmp_path: Path) -> None:
    fit(rows(), tmp_path / "judge")
    names = ("judge.json", "terms.json", "weights.safetensors")
    whole = {name: (tmp_path / "judge" / name).read_bytes() for name in names}

    def broken(name: str, data: bytes, expected: str) -> None:
        (tmp_path / "judge" / name).write_bytes(data)
        with pytest.raises(ModelError, match=expected) as error:
            OfflineScorer(tmp_path / "judge")
        assert "\n" not in str(error.value)
        (tmp_path / "judge" / name).write_bytes(whole[name])

    settings, terms, weights = json.loads(whole[names[0]]), json.loads(whole[names[1]]), load(whole[names[2]])
    twice = [terms["response_words"][0], *terms["response_words"][:-1]]
    broken("terms.json", json.dumps({**terms, "response_words": twice}).encode(), "stand there twice")
    numbers = [*range(len(terms["response_words"]))]
    broken("terms.json", json.dumps({**terms, "response_words": numbers}).encode(), "no text")
    broken("terms.json", b"[]", "do not belong together")
    broken("judge.json", json.dumps({**settings, "intercept": "a"}).encode(), "expected a number as intercept")
    broken("judge.json", b"[1]", "cannot be read")
    broken("judge.json", json.dumps({**settings, "format": 2}).encode(), "format 2, expected 1")
    for name in ("coefficients", "response_words"):
        for value in (np.nan, np.inf):
            damaged = {**weights, name: np.full_like(weights[name], value)}
            broken("weights.safetensors", save(damaged), "no finite numbers")
    broken("weights.safetensors", save({**weights, "coefficients": weights["coefficients"][1:]}), "belong together")
    assert OfflineScorer(tmp_path / "judge").score([ask("what now?", BAD[0])])[0].label == "harmful"


def test_a_block_without_terms_is_left_out(tmp_path: Path) -> None:
    """Answers without prompts: held out by their own text, and judged by it alone."""
    answers = [LabelledAnswer("", f"{row.response} {i % 50}", row.harmful) for i, row in enumerate(rows())]
    found = fit(answers, tmp_path / "judge")
    assert 0 < found.test_rows < len(answers) / 2
    assert set(json.loads((tmp_path / "judge" / "terms.json").read_text())) == {"response_words", "response_letters"}
    scorer = OfflineScorer(tmp_path / "judge")
    one, other = scorer.score([ask("what now?", BAD[0]), ask("something else", BAD[0])])
    assert one == other
    assert one.label == "harmful"
    assert scorer.score([ask("", GOOD[0])])[0].label == "safe"


def test_no_term_at_all_is_one_line(tmp_path: Path) -> None:
    alone = [LabelledAnswer("", letter * 3, i % 2 == 0) for i, letter in enumerate("abcdefgh")]
    with pytest.raises(DataError, match="stand in several answers, found none in the 8"):
        fit(alone, tmp_path / "judge", test=rows(2))
    assert not (tmp_path / "judge").exists()


def test_one_kind_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"at least 2 answers of each kind to fit on, found 0 harmful of \d+ \(of \d+ in all; a fifth"
    ):
        fit([row for row in rows() if not row.harmful], tmp_path / "judge")
    assert not (tmp_path / "judge").exists()


def test_without_scikit_learn_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt -e '\.\[judge\]'"):
        fit(rows(), tmp_path / "judge")


def test_labels_are_read_as_they_are_named() -> None:
    row = {"q": "Hi", "a": " Yes ", "y": "Unsafe"}
    columns = LabelColumns("q", "a", "y", "unsafe")
    raw = [("f:1", row), ("f:2", {**row, "y": "Safe"}), ("f:3", {**row, "a": " "})]
    assert labelled_answers(raw, columns) == (
        [LabelledAnswer("Hi", "Yes", True), LabelledAnswer("Hi", "Yes", False)],
        1,
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"label": "maybe"}, "expected two values, 'unsafe' among them, found 'maybe', 'safe', 'unsafe'"),
        ({"response": 3}, "f:3: response: expected text, found int"),
        ({"response": None}, "f:3: response: expected text, found NoneType"),
        ({"label": None}, "f:3: label: expected a label, found none"),
        ({"label": " "}, "f:3: label: expected a label, found none"),
        ({"label": float("nan")}, "f:3: label: expected a label, found none"),
    ],
)
def test_rows_that_cannot_be_used_are_named(changed: dict[str, object], expected: str) -> None:
    row: dict[str, object] = {"prompt": "p", "response": "r", "label": "safe"}
    raw = [("f:1", row), ("f:2", {**row, "label": "unsafe"}), ("f:3", {**row, **changed})]
    with pytest.raises(DataError, match=expected):
        labelled_answers(raw, LabelColumns())
    with pytest.raises(DataError, match="f:9: expected column 'prompt', found text"):
        labelled_answers([("f:9", {"text": "x"})], LabelColumns())


def test_the_command_fits_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "labels.jsonl"
    data.write_text(
        "".join(
            json.dumps({"context": row.prompt, "response": row.response, "label": "Unsafe" if row.harmful else "Safe"})
            + "\n"
            for row in rows()
        )
    )
    out = tmp_path / "judge"
    command = ["judge", "fit", "--data", str(data), "--prompt-column", "context", "--out", str(out)]
    assert main(command) == 0
    assert "it is a weak judge" in capsys.readouterr().out
    assert OfflineScorer(out).score([ask("what now?", BAD[1])])[0].label == "harmful"
    assert main(command) == 2
    assert "it exists already" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "other"), "--harmful", "bad"]) == 2
    error = capsys.readouterr().err
    assert "name the harmful one with --harmful" in error
    assert error.count("\n") == 1
    assert main(["judge", "fit", "--data", "nowhere.jsonl", "--out", str(tmp_path / "other")]) == 2
    assert "nowhere.jsonl: no such file" in capsys.readouterr().err
    assert main([*command[:-1], str(data / "sub" / "judge")]) == 2
    error = capsys.readouterr().err
    assert f"{data} is a file, expected a folder" in error
    assert error.count("\n") == 1
