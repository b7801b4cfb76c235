"""The stages in their order, the protocol that each follows, and what the pipeline hands to them.

Stage modules are imported by name when they are needed: `naysay --help` and `naysay ingest` must not load torch.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from naysay.artifacts.run_directory import RunDirectory
from naysay.config.model import ModelConfig
from naysay.config.run import RunConfig
from naysay.config.stages import STAGES, Stage
from naysay.errors import ConfigError
from naysay.records import Message

MODULE_PATHS: Mapping[Stage, str] = {
    "ingest": "naysay.ingest.stage",
    "sample": "naysay.sampling.stage",
    "score": "naysay.scoring.stage",
    "train": "naysay.training.stage",
    "evaluate": "naysay.evaluation.stage",
    "report": "naysay.reporting.stage",
}

REMADE: frozenset[Stage] = frozenset({"report"})
"""Stages that are done again, without a question, when what they read has changed: a second's work that holds nothing
of its own, and it shows the manifests, which change whenever a stage is done again."""


class StageModule(Protocol):
    """What a stage's module defines. The stages know neither the pipeline nor each other."""

    VERSION: int
    """Raised when the meaning of the output changes: what an older version left is then not up to date."""

    def settings(self, config: RunConfig) -> dict[str, Any]:
        """The JSON-able settings that the output depends on."""
        ...

    def inputs(self, config: RunConfig, run: RunDirectory) -> dict[str, Path]:
        """Name -> file or folder that is read (of the run, or the user's)."""
        ...

    def outputs(self, config: RunConfig, run: RunDirectory) -> list[Path]:
        """The files and folders that it leaves in the run directory, all of them its own."""
        ...

    def run(self, config: RunConfig, run: RunDirectory, **injected: Any) -> dict[str, Any]:
        """Do the work, going on from its own partial work, and return the counts."""
        ...


Modules = Callable[[Stage], StageModule]


def stage_module(stage: Stage) -> StageModule:
    """Import the module of a stage."""
    return cast(StageModule, import_module(MODULE_PATHS[stage]))


def execute(stage: Stage, module: StageModule, config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Run a stage with what it needs from a package that it may not import."""
    if stage == "ingest":
        return module.run(config, run, count_tokens=_token_counter(config.model))
    if stage == "train" and config.anchors.schedule == "online":
        from naysay.pipeline.anchor_source import RefreshedAnchors

        return module.run(config, run, anchor_source=RefreshedAnchors(config, run))
    return module.run(config, run)


def work_folders(stage: Stage, run: RunDirectory) -> list[Path]:
    """Where a stage keeps partial work beside its outputs."""
    folders = {"sample": run.sampling_parts, "train": run.train, "evaluate": run.generation_parts}
    return [folders[stage]] if stage in folders else []


def position(stage: Stage) -> int:
    return STAGES.index(stage)


def parse_stage(name: str, option: str) -> Stage:
    """The stage of this name.

    Raises:
        ConfigError: there is none; `option` is where the name was given.
    """
    if name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the stages are {', '.join(STAGES)}"
        raise ConfigError(f"{option} {name}: no such stage; {hint}")
    return STAGES[STAGES.index(name)]


def _token_counter(model: ModelConfig) -> Callable[[Sequence[Message], str], int]:
    """Loads a tokenizer at the first call only: a bad input file is reported before anything heavy is imported."""

    @cache
    def counter() -> Callable[[Sequence[Message], str], int]:
        from naysay.modeling.chat import token_counter

        return token_counter(model)

    return lambda messages, answer: counter()(messages, answer)
