"""A run with fake stages, and what one may ask of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from naysay.artifacts.run_directory import RunDirectory
from naysay.config import RunConfig, load_config
from naysay.pipeline import Event, run_stages
from pipeline.fake_stages import FakeStage, fake_stages


@dataclass
class Bench:
    """`do()` = the command again; `events` and `ran` say what the last one did."""

    folder: Path
    stages: dict[str, FakeStage] = field(default_factory=fake_stages)
    events: list[Event] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "rejected.txt"

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.folder / "run")

    def config(self, *overrides: str) -> RunConfig:
        return load_config(None, overrides, {"data.path": str(self.data)})

    def do(self, *overrides: str, out: str = "run", **options: Any) -> RunDirectory:
        self.events.clear()
        for stage in self.stages.values():
            stage.runs = 0
            stage.parts_made.clear()
        return run_stages(
            self.config(*overrides),
            self.folder / out,
            on_event=self.events.append,
            modules=self.stages.__getitem__,
            **options,
        )

    @property
    def ran(self) -> list[str]:
        return [name for name, stage in self.stages.items() if stage.runs]

    def kinds(self, kind: str) -> list[Any]:
        return [event.stage for event in self.events if event.kind == kind]

    def notes(self) -> str:
        return " | ".join(event.text for event in self.events if event.kind == "note")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.data.write_text("three bad answers")
    return bench


def contents(run: RunDirectory) -> dict[str, bytes]:
    """Every output of a run, by its relative name (manifests hold times and are left out)."""
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for path in sorted(run.path.rglob("*"))
        if path.is_file() and path.parent.name != "manifests" and path.name != ".lock"
    }


@pytest.fixture
def read_contents():
    return contents
