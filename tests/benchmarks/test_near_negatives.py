"""The filter by distribution gap."""

import json

import pytest

from benchmarks import near_negatives
from conftest import make_model, make_tokenizer
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import write_records
from naysay.modeling.chat import encode_prompt, encode_response
from naysay.modeling.forward import one_at_a_time_logps
from naysay.records import Acceptable, Negative, Prompt


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(near_negatives, "load_model", lambda config: make_model())
    monkeypatch.setattr(near_negatives, "load_tokenizer", lambda config: make_tokenizer())
    run = RunDirectory(tmp_path / "pool")
    run.path.mkdir()
    splits = {"a": "train", "b": "train", "c": "train", "h": "heldout", "x": "benign"}
    texts = {"a": "Go away", "b": "You are wrong, all of you", "c": "No"}
    write_records(
        run.prompts,
        [Prompt(n, ({"role": "user", "content": f"Ask {n}"},), "f:1", split) for n, split in splits.items()],
    )
    write_records(run.negatives, [Negative(f"n-{n}", n, texts.get(n, "Never")) for n in "abch"])
    write_records(run.acceptable, [Acceptable(f"c-{n}", n, "Gladly", finish="length") for n in "abx"])
    return run


def test_the_least_surprising_training_prompts_stay_and_nothing_else_changes(run, tmp_path, capsys):
    assert near_negatives.main([str(run.path), str(tmp_path / "near.jsonl"), "--keep", "2"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "near.jsonl").read_text().splitlines()]
    model, tokenizer = make_model(), make_tokenizer()

    def surprise(name, text):
        ids = encode_response(tokenizer, text, ended=True)
        prompt = encode_prompt(tokenizer, [{"role": "user", "content": f"Ask {name}"}])
        return -one_at_a_time_logps(model, [(prompt, [ids])])[0].item() / len(ids)

    values = {"a": surprise("a", "Go away"), "b": surprise("b", "You are wrong, all of you"), "c": surprise("c", "No")}
    expected = set(sorted(values, key=values.__getitem__)[:2])
    trained = {line["prompt"][0]["content"][-1] for line in lines if line["split"] == "train"}
    assert trained == expected
    held = [(line["completion"], line["label"], line["finish"]) for line in lines if line["split"] == "heldout"]
    assert held == [("Never", False, "stop")]
    assert {line["label"] for line in lines if line["completion"] == "Gladly"} == {True}
    assert f"kept 2 training prompts ({sum(values[n] for n in expected) / 2:.3f}" in capsys.readouterr().out


def test_a_folder_without_records_is_one_line(tmp_path, capsys):
    assert near_negatives.main([str(tmp_path), str(tmp_path / "x.jsonl"), "--keep", "1"]) != 0
    assert "run `naysay ingest` first" in capsys.readouterr().err
