"""A whole comparison on fake stages: which runs are made, what they share, and what a killed one leaves."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, write_text
from naysay.config import load_config
from naysay.errors import ConfigError, DataError, NonFiniteLossError, ReferenceMismatchError, RunDirectoryError
from naysay.pipeline import Event, run_stages
from naysay.pipeline.compare import ComparisonDirectory, RunEvent, compare
from naysay.pipeline.compare_plan import make_plan
from pipeline.compare_fakes import Effects, compare_stages

RATES = (1e-4, 3e-4)


@dataclass
class Bench:
    """`do()` = the command again, with new stages; `events` say what the last one did."""

    folder: Path
    effects: Effects = field(default_factory=Effects)
    stages: dict[str, Any] = field(default_factory=dict)
    events: list[Event | RunEvent] = field(default_factory=list)

    def do(self, *sets: str, out: str = "c", stop: dict[str, tuple[str, BaseException]] | None = None, **plan: Any):
        options: dict[str, Any] = {
            "objectives": ("d2o", "npo"),
            "budget": 32,
            "seeds": 2,
            "learning_rates": RATES,
        } | plan
        self.stages = compare_stages(self.effects)
        for label, (stage, error) in (stop or {}).items():
            self.stages[stage].stop[label] = error
        self.events.clear()
        config = load_config(None, sets, {"data.path": str(self.folder / "rejected.txt")})
        return compare(
            make_plan(config, **options),
            self.folder / out,
            command="naysay compare",
            on_event=self.events.append,
            modules=self.stages.__getitem__,
        )

    def kinds(self, kind: str) -> list[str]:
        found = [event for event in self.events if isinstance(event, RunEvent) and event.kind == kind]
        return [event.spec.name if event.spec is not None else event.objective for event in found]


@pytest.fixture
def bench(tmp_path):
    write_text(tmp_path / "rejected.txt", "bad answers")
    return Bench(tmp_path)


def result(folder: ComparisonDirectory) -> dict[str, Any]:
    return read_json(folder.result)


def comparable(folder: ComparisonDirectory) -> dict[str, Any]:
    """compare.json without the times, which no two sessions share."""
    found = result(folder)
    for item in (*found["given"].values(), *found["runs"]):
        for name in ("seconds", "train_seconds", "tuning_seconds"):
            item.pop(name, None)
    return found


def test_the_layout_and_what_each_run_is(bench):
    folder = bench.do()
    names = sorted(str(path.parent.relative_to(folder.path)) for path in folder.path.rglob("report.html"))
    assert names == [
        "runs/d2o/seed-0",
        "runs/d2o/seed-1",
        "runs/npo/seed-0",
        "runs/npo/seed-1",
        "tune/d2o/lr-0.0001",
        "tune/d2o/lr-0.0003",
        "tune/npo/lr-0.0001",
        "tune/npo/lr-0.0003",
    ]
    train = bench.stages["train"]
    assert train.calls == [
        "d2o 0.0001 seed 0 dev",
        "d2o 0.0003 seed 0 dev",
        "npo 0.0001 seed 0 dev",
        "npo 0.0003 seed 0 dev",
        "d2o 0.0003 seed 0 heldout",
        "npo 0.0003 seed 0 heldout",
        "d2o 0.0003 seed 1 heldout",
        "npo 0.0003 seed 1 heldout",
    ]
    assert [config.training.max_steps for config in train.configs] == [2] * 4 + [4] * 4
    assert bench.stages["evaluate"].calls == train.calls


def test_rows_and_anchors_are_made_once_and_taken_over_by_digest(bench):
    folder = bench.do()
    assert [bench.stages[stage].runs for stage in ("ingest", "sample", "score")] == [1, 1, 1]
    run = RunDirectory(folder.path / "runs/npo/seed-1")
    shared = folder.shared
    for stage in ("ingest", "sample", "score"):
        assert run.manifest(stage).reused_from == str(shared.path)
        assert run.manifest(stage).key == shared.manifest(stage).key
    assert run.anchors.read_bytes() == shared.anchors.read_bytes()


def test_references_and_base_answers_are_computed_once_a_split(bench):
    folder = bench.do()
    assert bench.stages["train"].computed == ["references"]
    evaluate = bench.stages["evaluate"].computed
    assert evaluate.count("scores") == 2
    assert evaluate.count("base answers") == 2
    assert evaluate.count("tuned scores") == evaluate.count("tuned answers") == 8
    # What belongs to one run alone is not handed on.
    assert [path.name for path in sorted(folder.shared.reference_cache.iterdir())] == ["base"]
    assert sorted(path.name for path in folder.shared.generation_parts.iterdir()) == ["base-dev", "base-heldout"]


def test_checkpoints_of_finished_runs_are_removed_and_the_runs_stay_valid(bench):
    folder = bench.do()
    assert list(folder.path.rglob("checkpoint-*")) == []
    bench.do()
    assert bench.stages["train"].calls == []
    assert len(bench.kinds("known")) == 8


def test_the_chosen_rate_is_that_of_the_rule(bench):
    bench.effects.kl["npo"] = 0.01  # 0.03 at the larger rate with half the budget: 0.12 expected with all of it
    bench.effects.degenerate["d2o"] = 0.02  # 0.06: one of 14 answers = 7 points at the larger rate
    folder = bench.do()
    given = result(folder)["given"]
    assert (given["npo"]["chosen"], given["d2o"]["chosen"]) == (1e-4, 1e-4)
    assert given["npo"]["tuning"][1]["kl"] == pytest.approx(0.03)
    assert given["d2o"]["tuning"][1]["degenerate_rise"] == pytest.approx(1 / 14)
    assert given["npo"]["reason"].startswith("largest dev separation (+0.030")
    assert bench.kinds("chosen") == ["d2o", "npo"]
    assert set(bench.stages["train"].calls[4:]) == {
        f"{name} 0.0001 seed {seed} heldout" for name in ("d2o", "npo") for seed in (0, 1)
    }


def test_every_objective_is_given_the_same(bench):
    folder = bench.do(budget=40, objectives=("d2o", "npo", "ga"))
    given = result(folder)["given"]
    for item in given.values():
        assert (item["steps"], item["groups"]) == (5, 40)
        # Mean of a group: 10 + 30 + 27 tokens.
        assert item["tokens"] == 40 * 67
        assert item["learning_rates"] == list(RATES)


def test_the_table_and_the_difference(bench):
    folder = bench.do()
    found = result(folder)
    assert found["reference"] == "d2o"
    d2o, npo = (found["table"][name]["separation"] for name in ("d2o", "npo"))
    # Effect x rate x mean over seeds, and the means of the prompts' own parts.
    assert d2o["value"] == pytest.approx(3 * 0.04 * 1.01 - 0.0005 + 0.0001 * 0.9 * 3, abs=1e-6)
    assert npo["value"] == pytest.approx(3 * 0.03 * 1.01 - 0.0005 + 0.0001 * 0.9 * 3, abs=1e-6)
    difference = found["differences"]["npo"]["separation"]
    assert difference["value"] == pytest.approx(-3 * 0.01 * 1.01, abs=1e-6)
    assert difference["by_seed"] == pytest.approx([-0.03, -0.0306])
    assert difference["ci_high"] < 0
    assert difference["claim"] == "worse"
    assert found["verdicts"]["npo"]["label"] == "worse"
    assert found["headline"] == "Compared with d2o: worse: npo."


def test_without_acceptable_answers_the_margin_decides(bench):
    bench.effects.acceptable = False
    found = result(bench.do())
    assert found["primary"] == "margin"
    assert "margin" in found["given"]["d2o"]["reason"]
    assert found["table"]["d2o"]["separation"]["value"] is None
    assert "by the margin, which D²O itself is trained on" in found["verdicts"]["npo"]["text"]


def test_the_first_objective_stands_in_for_d2o(bench):
    folder = bench.do(objectives=("npo", "ga"))
    found = result(folder)
    assert (found["reference"], list(found["differences"])) == ("npo", ["ga"])
    page = folder.report.read_text()
    assert "d2o is not among the objectives: the others are compared with the first, npo." in page


def test_compare_json_is_small_and_holds_no_text(bench):
    folder = bench.do(objectives=("d2o", "npo", "ga"))
    text = folder.result.read_text()
    assert len(text) < 60_000
    assert "p-1" not in text
    assert {"schema_version", "command", "settings", "environment", "runs", "naysay_version"} <= set(json.loads(text))


STOPS = [
    ("train", "d2o 0.0001 seed 0 dev"),
    ("evaluate", "d2o 0.0001 seed 0 dev"),
    ("train", "npo 0.0003 seed 0 dev"),
    ("evaluate", "npo 0.0003 seed 1 heldout"),
]


@pytest.mark.parametrize(("stage", "label"), STOPS)
def test_interrupted_anywhere_the_same_call_ends_the_same(bench, stage, label):
    whole = bench.do(out="whole")
    with pytest.raises(KeyboardInterrupt):
        bench.do(stop={label: (stage, KeyboardInterrupt())})
    before = bench.stages["train"].calls
    folder = bench.do()
    assert comparable(folder) == comparable(whole)
    # A run that was finished is not begun again; the one that was interrupted is.
    again = 1 if stage == "train" else 0
    assert len(before) + len(bench.stages["train"].calls) == 8 + again
    assert sum(stage.runs for name, stage in bench.stages.items() if name in ("sample", "score")) == 0


@pytest.mark.parametrize("stage", ["ingest", "sample"])
def test_interrupted_before_the_first_run(bench, stage):
    def fail(config, run, **injected):
        raise KeyboardInterrupt

    stages = compare_stages(bench.effects)
    stages[stage].run = fail
    config = load_config(None, (), {"data.path": str(bench.folder / "rejected.txt")})
    plan = make_plan(config, objectives=("d2o", "npo"), budget=32, seeds=2, learning_rates=RATES)
    with pytest.raises(KeyboardInterrupt):
        compare(plan, bench.folder / "c", command="naysay compare", modules=stages.__getitem__)
    assert comparable(bench.do()) == comparable(bench.do(out="whole"))


def test_only_what_the_base_answered_is_shared(bench):
    with pytest.raises(KeyboardInterrupt):
        bench.do(stop={"d2o 0.0001 seed 0 dev": ("train", KeyboardInterrupt())})
    shared = RunDirectory(bench.folder / "c" / "shared")
    write_text(shared.generation_parts / "tuned-0" / "part-0.jsonl", "of another model")
    bench.do()
    assert bench.stages["evaluate"].computed.count("tuned answers") == 8


def test_a_damaged_shared_reference_names_its_source_too(bench):
    error = ReferenceMismatchError("cached log-prob does not agree; delete this folder and run the same command again")
    with pytest.raises(ReferenceMismatchError, match=r"delete this folder.*and delete .*shared/reference_cache"):
        bench.do(stop={"npo 0.0001 seed 0 dev": ("train", error)})


def test_another_folder_is_not_written_into(bench):
    write_text(bench.folder / "c" / "x", "")
    with pytest.raises(RunDirectoryError, match="found 'x' and no compare_config"):
        bench.do()
    assert [path.name for path in (bench.folder / "c").iterdir()] == ["x"]
    with pytest.raises(RunDirectoryError, match="expected a folder, found a file"):
        bench.do(out="rejected.txt")


def test_another_setting_is_refused_and_nothing_is_changed(bench):
    folder = bench.do()
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(RunDirectoryError, match=r"other settings \(seeds: 2 -> 3, anchors\.k: 11 -> 4\)"):
        bench.do("anchors.k=4", seeds=3)
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert bench.stages["ingest"].runs == 0


def test_an_empty_dev_split_is_refused_before_anything_is_drawn(bench):
    with pytest.raises(DataError, match=r"in the dev split.*raise data\.dev_fraction"):
        bench.do("data.dev_fraction=0.0")
    assert bench.stages["sample"].runs == 0
    # The advice can be followed in the same folder.
    assert bench.do("data.dev_fraction=0.2").result.exists()


def test_without_benign_prompts_no_rate_could_be_chosen(bench):
    with pytest.raises(DataError, match=r"no benign prompts.*data\.benign"):
        bench.do("data.limit.benign=0")
    assert bench.stages["sample"].runs == 0


def test_an_objective_that_the_data_cannot_support_is_refused_before_anything_is_drawn(bench):
    with pytest.raises(DataError, match=r"training\.objective 'dpo' needs answers that people preferred"):
        bench.do(objectives=("d2o", "dpo"))
    assert (bench.stages["ingest"].runs, bench.stages["sample"].runs) == (1, 0)


def test_a_wrong_setting_is_refused_before_the_first_file_is_read(bench):
    with pytest.raises(ConfigError, match="lerning_rate"):
        bench.do("training.trainer_args={lerning_rate: 1.0}")
    assert bench.stages["ingest"].runs == 0
    assert not (bench.folder / "c").exists()


def test_a_run_is_not_a_comparison(bench):
    config = load_config(None, (), {"data.path": str(bench.folder / "rejected.txt")})
    run_stages(config, bench.folder / "c", modules=compare_stages().__getitem__)
    with pytest.raises(RunDirectoryError, match="expected a new or empty folder or a comparison"):
        bench.do()


def test_a_second_process_is_kept_out(bench):
    with RunDirectory(bench.folder / "c").locked(), pytest.raises(RunDirectoryError, match="in use by another"):
        bench.do()


NAN = NonFiniteLossError("step 2: the loss is nan")


def test_a_rate_that_diverges_is_no_candidate_and_is_not_tried_again(bench):
    folder = bench.do(stop={"npo 0.0003 seed 0 dev": ("train", NAN)})
    given = result(folder)["given"]["npo"]
    assert given["chosen"] == 1e-4
    assert given["tuning"][1]["diverged"] == "step 2: the loss is nan"
    assert bench.kinds("diverged") == ["tune/npo/lr-0.0003"]
    before = comparable(folder)
    bench.do()
    assert bench.stages["train"].calls == []
    assert comparable(folder) == before


def test_an_objective_that_always_diverges_has_no_final_run(bench):
    stop = {f"npo {rate:g} seed 0 dev": ("train", NonFiniteLossError("nan")) for rate in RATES}
    folder = bench.do(stop=stop)
    found = result(folder)
    assert not (folder.path / "runs" / "npo").exists()
    assert found["verdicts"]["npo"]["label"] == "diverged"
    assert found["verdicts"]["npo"]["text"] == "npo: diverged; the loss was not finite with every learning rate."
    assert found["given"]["npo"]["chosen"] is None
    assert found["table"]["npo"]["separation"]["value"] is None
    assert [event.of for event in bench.events if isinstance(event, RunEvent) and event.spec][-1] == 6
    assert "none: every run diverged" in folder.report.read_text()


def test_a_final_run_that_diverges_is_said_and_claims_nothing(bench):
    found = result(bench.do(stop={"npo 0.0003 seed 1 heldout": ("train", NAN)}))
    assert found["verdicts"]["npo"]["text"] == "npo: diverged; the loss was not finite at seed 1."
    assert len(found["differences"]["npo"]["separation"]["by_seed"]) == 1


def test_where_the_reference_diverges_nothing_is_claimed(bench):
    stop = {f"d2o {rate:g} seed 0 dev": ("train", NonFiniteLossError("nan")) for rate in RATES}
    folder = bench.do(stop=stop)
    found = result(folder)
    assert found["verdicts"]["npo"]["label"] == "no_evidence"
    assert "d2o itself diverged" in folder.report.read_text()


def test_other_failures_end_the_comparison_and_it_goes_on(bench):
    with pytest.raises(DataError):
        bench.do(stop={"npo 0.0001 seed 0 dev": ("evaluate", DataError("no"))})
    assert bench.do().result.exists()


def test_events_number_the_runs_and_estimate_what_is_left(bench):
    bench.do()
    runs = [event for event in bench.events if isinstance(event, RunEvent) and event.spec is not None]
    finished = [event for event in runs if event.kind == "finished"]
    assert [(event.number, event.of) for event in finished] == [(i, 8) for i in range(1, 9)]
    assert [event.kind for event in runs[:2]] == ["started", "finished"]
    assert runs[0].left is None
    assert all(event.left is not None and event.left >= 0.0 for event in runs[1:])
    assert finished[-1].left == 0.0
    assert "separation" in finished[0].text
    bench.do()
    assert bench.kinds("started") == []
