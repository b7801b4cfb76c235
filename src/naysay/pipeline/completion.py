"""How far a stage came: done (its manifest), begun (a partial record), or neither; and how its work is removed."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from naysay.artifacts.manifest import Manifest
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import explain_storage_errors, read_json, write_json
from naysay.config.stages import STAGES, Stage
from naysay.errors import RunDirectoryError
from naysay.pipeline.graph import REMADE, work_folders
from naysay.pipeline.identity import MISSING, Digests, Identity
from naysay.pipeline.saved_config import changed_leaves, describe


@dataclass(frozen=True, slots=True)
class Partial:
    """A stage that was begun. Its partial work belongs to `key` alone; `seconds` were spent in earlier sessions.

    `outputs` are paths relative to the run directory, so that they can be removed without asking the stage.
    """

    key: str
    seconds: float
    outputs: tuple[str, ...]

    def save(self, run: RunDirectory, stage: Stage) -> None:
        write_json(_partial_path(run, stage), asdict(self))

    @classmethod
    def load(cls, run: RunDirectory, stage: Stage) -> "Partial | None":
        path = _partial_path(run, stage)
        if not path.exists():
            return None
        raw = read_json(path)
        return cls(raw["key"], raw["seconds"], tuple(raw["outputs"]))

    @staticmethod
    def remove(run: RunDirectory, stage: Stage) -> None:
        _partial_path(run, stage).unlink(missing_ok=True)


def load_manifest(run: RunDirectory, stage: Stage) -> Manifest | None:
    """Raises RunDirectoryError where the manifest is damaged or of another version of naysay."""
    try:
        return run.manifest(stage)
    except TypeError as error:
        path = run.manifest_path(stage)
        raise RunDirectoryError(
            f"{path}: not a manifest of this version of naysay ({error}); use --redo {stage}, or choose another --out"
        ) from error


def nothing_done(run: RunDirectory) -> bool:
    """True where the run has no finished stage and no partial work that took long to make."""
    finished = any(run.manifest_path(stage).exists() for stage in STAGES)
    return not finished and not any(_partial_path(run, stage).exists() for stage in STAGES[1:])


def is_done(run: RunDirectory, identity: Identity, digests: Digests) -> bool:
    """Whether the stage is up to date: same key, and its outputs as it left them.

    Not done: no manifest, a missing output, or another key of a stage that is simply made again.

    Raises:
        RunDirectoryError: it was done from something else than what is there now, or an output was changed since.
    """
    manifest = load_manifest(run, identity.stage)
    if manifest is None:
        return False
    if manifest.key != identity.key and identity.stage in REMADE:
        return False
    if manifest.key != identity.key:
        raise RunDirectoryError(_why_stale(run, identity, manifest))
    found = output_digests(run, manifest.outputs, digests)
    if MISSING in found.values():
        return False
    for name, digest in manifest.outputs.items():
        if found[name] != digest and rescore_record(run).exists() and identity.stage == "evaluate":
            raise RunDirectoryError(
                f"{run.path}: `naysay evaluate --rescore` did not finish here; run it again, with the same or other "
                "judges"
            )
        if found[name] != digest:
            raise RunDirectoryError(
                f"{run.path / name}: changed since stage {identity.stage} wrote it; put it back, "
                f"or make it anew with --redo {identity.stage}"
            )
    return True


def output_digests(run: RunDirectory, names: Iterable[str], digests: Digests) -> dict[str, str]:
    """Digests of recorded outputs as they are now."""
    return {name: digests.of(inside(run, name)) for name in names}


def inside(run: RunDirectory, name: str) -> Path:
    """Path of a recorded output; raises RunDirectoryError for a record that points outside of its run."""
    path = run.path / name
    if not path.resolve().is_relative_to(run.path.resolve()) or path.resolve() == run.path.resolve():
        raise RunDirectoryError(f"{run.path}: its records name {name!r}, which is not in it; choose another --out")
    return path


def relative_names(run: RunDirectory, paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(path.relative_to(run.path).as_posix() for path in paths)


def clear_work(run: RunDirectory, stage: Stage, outputs: Iterable[str]) -> None:
    """Remove these outputs and the stage's working folders."""
    for path in (*(inside(run, name) for name in outputs), *work_folders(stage, run)):
        with explain_storage_errors(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def remove_stage(run: RunDirectory, stage: Stage) -> bool:
    """Remove all that a stage left; returns whether there was anything.

    Killed at any point, it leaves a record under no valid key, which has the rest removed before the stage runs again.
    """
    manifest, partial = _recorded_outputs(run, stage), Partial.load(run, stage)
    if stage == "evaluate":
        rescore_record(run).unlink(missing_ok=True)
    if manifest is None and partial is None:
        return False
    names = tuple(dict.fromkeys([*(manifest or ()), *(partial.outputs if partial else ())]))
    Partial("", 0.0, names).save(run, stage)
    run.manifest_path(stage).unlink(missing_ok=True)
    clear_work(run, stage, names)
    Partial.remove(run, stage)
    return True


def _recorded_outputs(run: RunDirectory, stage: Stage) -> Mapping[str, str] | None:
    """Outputs that a manifest records, of whatever version; None where the stage is not done."""
    path = run.manifest_path(stage)
    return read_json(path)["outputs"] if path.exists() else None


def rescore_record(run: RunDirectory) -> Path:
    """Where it stands that a `--rescore` was begun; there is none once it is done."""
    return run.manifest_path("evaluate").with_suffix(".rescore.json")


def _partial_path(run: RunDirectory, stage: Stage) -> Path:
    return run.manifest_path(stage).with_suffix(".partial.json")


def _why_stale(run: RunDirectory, identity: Identity, manifest: Manifest) -> str:
    names = dict.fromkeys([*identity.inputs, *manifest.inputs])
    changed = [name for name in names if identity.inputs.get(name) != manifest.inputs.get(name)]
    if changed:
        inputs = ", ".join(_input_shown(identity, name) for name in changed)
        reason = f"was done from another content of its input {inputs}"
    elif manifest.settings != identity.settings:
        reason = f"was done with other settings ({describe(changed_leaves(manifest.settings, identity.settings))})"
    else:
        reason = "was done by another version of naysay"
    return f"{run.path}: stage {identity.stage} {reason}; {two_ways(run, identity.stage)}"


def _input_shown(identity: Identity, name: str) -> str:
    path = identity.paths.get(name)
    return f"{name!r} (not read any more)" if path is None else f"{name!r} ({path})"


def two_ways(run: RunDirectory, stage: Stage, *, command: str = "") -> str:
    """The two ways on when `stage` and those after it are no longer valid; `command` is put before `--redo`."""
    return (
        f"either start a new run that takes over what is still valid (--out NEW --reuse {run.path}), "
        f"or replace the results of {stage} and of the stages after it ({command}--redo {stage})"
    )
