"""Six stages that take no time: they read and write the files of a run as the real ones do, and can be made to fail."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, write_json, write_text
from naysay.config.run import RunConfig

PARTS = 3


@dataclass
class FakeStage:
    """Writes `PARTS` parts of partial work, one after the other, then its outputs from its inputs and settings."""

    name: str
    section: Callable[[RunConfig], dict[str, Any]]
    reads: Callable[[RunConfig, RunDirectory], dict[str, Path]]
    writes: Callable[[RunConfig, RunDirectory], list[Path]]
    parts: Callable[[RunDirectory], Path | None] = lambda run: None
    VERSION: int = 1
    fail_at: int | None = None
    error: BaseException = field(default_factory=lambda: RuntimeError("injected"))
    parts_made: list[int] = field(default_factory=list)
    runs: int = 0

    def settings(self, config: RunConfig) -> dict[str, Any]:
        return self.section(config)

    def inputs(self, config: RunConfig, run: RunDirectory) -> dict[str, Path]:
        return self.reads(config, run)

    def outputs(self, config: RunConfig, run: RunDirectory) -> list[Path]:
        return self.writes(config, run)

    def run(self, config: RunConfig, run: RunDirectory, **injected: Any) -> dict[str, Any]:
        self.runs += 1
        self.injected = injected
        self._work(run)
        content = {name: _content(path) for name, path in self.inputs(config, run).items()}
        for path in self.outputs(config, run):
            if path in (run.adapter, run.model):
                write_json(path / "weights.json", [content, self.settings(config)])
                write_text(path / "README.md", "card")
            elif path == run.summary:
                write_json(path, {"verdict": "the margin\nis above 0"})
            else:
                write_json(path, [content, self.settings(config)])
        return {"in": len(content), "parts": {"out": PARTS}}

    def _work(self, run: RunDirectory) -> None:
        folder = self.parts(run)
        for part in range(PARTS):
            if folder is not None and not (folder / f"{part}.json").exists():
                self.parts_made.append(part)
                write_json(folder / f"{part}.json", self.name)
            if part == self.fail_at:
                self.fail_at = None
                raise self.error


def _content(path: Path) -> Any:
    if path.is_dir():
        return {item.name: item.read_text() for item in sorted(path.iterdir())}
    return read_json(path) if path.suffix == ".json" else path.read_text()


def fake_stages() -> dict[str, FakeStage]:
    """The whole graph; `fake_stages().__getitem__` is what `run_stages(modules=...)` takes."""
    stages = [
        FakeStage(
            "ingest",
            lambda config: {"data": config.data.model_dump(mode="json"), "seed": config.seed},
            lambda config, run: {"data": Path(config.data.path)},
            lambda config, run: [run.prompts, run.negatives],
        ),
        FakeStage(
            "sample",
            lambda config: config.anchors.model_dump(mode="json"),
            lambda config, run: {"prompts": run.prompts},
            lambda config, run: [run.anchors],
            lambda run: run.sampling_parts,
        ),
        FakeStage(
            "score",
            lambda config: {"drop_refusals": config.anchors.filters.drop_refusals},
            lambda config, run: {"anchors": run.anchors, "negatives": run.negatives},
            lambda config, run: [run.scores, run.selection],
        ),
        FakeStage(
            "train",
            lambda config: {"beta": config.training.beta, "method": config.training.method},
            lambda config, run: {"anchors": run.anchors, "selection": run.selection},
            lambda config, run: [run.adapter if config.training.method == "lora" else run.model, run.metrics],
            lambda run: run.train / "checkpoints",
        ),
        FakeStage(
            "evaluate",
            lambda config: config.evaluation.model_dump(mode="json"),
            lambda config, run: {"policy": run.adapter if config.training.method == "lora" else run.model},
            lambda config, run: [run.generations, run.evaluation],
            lambda run: run.generation_parts,
        ),
        FakeStage(
            "report",
            lambda config: {},
            lambda config, run: {"evaluation": run.evaluation},
            lambda config, run: [run.report, run.summary],
        ),
    ]
    return {stage.name: stage for stage in stages}
