"""Whether a run directory may be worked on with the config that is asked for, and from which stage it starts anew."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from naysay.artifacts.digests import digest_json
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, write_json
from naysay.config.run import RunConfig
from naysay.config.stages import STAGES, Stage
from naysay.errors import ConfigError, InputNotFoundError, RunDirectoryError
from naysay.pipeline.completion import nothing_done, remove_stage, two_ways
from naysay.pipeline.graph import Modules, parse_stage, position
from naysay.pipeline.saved_config import (
    Change,
    config_values,
    describe,
    differences,
    load_saved_config,
    save_config,
)

_REDO_RECORD = ".redo.json"


@dataclass(frozen=True, slots=True)
class Request:
    """What a command asks of a run: its stages in order, and the stage from which it is to be done anew."""

    config: RunConfig
    run: RunDirectory
    stages: tuple[Stage, ...]
    redo: Stage | None


@dataclass(frozen=True, slots=True)
class _Redo:
    """An unfinished `--redo`: the same command continues it instead of starting over."""

    stage: Stage
    until: Stage
    config: str


def make_request(config: RunConfig, run: RunDirectory, stages: Sequence[str], redo: str | None) -> Request:
    """Check what needs no look at the config of the run.

    Raises:
        ConfigError: unknown stage, or `--redo` of a stage that the command does not run.
        InputNotFoundError: later stages are asked of a run that does not exist.
        RunDirectoryError: the folder holds something that is not a run.
    """
    asked = {parse_stage(name, "stage") for name in stages}
    ordered: tuple[Stage, ...] = tuple(stage for stage in STAGES if stage in asked)
    again = parse_stage(redo, "--redo") if redo is not None else None
    if again is not None and again not in ordered:
        raise ConfigError(
            f"--redo {again}: this command runs only {', '.join(ordered)}; "
            f"run: naysay {again} --out {run.path} --redo {again}"
        )
    _refuse_foreign_folder(run)
    return Request(config, run, ordered, again)


def require_run(request: Request, reuse: object) -> None:
    """Raises InputNotFoundError where the command starts after the first stage and there is nothing to start from."""
    if not request.run.config.exists() and reuse is None and request.stages[0] != STAGES[0]:
        raise InputNotFoundError(
            f"{request.run.path}: expected the directory of a run, found none; "
            f"start it with: naysay {STAGES[0]} --out {request.run.path}"
        )


def accept_config(
    request: Request, modules: Modules, check: Callable[[Sequence[Stage]], None], note: Callable[[str], None]
) -> None:
    """Save the config of a new run; compare that of an old one; remove what `--redo` replaces.

    Args:
        check: raises RunDirectoryError where one of these stages was done from something else than what is there.
        note: told of everything that happens here, one line each.

    Raises:
        RunDirectoryError: the run has another config, or `--redo` does not reach back far enough.
    """
    run, config = request.run, request.config
    saved = load_saved_config(run)
    changes = differences(saved, config) if saved is not None else []
    if saved is not None and changes and not nothing_done(run):
        first = _first_changed_stage(saved, config, modules)
        if first is None:
            note(f"{describe(changes)}: changes no stage's result, taken into {run.config}")
        elif request.redo is None or position(request.redo) > position(first):
            raise RunDirectoryError(_refusal(request, changes, first))
    end = position(request.stages[-1]) + 1 if request.redo is None else position(request.redo)
    check(STAGES[:end])  # before anything is changed on disk
    if saved is None:
        save_config(config, run)
    if request.redo is not None:
        _begin_redo(request, note)
    if changes:
        save_config(config, run)


def finish_redo(request: Request) -> None:
    """Forget an unfinished `--redo` once the stages that it was asked for are done."""
    redo = _load_redo(request.run)
    if redo is not None and position(request.stages[-1]) >= position(redo.until):
        (request.run.path / _REDO_RECORD).unlink()


def _begin_redo(request: Request, note: Callable[[str], None]) -> None:
    assert request.redo is not None
    record = _Redo(request.redo, request.stages[-1], digest_json(config_values(request.config)))
    if _load_redo(request.run) == record:
        note(f"continuing the interrupted --redo {request.redo}")
        return
    removed = [stage for stage in reversed(STAGES[position(request.redo) :]) if remove_stage(request.run, stage)]
    if removed:
        note(f"removed the results of {', '.join(reversed(removed))}")
    write_json(request.run.path / _REDO_RECORD, record)


def _load_redo(run: RunDirectory) -> _Redo | None:
    path = run.path / _REDO_RECORD
    return _Redo(**read_json(path)) if path.exists() else None


def _first_changed_stage(old: RunConfig, new: RunConfig, modules: Modules) -> Stage | None:
    for stage in STAGES:
        module = modules(stage)
        if digest_json(module.settings(old)) != digest_json(module.settings(new)):
            return stage
    return None


def _refusal(request: Request, changes: Sequence[Change], first: Stage) -> str:
    command = "" if first in request.stages else f"naysay align --out {request.run.path} with these settings and "
    ways = two_ways(request.run, first, command=command)
    if request.redo is not None:
        return f"--redo {request.redo}: {describe(changes)} changes stage {first} already; {ways}"
    if all(change.key == "judges" for change in changes):
        ways += f"; naysay evaluate --out {request.run.path} --rescore with these judges keeps the answers"
    return f"{request.run.path}: this run has another config ({describe(changes)}); {ways}"


def _refuse_foreign_folder(run: RunDirectory) -> None:
    if run.path.exists() and not run.path.is_dir():
        raise RunDirectoryError(f"{run.path}: expected a folder, found a file; choose another --out")
    if not run.path.is_dir() or run.config.exists():
        return
    # What a run leaves that was killed before its config was written.
    foreign = sorted(item.name for item in run.path.iterdir() if not item.name.startswith((".lock", ".config.yaml.")))
    if foreign:
        raise RunDirectoryError(
            f"{run.path}: expected a new or empty folder or a run, found {foreign[0]!r} and no config.yaml; "
            "choose another --out"
        )
