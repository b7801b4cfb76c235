"""lm-eval and Inspect on a finished run, by the command line: local files, no network."""

import gc
import json
import shutil
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from endtoend.workplace import Workplace, write_rows
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, read_records
from naysay.modeling.adapters import BaseAndTuned
from naysay.modeling.loading import load_tokenizer
from naysay.pipeline.trained_run import open_run
from naysay.records import Generation

# Theirs to mend: inspect-ai 0.3.285 asks tenacity by an old name, and leaves streams open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]

LM_EVAL = "comes with the extra naysay[capability]"
INSPECT = "comes with the extra naysay[inspect]"
QUESTIONS = [{"question": f"Is {i} even?", "choices": ["yes", "no"], "gold": i % 2} for i in range(10)]
TASK_FILE = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def letters():
    samples = [Sample(input=f"Say {letter}", target=letter) for letter in ("", "e", "\\u2603")]
    return Task(dataset=samples, solver=generate(), scorer=includes())

@task
def with_penalty():
    return Task(dataset=[Sample(input="a", target="a")], solver=generate(frequency_penalty=1.0), scorer=includes())
"""


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """What Inspect left open goes here, and not in a test of something else."""
    yield
    gc.collect()


@pytest.fixture
def run(finished: RunDirectory, naysay: Workplace, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A copy of the finished run that a test may write into, on a machine without a network."""

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    shutil.copytree(finished.path, naysay.folder / "copy")
    return RunDirectory(naysay.folder / "copy")


