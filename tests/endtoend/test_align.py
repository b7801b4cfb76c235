"""`naysay align` on a tiny model: what it leaves, and that the numbers are those of plain transformers and peft."""

import json
import math
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoTokenizer

from conftest import make_tokenizer
from endtoend.plain import load, plain_logp
from endtoend.workplace import rejected_rows, write_rows
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, read_jsonl, read_records
from naysay.config.stages import STAGES
from naysay.modeling.chat import encode_prompt, encode_response
from naysay.modeling.digests import policy_digest
from naysay.records import Acceptable, Anchor, Generation, Negative, Prompt

DOCUMENTED = (
    "heldout.margin",
    "heldout.separation",
    "heldout.pair_accuracy_change",
    "benign.nats_per_token_change",
    "kl.base_to_tuned",
    "kl.tuned_to_base",
    *(f"generations.{model}.{label}" for model in ("base", "tuned") for label in ("answer", "refusal", "degenerate")),
)


def dotted(value: Any, key: str) -> Any:
    for part in key.split("."):
        value = value[part]
    return value


def heldout_negatives(run: RunDirectory, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    prompts = {p.prompt_id: p for p in read_records(run.prompts, Prompt) if p.split == "heldout"}
    return [
        (encode_prompt(tokenizer, prompts[n.prompt_id].messages), encode_response(tokenizer, n.text, ended=True))
        for n in read_records(run.negatives, Negative)
        if n.prompt_id in prompts
    ]


def mean_log_ratio(run: RunDirectory, base: Any, tuned: Any, tokenizer: Any) -> float:
    rows = heldout_negatives(run, tokenizer)
    assert len(rows) >= 3
    return sum(plain_logp(tuned, *row) - plain_logp(base, *row) for row in rows) / len(rows)


def test_the_summary_has_every_documented_number(finished):
    summary = read_json(finished.summary)
    for key in DOCUMENTED:
        estimate = dotted(summary, key)
        assert set(estimate) >= {"value", "ci_low", "ci_high", "n"}, key
        assert estimate["n"] > 0, key
        assert all(math.isfinite(estimate[name]) for name in ("value", "ci_low", "ci_high")), key
        assert estimate["ci_low"] <= estimate["value"] <= estimate["ci_high"], key
    assert summary["verdict"]
    assert set(summary["counts"]) == set(STAGES) - {"report"}
    assert set(summary["seconds"]) == {*STAGES, "total"} - {"report"}
    assert all(seconds >= 0 for seconds in summary["seconds"].values())
    # Trained hard on 16 rows that are all alike: the figures must show it.
    assert summary["heldout"]["margin"]["value"] > 0.5
    assert summary["heldout"]["negative_log_ratio"]["value"] < -1
    assert summary["kl"]["base_to_tuned"]["value"] > 0.001
    assert [row["step"] for row in read_jsonl(finished.metrics)] == [1, 2, 3, 4]


def test_the_counts_add_up(finished):
    counts = read_json(finished.summary)["counts"]
    sampled, scored, trained = counts["sample"], counts["score"]["anchors"], counts["train"]
    assert counts["ingest"]["rows"]["in"] == 16
    assert sampled["anchors"] == 3 * sum(sampled["prompts"].values()) == scored["in"]
    assert scored["in"] == scored["kept"] + sum(scored["dropped"].values())
    groups = trained["groups"]
    assert groups["in"] == groups["trained"] + groups["not_reached"] + sum(trained["dropped"].values())
    assert groups["trained"] == 2 * trained["steps"] == 8  # 2 groups a step
    assert counts["evaluate"]["generations"] == {"base": 4, "tuned": 4}


def test_the_run_directory_has_what_others_rely_on(finished):
    assert len(list(read_jsonl(finished.anchors))) == 48
    assert list(read_jsonl(finished.quarantine)) == []
    assert {path.name for path in finished.adapter.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "README.md",
    }
    modules = read_json(finished.adapter / "adapter_config.json")["target_modules"]
    assert len(modules) > 1
    assert modules == sorted(modules)  # a set's order would differ from run to run, and with it the file's digest
    page = finished.report.read_text()
    assert read_json(finished.summary)["verdict"].split(":")[0] in page
    rows = read_records(finished.generations, Generation)
    by_model = [[(g.prompt_id, g.seed, g.kind) for g in rows if g.model == name] for name in ("base", "tuned")]
    assert by_model[0] == by_model[1]
    assert {kind for _, _, kind in by_model[0]} == {"heldout", "benign"}


def test_anchors_are_answers_to_the_bare_prompt_of_the_initial_policy(finished):
    """One policy, one digest: of what sampled, of the reference, and of the base in the evaluation."""
    anchors = read_records(finished.anchors, Anchor)
    policy = read_json(finished.evaluation)["policy"]
    references = read_json(finished.summary)["counts"]["train"]["references"]
    assert {anchor.policy_digest for anchor in anchors} == {policy["base_digest"]}
    assert references == {"negative": policy["base_digest"], "positive": policy["base_digest"]}
    assert policy["tuned_digest"] != policy["base_digest"]


def test_an_adapter_that_is_switched_off_has_the_digest_of_its_base(finished, model_folder):
    tokenizer = make_tokenizer()
    base = policy_digest(load(model_folder), tokenizer)
    tuned = PeftModel.from_pretrained(load(model_folder), finished.adapter).eval()
    assert policy_digest(tuned, tokenizer) != base
    with tuned.disable_adapter():
        assert policy_digest(tuned, tokenizer) == base
    assert policy_digest(tuned, tokenizer) != base


def test_plain_peft_loads_the_adapter_and_gives_the_log_probs_of_the_evaluation(finished, model_folder):
    tuned = PeftModel.from_pretrained(load(model_folder), str(finished.adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(finished.adapter)
    expected = mean_log_ratio(finished, load(model_folder), tuned, tokenizer)
    found = read_json(finished.evaluation)["heldout"]["negative_log_ratio"]
    assert found["value"] == pytest.approx(expected, rel=1e-4)
    assert abs(expected) > 1


def test_the_same_command_again_does_nothing(naysay):
    run = naysay.do("a")
    assert "verdict  " in naysay.out
    assert str(run.report) in naysay.out
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert naysay(*naysay.command("a")) == 0
    assert [line.split()[:4] for line in naysay.err.splitlines()] == [[stage, "up", "to", "date"] for stage in STAGES]
    assert "verdict  " in naysay.out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_stages_one_by_one_end_in_the_same_place(naysay, finished):
    naysay.do("a", stage="ingest")
    for stage in STAGES[1:]:
        assert naysay(stage, "--out", naysay.folder / "a") == 0, naysay.err
    run = naysay.run("a")
    assert run.anchors.read_bytes() == finished.anchors.read_bytes()
    weights = "adapter_model.safetensors"
    assert (run.adapter / weights).read_bytes() == (finished.adapter / weights).read_bytes()
    assert read_json(run.evaluation)["heldout"] == read_json(finished.evaluation)["heldout"]


def test_full_fine_tuning_leaves_a_model_that_plain_transformers_loads(naysay):
    run = naysay.do("a", "training.method=full", "training.lora={}", "training.learning_rate=0.001")
    assert not run.adapter.exists()
    assert "AutoModelForCausalLM.from_pretrained" in naysay.out
    assert "PeftModel" not in naysay.out
    tuned, base = load(run.model), load(naysay.model)
    expected = mean_log_ratio(run, base, tuned, AutoTokenizer.from_pretrained(run.model))
    evaluation = read_json(run.evaluation)
    assert evaluation["heldout"]["negative_log_ratio"]["value"] == pytest.approx(expected, rel=1e-4)
    assert expected < -0.1
    assert evaluation["policy"]["base_digest"] == policy_digest(base, make_tokenizer())
    assert evaluation["policy"]["tuned_digest"] != evaluation["policy"]["base_digest"]
    assert naysay(*naysay.command("a", "training.method=full", "training.lora={}", "training.learning_rate=0.001")) == 0
    assert naysay.err.count("up to date") == len(STAGES)


def test_full_fine_tuning_in_half_precision_says_what_it_loses(naysay):
    naysay.do("a", "training.method=full", "training.lora={}", "model.dtype=bfloat16")
    assert "steps below its precision are lost; set model.dtype=float32" in naysay.err


def test_a_row_beyond_max_length_is_quarantined_whole(naysay):
    rows = naysay.data.read_text().splitlines()
    long = {"prompt": "Tell me about a very long story.", "rejected": "no " * 300, "chosen": "Once upon a time."}
    naysay.data.write_text("\n".join([*rows[:5], json.dumps(long), *rows[5:]]) + "\n")
    run = naysay.do("a", stage="ingest")
    (entry,) = read_jsonl(run.quarantine)
    assert (entry["reason"], entry["line"], entry["field"]) == ("too_long", 6, "rejected")
    assert "model.max_length is 256" in entry["detail"]
    assert entry["row"]["rejected"] == long["rejected"]
    manifest = run.manifest("ingest")
    assert manifest is not None
    assert manifest.counts["rows"]["quarantined"] == 1
    assert not any("very long" in str(prompt.messages) for prompt in read_records(run.prompts, Prompt))
    assert max(len(negative.text) for negative in read_records(run.negatives, Negative)) < 100


def test_a_prompt_that_leaves_no_room_in_the_context_is_refused(naysay):
    """Rotary models would go on beyond their context in silence, others crash."""
    error = naysay.refused(*naysay.command("a", "anchors.max_new_tokens=500"))
    assert "the longest prompt has" in error
    assert "context is 512" in error


def test_answers_that_name_different_sources_are_not_compared(naysay):
    """Every second prompt has an acceptable answer of somebody else."""
    rows = []
    for i, row in enumerate(rejected_rows()):
        for text, label in ((row["rejected"], False), (row["chosen"], True)):
            source = "forum" if label and i % 2 else "log"
            rows.append({"prompt": row["prompt"], "completion": text, "label": label, "provenance": source})
    write_rows(naysay.data, rows)
    run = naysay.do("a", "data.heldout_fraction=0.5")
    evaluation = read_json(run.evaluation)
    negatives = {item.prompt_id for item in read_records(run.negatives, Negative)}
    given = [item for item in read_records(run.acceptable, Acceptable) if item.prompt_id in negatives]
    heldout = {prompt.prompt_id for prompt in read_records(run.prompts, Prompt) if prompt.split == "heldout"}
    same, other = (
        sum(item.provenance == source and item.prompt_id in heldout for item in given) for source in ("log", "forum")
    )
    assert same > 0
    assert other > 0
    assert evaluation["sources"] == {"same": same, "unknown": 0, "different": other}
    assert evaluation["heldout"]["separation"]["n"] == same
    assert evaluation["heldout"]["acceptable_log_ratio_per_token"]["n"] == same + other
    assert f"left out for different sources: {other}." in run.report.read_text()
