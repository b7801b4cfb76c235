"""Every mistake of the user: one line with what, where and the fix, exit code 2, before time is spent, nothing lost."""

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from conftest import TEMPLATE
from endtoend.workplace import save_model
from naysay.artifacts.store import read_json, read_jsonl
from naysay.config.stages import STAGES


@pytest.fixture
def no_work(monkeypatch):
    """Fails the test where a model is asked for an answer: a mistake must be found before that."""

    def sample(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("sampling began")

    monkeypatch.setattr("naysay.generation.hf.HFSampler.sample", sample)


def rows_of(naysay) -> list[dict[str, Any]]:
    return list(read_jsonl(naysay.data))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def missing_file(naysay):
    naysay.data.unlink()


def empty_file(naysay):
    naysay.data.write_text("")


def missing_column(naysay):
    write(naysay.data, [{"question": row["prompt"], "rejected": row["rejected"]} for row in rows_of(naysay)])


def no_usable_row(naysay):
    write(naysay.data, [{"prompt": "", "rejected": row["rejected"]} for row in rows_of(naysay)])


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (missing_file, ["rejected.jsonl", "no such file"]),
        (empty_file, ["rejected.jsonl", "empty"]),
        (missing_column, ["rejected.jsonl", "'prompt'", "question", "--map prompt=question"]),
        (no_usable_row, ["no usable row", "line 1"]),
    ],
)
def test_input_that_cannot_be_used(naysay, no_work, spoil, expected):
    original = naysay.data.read_text()
    spoil(naysay)
    error = naysay.refused(*naysay.command("a"))
    assert all(text in error for text in expected), error
    naysay.data.write_text(original)
    naysay.do("a", stage="ingest")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("anchors.k=0", "anchors.k: Input should be greater than or equal to 1 (found 0)"),
        ("anchors.temperature=0", "anchors.temperature: Input should be greater than 0"),
        ("training.learning_rate=-1e-4", "training.learning_rate: Input should be greater than 0"),
        ("evaluation.top_p=1.5", "evaluation.top_p: Input should be less than or equal to 1"),
        ("training.bta=0.2", "unknown key 'training.bta'; did you mean 'training.beta'?"),
        ("anchor.k=3", "unknown key 'anchor'; did you mean 'anchors'?"),
        ("training.lora.dropout=0.1", "dropout must be 0 (found 0.1)"),
        ("training.trainer_args.optm=adafactor", "trainer_args.optm: no such field"),
        ("training.trainer_args.optm=adafactor", "did you mean 'optim'?"),
        ("training.trainer_args.optim=adamx", "training.trainer_args: transformers.TrainingArguments refuses"),
        ("training.trainer_args.learning_rate=0.1", "set training.learning_rate instead"),
        ("training.trainer_args.output_dir=x", "a run decides this itself"),
        ("training.trainer_args.eval_strategy=steps", "a run decides this itself"),
        ("training.trainer_args.report_to=no-such-tracker", "transformers.TrainingArguments refuses"),
        ("model.chat_template=no.jinja", "model.chat_template: no.jinja: no such file"),
    ],
)
def test_settings_that_cannot_be_used(naysay, no_work, setting, expected):
    error = naysay.refused(*naysay.command("a", setting))
    assert expected in error
    assert naysay.err.count("\n") == 1
    assert not naysay.run("a").path.exists()


def test_a_field_of_training_arguments_that_is_passed_on_works(naysay, finished):
    run = naysay.do("a", "training.trainer_args.optim=sgd", "training.trainer_args.logging_steps=2")
    assert [row["step"] for row in read_jsonl(run.metrics)] == [2, 4]
    weights = "adapter_model.safetensors"
    assert (run.adapter / weights).read_bytes() != (finished.adapter / weights).read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./no-such-folder", "expected a folder with a model, found none there"),
        ("nobody/no-such-model", "unknown: neither a local folder nor in the local hub cache; pass --online"),
        ("embedded:gpt5", "unknown embedded model 'embedded:gpt5'; the one there is: embedded:smollm2-135m"),
    ],
)
def test_an_unknown_model_and_then_the_right_one_in_the_same_folder(naysay, no_work, name, expected):
    error = naysay.refused(*naysay.command("a", model=name))
    assert name in error
    assert expected in error
    assert naysay(*naysay.command("a", stage="ingest")) == 0, naysay.err


def test_a_folder_that_is_no_model(naysay, no_work, tmp_path):
    (tmp_path / "empty").mkdir()
    error = naysay.refused(*naysay.command("a", model=tmp_path / "empty"))
    assert "its tokenizer cannot be read" in error
    assert list(naysay.run("a").path.glob("quarantine.jsonl")) == []


