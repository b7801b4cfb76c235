"""Baselines and refreshed anchors through the command line: trained, recorded, evaluated, and refused in one line."""

import json

import pytest
import yaml

from endtoend.workplace import write_rows
from naysay.artifacts.store import read_json, read_jsonl, read_records
from naysay.records import Anchor


def without_chosen(naysay):
    rows = [json.loads(line) for line in naysay.data.read_text().splitlines()]
    write_rows(naysay.data, [{key: row[key] for key in ("prompt", "rejected")} for row in rows])


@pytest.mark.parametrize("objective", ["npo", "altpo", "dpo", "unlikelihood", "kto_negative"])
def test_a_baseline_runs_from_file_to_report(naysay, finished, objective):
    run = naysay.do("run", f"training.objective={objective}")
    losses = [row["loss"] for row in read_jsonl(run.metrics)]
    assert len(losses) == 4
    assert losses != [row["loss"] for row in read_jsonl(finished.metrics)]
    assert objective in run.report.read_text()
    assert run.anchors.read_bytes() == finished.anchors.read_bytes()


def test_llmu_trains_on_half_of_the_benign_prompts_and_is_evaluated_on_the_others(naysay, finished):
    run = naysay.do("run", "training.objective=llmu")
    normal = {row["prompt_id"] for row in read_jsonl(run.train / "normal.jsonl")}
    assert len(normal) == 2
    asked = {row["prompt_id"] for row in read_jsonl(run.generations)}
    assert not asked & normal
    assert read_json(run.evaluation)["benign"]["nats_per_token_change"]["n"] == 2
    assert read_json(finished.evaluation)["benign"]["nats_per_token_change"]["n"] == 4


def test_what_the_data_lack_is_said_before_a_model_is_loaded(naysay, tmp_path):
    without_chosen(naysay)
    command = naysay.command("run", "training.objective=dpo")
    line = naysay.refused(*command)
    assert "training.objective 'dpo' needs answers that people preferred (column chosen), found none" in line
    assert not (tmp_path / "run" / "anchors.jsonl").exists()
    empty = write_rows(tmp_path / "none.jsonl", [{"prompt": "Tea?", "chosen": "Yes."}])
    naysay.do("ok", "training.objective=llmu", f"data.benign={empty}", stage="ingest")
    line = naysay.refused(*naysay.command("run2", "training.objective=llmu", "data.limit.benign=0"))
    assert "training.objective 'llmu' needs benign prompts with answers, found none" in line


def test_an_objective_without_anchors_cannot_refresh_them(naysay):
    line = naysay.refused(*naysay.command("run", "training.objective=npo", "anchors.schedule=online"))
    assert "anchors.schedule is online, but training.objective 'npo' reads no anchors" in line


def test_refreshed_anchors_are_the_policys_own_and_recorded(naysay, finished):
    settings = ("anchors.schedule=online", "anchors.warmup_steps=1", "anchors.refresh_every=2", "training.epochs=2")
    run = naysay.do("run", *settings)
    rounds = {path.name: list(read_jsonl(path)) for path in sorted(run.train.glob("anchors-round-*.jsonl"))}
    assert list(rounds) == ["anchors-round-1.jsonl", "anchors-round-2.jsonl"]
    assert run.anchors.read_bytes() == finished.anchors.read_bytes()  # the digested input stays what it was
    first = next(iter(read_records(run.anchors, Anchor)))
    digests = set()
    for number, rows in enumerate(rounds.values(), 1):
        for row in rows:
            if row["anchor"] is not None:
                assert row["anchor"]["round"] == number
                assert row["anchor"]["instruction_id"] != "bare"
                digests.add(row["anchor"]["policy_digest"])
    assert len(digests) == 2
    assert first.policy_digest not in digests
    counts = run.manifest("train").counts["refreshed"]
    assert counts["rounds"] == 2
    assert counts["redrawn"] + counts["kept_old"] == sum(map(len, rounds.values()))
    assert counts["redrawn"] > 0
    assert "accepted" not in run.manifest("train").counts
    losses, before = ([row["loss"] for row in read_jsonl(r.metrics)] for r in (run, finished))
    assert losses[0] == before[0]
    assert losses[1:] != before[1:]


def without_instructions(naysay):
    recipe = yaml.safe_load(naysay.recipe.read_text())
    del recipe["anchors"]["instructions"]
    naysay.recipe.write_text(yaml.safe_dump(recipe))


def test_strictly_on_policy_anchors_are_allowed_with_a_warning(naysay):
    without_instructions(naysay)
    settings = (
        *("anchors.schedule=online", "anchors.mode=plain", "anchors.warmup_steps=0", "anchors.refresh_every=1"),
        *("anchors.refresh_fraction=1.0", "training.max_steps=2"),
    )
    naysay.do("run", *settings)
    assert "D2O becomes NPO" in naysay.err
    naysay.do("other", "anchors.mode=plain", "training.max_steps=2")
    assert "D2O becomes NPO" not in naysay.err


def test_revised_anchors_are_drawn_from_the_rejected_answers(naysay, finished):
    without_instructions(naysay)
    run = naysay.do("run", "anchors.mode=revise", "training.max_steps=1")
    names = {anchor.instruction_id for anchor in read_records(run.anchors, Anchor)}
    assert names
    assert not names & {anchor.instruction_id for anchor in read_records(finished.anchors, Anchor)}


def test_accepted_answers_stand_among_the_anchors_with_their_share(naysay, finished):
    run = naysay.do("run", "anchors.acceptable_share=0.5")
    assert run.anchors.read_bytes() == finished.anchors.read_bytes()
    counts, before = run.manifest("train").counts, finished.manifest("train").counts
    assert counts["accepted_share"] == 0.5
    assert counts["accepted"] == counts["groups"]["trained"] + counts["groups"]["not_reached"]
    assert counts["anchors"] == before["anchors"]  # own samples, whatever their weight
    assert not {"accepted", "accepted_share"} & before.keys()
    groups, plain = (list(read_jsonl(r.train / "groups.jsonl")) for r in (run, finished))
    # The style gap is measured against own samples, whatever stands among the anchors.
    for name in ("anchors", "anchor_tokens", "anchor_ref_logp", "negative_ref_logp"):
        assert [row[name] for row in groups] == pytest.approx([row[name] for row in plain], rel=1e-5)
    assert {row["accepted"] for row in groups} == {1}
    assert {row["accepted"] for row in plain} == {0}
    losses, others = ([row["loss"] for row in read_jsonl(r.metrics)] for r in (run, finished))
    assert losses[0] == pytest.approx(others[0], abs=1e-5)  # log 2, whatever the anchors are
    assert losses[1:] != pytest.approx(others[1:], abs=1e-5)


def test_a_share_of_accepted_answers_needs_some(naysay, tmp_path):
    line = naysay.refused(*naysay.command("run", "anchors.acceptable_share=0.5", "anchors.schedule=online"))
    assert "anchors.acceptable_share: accepted answers cannot be redrawn; set anchors.schedule: offline" in line
    without_chosen(naysay)
    line = naysay.refused(*naysay.command("run", "anchors.acceptable_share=0.5"))
    assert "anchors.acceptable_share is 0.5 and needs answers that people accepted" in line
    assert not (tmp_path / "run" / "anchors.jsonl").exists()
