"""A whole comparison with real stages on the tiny model: what is shared is made once, and a killed one ends alike."""

import pytest

from endtoend.workplace import Workplace, fill
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, read_jsonl, read_records
from naysay.evaluation import generations as evaluation_generations
from naysay.generation.hf import HFSampler
from naysay.pipeline.compare import ComparisonDirectory
from naysay.records import PromptEvaluation
from naysay.reporting.comparison_measures import MEASURES
from naysay.training.trainer import D2OTrainer

RUNS = ["tune/d2o/lr-0.003", "tune/d2o/lr-0.01", "tune/npo/lr-0.003", "tune/npo/lr-0.01"]
RUNS += ["runs/d2o/seed-0", "runs/npo/seed-0"]


def command(workplace, out):
    plan = ("--objectives", "d2o,npo", "--budget", "6", "--seeds", "1", "--learning-rates", "0.003,0.01")
    sets = ("--set", "data.dev_fraction=0.25", "--set", "evaluation.kl_bound=0.3")
    return ["compare", *workplace.command(out)[1:], *plan, *sets]


def comparable(folder):
    """compare.json without the times and the paths, which no two comparisons share."""
    found = read_json(folder.result)
    del found["command"], found["settings"]["data"], found["settings"]["model"]
    for item in (*found["given"].values(), *found["runs"]):
        for name in ("seconds", "train_seconds", "tuning_seconds"):
            item.pop(name, None)
        if item.get("last_step"):
            del item["last_step"]["tokens_per_second"]
    return found


@pytest.fixture(scope="module")
def compared(tmp_path_factory, model_folder):
    """An uninterrupted comparison, and which policy drew how many answers in it. Tests only read it."""
    folder = tmp_path_factory.mktemp("compared")
    fill(folder)
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        sample = HFSampler.sample

        def counted(self, requests, settings):
            drawn.append((self.policy_digest, len(requests)))
            return sample(self, requests, settings)

        patch.setattr(HFSampler, "sample", counted)
        workplace = Workplace(folder, model_folder)
        assert workplace(*command(workplace, "c")) == 0
    return ComparisonDirectory(folder / "c"), drawn


def runs(folder):
    return [RunDirectory(folder.path / name) for name in RUNS]


def test_every_run_is_there_and_has_the_same_budget(compared):
    folder, _ = compared
    found = read_json(folder.result)
    assert [run["name"] for run in found["runs"]] == RUNS
    assert [run["steps"] for run in found["runs"]] == [2] * 4 + [3] * 2
    assert {run["groups"] for run in found["runs"][4:]} == {6}
    for run in runs(folder):
        assert len(list(read_jsonl(run.metrics))) == run.manifest("train").counts["steps"]


def test_rows_anchors_and_references_are_the_same_for_all(compared):
    folder, _ = compared
    digests = {
        stage: {str(run.manifest(stage).outputs) for run in runs(folder)} for stage in ("ingest", "sample", "score")
    }
    assert [len(found) for found in digests.values()] == [1, 1, 1]
    assert len({str(run.manifest("train").counts["references"]) for run in runs(folder)}) == 1


def test_the_base_model_answers_once_for_each_split(compared):
    folder, drawn = compared
    base = read_json(RunDirectory(folder.path / RUNS[0]).evaluation)["policy"]["base_digest"]
    anchors = folder.shared.manifest("sample").counts["anchors"]
    # Two dev (held-out) and two benign prompts are answered: 4 answers for each of the splits.
    assert sum(count for digest, count in drawn if digest == base) == anchors + 4 + 4
    tuned = {read_json(run.evaluation)["policy"]["tuned_digest"] for run in runs(folder)}
    assert len(tuned) == 6
    assert sum(count for digest, count in drawn if digest in tuned) == 6 * 4


def test_the_base_answers_are_the_same_for_all_runs_of_a_split(compared):
    folder, _ = compared
    answers = {}
    for run in runs(folder):
        base = [row for row in read_jsonl(run.generations) if row["model"] == "base"]
        answers.setdefault(read_json(run.evaluation)["split"], []).append(base)
    assert {split: len(found) for split, found in answers.items()} == {"dev": 4, "heldout": 2}
    assert all(found == answers[split][0] for split, items in answers.items() for found in items)


def test_the_table_is_what_the_evaluations_say(compared):
    folder, _ = compared
    table = read_json(folder.result)["table"]
    for name in ("d2o", "npo"):
        run = RunDirectory(folder.path / f"runs/{name}/seed-0")
        evaluation = read_json(run.evaluation)
        heldout, kl = evaluation["heldout"], evaluation["kl"]
        expected = {
            "separation": heldout["separation"],
            "pair_accuracy": heldout["pair_accuracy_tuned"],
            "acceptable": heldout["acceptable_log_ratio_per_token"],
            "rejected": heldout["negative_log_ratio_per_token"],
            "anchors": heldout["anchor_log_ratio_per_token"],
            "margin": heldout["margin"],
            "refusal": evaluation["generations"]["by_kind"]["heldout"]["tuned"]["refusal"],
            "degenerate": evaluation["generations"]["tuned"]["degenerate"],
            "benign": evaluation["benign"]["nats_per_token_change"],
            "kl_base_to_tuned": kl["base_to_tuned"],
            "kl_tuned_to_base": kl["tuned_to_base"],
        }
        for key, estimate in expected.items():
            found = table[name][key]
            assert (found["value"], found["n"]) == (pytest.approx(estimate["value"], rel=1e-4), estimate["n"]), key
        rows = read_records(run.evaluation_prompts, PromptEvaluation)
        assert {row.kind for row in rows} == {"heldout", "benign"}


def test_the_report_has_every_row(compared):
    folder, _ = compared
    page = folder.report.read_text()
    for text in (*(measure.name for measure in MEASURES), "runs/d2o/seed-0", "runs/npo/seed-0", "Loss of npo"):
        assert text in page
    assert str(folder.path) not in page.replace(read_json(folder.result)["command"], "")


def stop(patch, owner, name, call):
    """Raise KeyboardInterrupt on the n-th call."""
    work, calls = getattr(owner, name), []

    def method(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return work(*args, **kwargs)

    patch.setattr(owner, name, method)


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (D2OTrainer, "training_step", (2, 5)),  # in the first run, then in the third
        (evaluation_generations, "draw", (2, 5)),  # before the tuned model's answers, then in another run
    ],
)
def test_interrupted_and_continued_it_ends_with_the_same_numbers(naysay, compared, monkeypatch, owner, name, calls):
    for call in calls:
        with monkeypatch.context() as patch:
            stop(patch, owner, name, call)
            assert naysay(*command(naysay, "c")) == 130
    folder = ComparisonDirectory(naysay.folder / "c")
    assert not folder.result.exists()
    assert naysay(*command(naysay, "c")) == 0, naysay.err
    assert comparable(folder) == comparable(compared[0])