def test_weights_that_are_damaged(naysay, no_work, tmp_path):
    folder = save_model(tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    error = naysay.refused(*naysay.command("a", model=folder))
    assert str(folder) in error
    assert "cannot be loaded" in error


def test_weights_that_are_incomplete(naysay, no_work, tmp_path):
    """transformers alone would fill them with random numbers and go on."""
    folder = save_model(tmp_path / "incomplete")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    error = naysay.refused(*naysay.command("a", model=folder))
    assert "lacks 1 of the weights of a causal LM (lm_head.weight)" in error


def test_a_model_without_a_chat_template_and_what_to_set(naysay, tmp_path, finished):
    folder = save_model(tmp_path / "bare", template=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("naysay.generation.hf.HFSampler.sample", None)
        error = naysay.refused(*naysay.command("a", model=folder))
    assert str(folder) in error
    assert "its tokenizer has no chat template" in error
    assert "--set model.chat_template=chat.jinja" in error
    assert "quarantine" not in error
    template = tmp_path / "chat.jinja"
    template.write_text(TEMPLATE)
    run = naysay.do("a", f"model.chat_template={template}", model=folder)
    # The same template from a file as from the tokenizer: the same policy, so the same bits.
    assert run.anchors.read_bytes() == finished.anchors.read_bytes()
    assert (run.adapter / "chat_template.jinja").read_text() == TEMPLATE


def test_dropout_is_refused_before_sampling(naysay, no_work, monkeypatch, tmp_path):
    folder = save_model(tmp_path / "gpt2", "gpt2", resid_pdrop=0.1)
    error = naysay.refused(*naysay.command("a", model=folder))
    assert "dropout must be 0, found 0.1" in error
    assert "config.json" in error
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "resid_pdrop": 0.0}))
    # GPT-2's config keeps `summary_first_dropout` of 0.1, of a head that a causal LM does not have.
    assert read_json(folder / "config.json")["summary_first_dropout"] == 0.1
    monkeypatch.undo()
    assert naysay(*naysay.command("a", model=folder, stage="ingest")) == 0, naysay.err
    assert naysay("sample", "--out", naysay.folder / "a") == 0, naysay.err


def test_max_length_beyond_the_context_is_refused_before_sampling(naysay, no_work):
    error = naysay.refused(*naysay.command("a", "model.max_length=513"))
    assert "model.max_length is 513, but the context of" in error
    assert "set model.max_length to at most 512" in error


@pytest.mark.parametrize("setting", ["data.heldout_fraction=0.0", "data.limit.heldout=0"])
def test_nothing_to_evaluate_on_is_refused_before_sampling(naysay, no_work, setting):
    error = naysay.refused(*naysay.command("a", setting))
    assert "no prompt with a rejected answer is in the heldout split" in error
    assert "raise data.heldout_fraction or data.limit.heldout" in error


def test_training_alone_needs_nothing_to_evaluate_on(naysay):
    run = naysay.do("a", "data.limit.heldout=0", stage="ingest")
    for stage in ("sample", "score", "train"):
        assert naysay(stage, "--out", run.path) == 0, naysay.err
    assert (run.adapter / "adapter_model.safetensors").exists()


def test_target_modules_that_the_model_does_not_have(naysay):
    error = naysay.refused(*naysay.command("a", "training.lora.target_modules=nonsense"))
    assert "the adapter does not fit the model" in error
    assert "set training.lora.target_modules" in error


def test_a_run_that_another_process_works_on(naysay, finished):
    run = naysay.do("a", stage="ingest")
    with (run.path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = {path: path.read_bytes() for path in run.path.rglob("*.json*")}
        error = naysay.refused(*naysay.command("a"))
        assert f"{run.path}: in use by another naysay process" in error
        assert before == {path: path.read_bytes() for path in run.path.rglob("*.json*")}
    naysay.do("a")
    assert run.anchors.read_bytes() == finished.anchors.read_bytes()


def test_no_usable_anchor_says_what_to_change(naysay):
    error = naysay.refused(*naysay.command("a", "anchors.filters.min_tokens=100"))
    assert "no anchor of 48 is usable (too_short" in error
    assert "relax anchors.filters" in error
    assert naysay(*naysay.command("a"), "--redo", "score") == 0, naysay.err
    assert naysay.err.count("up to date") == 2


def test_no_anchor_in_the_training_split_says_what_to_change(naysay, monkeypatch):
    """Held-out prompts have anchors, training prompts have none."""
    run = naysay.do("a", stage="ingest")
    for stage in ("sample", "score"):
        assert naysay(stage, "--out", run.path) == 0
    monkeypatch.setattr("naysay.training.stage.training_rows", lambda *args, **kwargs: [])
    error = naysay.refused(*naysay.command("a"))
    assert "no training prompt has a usable anchor" in error


def test_nothing_is_lost_by_a_mistake_in_a_finished_run(naysay):
    run = naysay.do("a")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    for setting in ("anchors.k=0", "training.bta=1", "model.max_length=4000", "training.trainer_args.nonsense=1"):
        naysay.refused(*naysay.command("a", setting))
    assert before == {path: path.read_bytes() for path in before}
    assert naysay(*naysay.command("a")) == 0
    assert naysay.err.count("up to date") == len(STAGES)
