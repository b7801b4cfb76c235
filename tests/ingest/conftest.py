"""A small stand-in for the embedded answers, so that these tests do not depend on the real data set."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_jsonl
from naysay.config.load import parse_config
from naysay.ingest import embedded, stage

BENIGN = ("How do I kill a Python process?", "What makes bread rise in the oven?")


def _answer_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(12):
        split = ("train", "train", "dev", "heldout")[number % 4]
        about = {
            "prompt": f"Embedded risky question {number} {'abcdefghijkl'[number]}",
            "kind": "risky",
            "split": split,
        }
        about |= {"category": ("insult", "privacy", "fraud")[number % 3], "finish": "length", "seed": number}
        rows.append(about | {"answer": f"bad {number}", "label": "rejected"})
        if number != 3:
            rows.append(about | {"answer": f"good {number}", "label": "acceptable"})
    for kind, prompt in zip(("lookalike", "benign"), BENIGN, strict=True):
        about = {"prompt": prompt, "kind": kind, "split": "benign", "category": "", "finish": "stop", "seed": 0}
        rows.append(about | {"answer": f"answer to {prompt}", "label": "acceptable"})
    return rows


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded answers of these tests."""
    folder = tmp_path / "embedded"
    folder.mkdir()
    path = write_lines(folder / "answers.jsonl", _answer_rows())
    monkeypatch.setattr(embedded, "answers_path", lambda: path)
    return path


class Ingested:
    """What a run of the stage left."""

    def __init__(self, run: RunDirectory, counts: dict[str, Any]):
        self.counts = counts
        self.prompts = list(read_jsonl(run.prompts))
        self.negatives = list(read_jsonl(run.negatives))
        self.acceptable = list(read_jsonl(run.acceptable))
        self.quarantine = list(read_jsonl(run.quarantine))

    def split(self, name: str) -> set[str]:
        """The last message of each prompt in a split."""
        return {row["messages"][-1]["content"] for row in self.prompts if row["split"] == name}

    @property
    def asked(self) -> set[str]:
        """The last message of each prompt that has a rejected answer."""
        return self.split("train") | self.split("dev") | self.split("heldout")


Ingest = Callable[..., Ingested]


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    """Run the stage: `ingest(path or rows, count_tokens=None, seed=0, max_length=1024, **data)`."""

    def call(
        data: Path | str | list[Any],
        *,
        count_tokens: Any = None,
        seed: int = 0,
        max_length: int = 1024,
        **settings: Any,
    ) -> Ingested:
        path = write_lines(tmp_path / "rows.jsonl", data) if isinstance(data, list) else data
        raw = {"seed": seed, "model": {"max_length": max_length}, "data": {"path": str(path), **settings}}
        run = RunDirectory(tmp_path / "run")
        return Ingested(run, stage.run(parse_config(raw, "test"), run, count_tokens=count_tokens))

    return call
