"""What the runs of a comparison compute once: reference log-probs, and the base model's answers.

Both are named by their content (the policy's digest; and of the answers also that of the requests), so a copy means the
same in every run, and reference log-probs are audited whenever they are loaded. The copies are made inside of a stage:
what lies there before it begins belongs to no key and would be removed.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, write_atomic
from naysay.config.run import RunConfig
from naysay.config.stages import Stage
from naysay.errors import ReferenceMismatchError
from naysay.pipeline.graph import Modules, StageModule

_BASE_ANSWERS = "base-*"


def sharing(modules: Modules, shared: RunDirectory) -> Modules:
    """The modules of the stages, of which `train` and `evaluate` take from `shared` what is known, and add to it."""

    def module(stage: Stage) -> StageModule:
        found = modules(stage)
        return SharingStage(found, shared, found.VERSION) if stage in ("train", "evaluate") else found

    return module


@dataclass
class SharingStage:
    """A stage as it is, with copies before and after its work. Killed in between, the same copies are made again."""

    module: StageModule
    shared: RunDirectory
    VERSION: int

    def settings(self, config: RunConfig) -> dict[str, Any]:
        return self.module.settings(config)

    def inputs(self, config: RunConfig, run: RunDirectory) -> dict[str, Path]:
        return self.module.inputs(config, run)

    def outputs(self, config: RunConfig, run: RunDirectory) -> list[Path]:
        return self.module.outputs(config, run)

    def run(self, config: RunConfig, run: RunDirectory, **injected: Any) -> dict[str, Any]:
        _copy_new(_folders(self.shared.reference_cache), run.reference_cache)
        _copy_new(_folders(self.shared.generation_parts, _BASE_ANSWERS), run.generation_parts)
        try:
            counts = self.module.run(config, run, **injected)
        except ReferenceMismatchError as error:
            raise ReferenceMismatchError(f"{error} (and delete {self.shared.reference_cache}, its source)") from error
        tuned = read_json(run.evaluation)["policy"]["tuned_digest"] if run.evaluation.exists() else None
        references = [folder for folder in _folders(run.reference_cache) if folder.name != tuned]
        _copy_new(references, self.shared.reference_cache)
        _copy_new(_folders(run.generation_parts, _BASE_ANSWERS), self.shared.generation_parts)
        return counts


def remove_checkpoints(run: RunDirectory) -> None:
    """Of a run that is done: they hold optimizer states, several times the size of the adapter."""
    for folder in run.train.glob("checkpoint-*"):
        shutil.rmtree(folder)


def _folders(root: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in root.glob(pattern) if path.is_dir())


def _copy_new(folders: Iterable[Path], target: Path) -> None:
    """Copy the files of these folders that `target` lacks; a file is whole or not there."""
    for folder in folders:
        for source in sorted(folder.iterdir()):
            copy = target / folder.name / source.name
            if not source.name.startswith(".") and not copy.exists():
                write_atomic(copy, _copier(source))


def _copier(source: Path) -> Any:
    return lambda temporary: shutil.copyfile(source, temporary)