@pytest.fixture
def tasks(naysay: Workplace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a multiple-choice task over a local file."""
    lm_eval_tasks = pytest.importorskip("lm_eval.tasks", reason=LM_EVAL)
    # It takes seconds to read the names of lm-eval's own thousands of tasks.
    alone = partial(lm_eval_tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval_tasks, "TaskManager", alone)
    folder = naysay.folder / "tasks"
    folder.mkdir()
    rows = write_rows(folder / "even.jsonl", QUESTIONS)
    task = {
        "task": "even",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "gold",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "even.yaml").write_text(yaml.safe_dump(task))
    return folder


def right_answers(run: RunDirectory) -> dict[str, list[bool]]:
    """Which questions each policy gets right, from its own log-probs: no lm-eval in it."""
    config, _ = open_run(run.path, "train")
    policies, tokenizer = BaseAndTuned.load(config.model, adapter=run.adapter), load_tokenizer(config.model)
    right = {}
    for name, opened in (("base", policies.base), ("tuned", policies.tuned)):
        with opened() as model, torch.no_grad():
            scores = [[answer_logp(model, tokenizer, row, choice) for choice in row["choices"]] for row in QUESTIONS]
        right[name] = [row.index(max(row)) == item["gold"] for row, item in zip(scores, QUESTIONS, strict=True)]
    return right


def answer_logp(model, tokenizer, row: dict, choice: str) -> float:
    context = tokenizer(f"Question: {row['question']}\nAnswer:", add_special_tokens=False)["input_ids"]
    answer = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
    logp = model(input_ids=torch.tensor([context + answer])).logits.log_softmax(-1)[0]
    return sum(float(logp[len(context) - 1 + i, token]) for i, token in enumerate(answer))


def test_capability_is_measured_on_both_policies_and_shown(naysay, run, tasks):
    assert naysay("capability", "--out", run.path, "--tasks", "even", "--tasks-dir", tasks) == 0, naysay.err
    found = read_json(run.capability)
    (score,) = found["scores"]
    right = right_answers(run)
    assert (score["task"], score["metric"], score["higher_is_better"]) == ("even", "acc", True)
    assert score["base"] == pytest.approx(sum(right["base"]) / 10)
    assert score["tuned"] == pytest.approx(sum(right["tuned"]) / 10)
    assert score["change"]["n"] == 10
    assert score["change"]["value"] == pytest.approx(score["tuned"] - score["base"])
    assert found["policy"] == read_json(run.evaluation)["policy"]
    assert "even: acc" in naysay.out
    assert "<caption>Capability</caption>" in run.report.read_text()
    assert "it/s" not in naysay.err  # no bars of libraries where nobody sees them move


def test_a_task_that_is_not_there_is_said_before_a_model_loads(naysay, run, tasks, monkeypatch):
    monkeypatch.setattr("naysay.modeling.adapters.load_model", lambda *_: pytest.fail("a model was loaded"))
    line = naysay.refused("capability", "--out", run.path, "--tasks", "evne", "--tasks-dir", tasks)
    assert line == "--tasks evne: lm-eval knows no such task; did you mean 'even'?"
    (tasks / "even.jsonl").unlink()
    line = naysay.refused("capability", "--out", run.path, "--tasks", "even", "--tasks-dir", tasks)
    assert line.startswith("--tasks even: the questions cannot be read: ")
    line = naysay.refused("capability", "--out", run.path, "--tasks", "even", "--tasks-dir", tasks / "no")
    assert "expected a folder with task files" in line


def test_what_is_missing_is_said_in_one_line(naysay, run, monkeypatch):
    commands = {
        "capability": ["capability", "--tasks", "arc_easy"],
        "inspect": ["inspect", "export"],
    }
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    for extra, command in commands.items():
        line = naysay.refused(*command, "--out", run.path)
        assert line.endswith(f"run in naysay's checkout: pip install -c constraints.txt -e '.[{extra}]'")


def test_answers_are_exported_as_logs_of_inspect(naysay, run):
    pytest.importorskip("inspect_ai", reason=INSPECT)
    from inspect_ai.log import read_eval_log

    assert naysay("inspect", "export", "--out", run.path) == 0, naysay.err
    generations = read_records(run.generations, Generation)
    for model in ("base", "tuned"):
        log = read_eval_log(str(run.inspect_logs / f"generations-{model}.eval"))
        expected = {item.prompt_id: item.text for item in generations if item.model == model}
        assert log.samples is not None
        assert {sample.id: sample.output.completion for sample in log.samples} == expected
        assert all(sample.scores for sample in log.samples)
    assert naysay("inspect", "export", "--out", run.path, "--to", naysay.folder / "logs") == 0
    assert len(list((naysay.folder / "logs").iterdir())) == 2


def test_a_task_of_inspect_runs_on_the_tuned_and_on_the_base_model(naysay, run):
    pytest.importorskip("inspect_ai", reason=INSPECT)
    from inspect_ai.log import read_eval_log

    file = naysay.folder / "suite.py"
    file.write_text(TASK_FILE)
    answers = {}
    for model in ("tuned", "base"):
        arguments = ["inspect", "run", f"{file}@letters", "--out", run.path, "--model", model, "--max-tokens", "6"]
        assert naysay(*arguments) == 0, naysay.err
        log = read_eval_log(naysay.out.splitlines()[-1].removeprefix("log").strip())
        assert Path(log.location.removeprefix("file://")).parent == run.inspect_logs
        assert log.eval.model == f"naysay/{model}"
        assert log.samples is not None
        assert len(log.samples) == 3
        answers[model] = [sample.output.completion for sample in log.samples]
        usage = [sample.output.usage for sample in log.samples]
        assert all(item is not None and 1 <= item.output_tokens <= 6 for item in usage)
        right = [target in text for target, text in zip(("", "e", "\u2603"), answers[model], strict=True)]
        assert f"letters includes: accuracy {sum(right) / 3:.3f}" in naysay.out
    assert answers["tuned"] != answers["base"]  # the adapter is on for one, and not for the other


def test_failures_of_a_task_are_one_line(naysay, run):
    pytest.importorskip("inspect_ai", reason=INSPECT)
    file = naysay.folder / "suite.py"
    file.write_text(TASK_FILE)
    line = naysay.refused("inspect", "run", f"{file}@nothing", "--out", run.path)
    assert line == f"{file}@nothing: the file has no task 'nothing'; it has letters, with_penalty"
    line = naysay.refused("inspect", "run", naysay.folder / "none.py", "--out", run.path)
    assert "no such file" in line
    line = naysay.refused("inspect", "run", f"{file}@with_penalty", "--out", run.path)
    assert "frequency_penalty" in line
    broken = naysay.folder / "broken.py"
    broken.write_text(TASK_FILE.replace("def letters():", "def letters():\n    raise RuntimeError('mine')"))
    line = naysay.refused("inspect", "run", f"{broken}@letters", "--out", run.path)
    assert "mine" in line


def test_inspect_finds_the_provider_by_itself(run):
    pytest.importorskip("inspect_ai", reason=INSPECT)
    from importlib.metadata import entry_points

    from inspect_ai.model import get_model

    if not any(point.value == "naysay.pipeline.inspect_provider" for point in entry_points(group="inspect_ai")):
        pytest.skip("naysay was installed before it had this entry point; install it again")
    model = get_model("naysay/base", run=str(run.path), memoize=False)
    assert str(model) == "naysay/base"
    assert json.loads(json.dumps(model.model_args)) == {"run": str(run.path)}
