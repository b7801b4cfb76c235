"""Doing the stages of a run: skip what is up to date, take over, continue, do, and say what happened."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from naysay.artifacts.manifest import Manifest, environment
from naysay.artifacts.run_directory import RunDirectory
from naysay.config.run import RunConfig
from naysay.config.stages import STAGES, Stage
from naysay.errors import RunDirectoryError
from naysay.pipeline import graph
from naysay.pipeline.acceptance import Request, accept_config, finish_redo, make_request, require_run
from naysay.pipeline.completion import Partial, clear_work, is_done, output_digests, relative_names, remove_stage
from naysay.pipeline.graph import Modules, execute, position
from naysay.pipeline.identity import MISSING, Digests, Identity, identify
from naysay.pipeline.preflight import check_dev, check_objective, check_settings, check_split, crowded_cores, warnings
from naysay.pipeline.reuse import open_other_run, take_over


@dataclass(frozen=True, slots=True)
class Event:
    """What happened, for whoever shows it. `seconds` and `counts` are those of the stage's manifest.

    Example: `Event("finished", "ingest", seconds=0.4, counts={"rows": {"in": 10}})`. A "note" has text and no stage
    where it concerns the run.
    """

    kind: Literal["started", "finished", "skipped", "reused", "note"]
    stage: Stage | None = None
    text: str = ""
    seconds: float = 0.0
    counts: Mapping[str, Any] = field(default_factory=dict)


OnEvent = Callable[[Event], None]
_WITH_MODEL: frozenset[Stage] = frozenset({"sample", "train", "evaluate"})


def run_stages(
    config: RunConfig,
    out: Path | str,
    stages: Sequence[str] = STAGES,
    *,
    redo: str | None = None,
    reuse: Path | str | None = None,
    on_event: OnEvent = lambda event: None,
    modules: Modules | None = None,
) -> RunDirectory:
    """Bring these stages of a run up to date. Interrupted anywhere, the same call goes on where it stopped.

    Args:
        config: the resolved config; the one saved in the run must agree with it.
        out: the run directory, new or old.
        stages: names of the stages to do; those before them must be up to date.
        redo: remove the results of this stage and of those after it first; a changed config is accepted then.
        reuse: another run; stages that it did from the same settings and content are copied.
        on_event: called for everything worth a line.
        modules: gives the module of a stage; by default that of the package.

    Raises:
        ConfigError: unknown stage, `redo` of a stage that is not asked for, or a wrong `training.trainer_args`.
        InputNotFoundError: there is no run to go on with, none to reuse, or no model that `references.*` names.
        RunDirectoryError: in use by another process, made with another config or from other content, or a stage
            before `stages` is not done. Nothing was changed then.
        NaysayError: whatever a stage raises; its partial work stays.
    """
    request = make_request(config, RunDirectory(out), stages, redo)
    other = open_other_run(Path(reuse), request.run) if reuse is not None else None
    require_run(request, other)
    session = _Session(request, other, on_event, modules or graph.stage_module)
    if not request.run.config.exists():
        session.identity(STAGES[0])  # a wrong input path is reported before a folder is made for it
    check_settings(config)
    for text in warnings(config):
        on_event(Event("note", text=text))
    with request.run.locked():
        accept_config(request, session.modules, session.check, lambda text: on_event(Event("note", text=text)))
        for stage in STAGES[: position(request.stages[-1]) + 1]:
            session.advance(stage)
            if stage == "ingest" and "evaluate" in request.stages:
                check_split(config, request.run)
            if stage == "ingest" and "train" in request.stages:
                check_objective(config, request.run)
                check_dev(config, request.run)
        finish_redo(request)
    return request.run


class _Session:
    """One call of `run_stages`, holding the lock."""

    def __init__(self, request: Request, other: RunDirectory | None, on_event: OnEvent, modules: Modules):
        self.request = request
        self.run = request.run
        self.other = other
        self.on_event = on_event
        self.modules = modules
        self.digests = Digests()
        self.looked_at_cores = False

    def identity(self, stage: Stage) -> Identity:
        return identify(stage, self.modules(stage), self.request.config, self.run, self.digests)

    def is_done(self, stage: Stage) -> bool:
        """As `completion.is_done`; a stage without manifest is not asked for its inputs, which may not exist yet."""
        return self.run.manifest_path(stage).exists() and is_done(self.run, self.identity(stage), self.digests)

    def check(self, stages: Sequence[Stage]) -> None:
        """Raise for the first stage that is stale, or that is neither done nor about to be."""
        for stage in stages:
            if not self.is_done(stage):
                if self.other is None:
                    self._require_wanted(stage)
                return

    def advance(self, stage: Stage) -> None:
        """Bring one stage up to date: skip it, take it over, or do it."""
        if self.is_done(stage):
            if stage in self.request.stages:
                manifest = self.run.manifest(stage)
                assert manifest is not None
                self.on_event(Event("skipped", stage, seconds=manifest.seconds, counts=manifest.counts))
            return
        identity = self.identity(stage)
        if self._taken_over(identity):
            return
        self._require_wanted(stage)
        manifest = self.run.manifest(stage)
        if manifest is not None:
            reason = "some of its output is missing" if manifest.key == identity.key else "what it reads has changed"
            remove_stage(self.run, stage)
            self.on_event(Event("note", stage, text=f"{reason}: it is done again"))
        self._do(identity)

    def _require_wanted(self, stage: Stage) -> None:
        if stage not in self.request.stages:
            manifest = self.run.manifest(stage)
            lost = [name for name in manifest.outputs if not (self.run.path / name).exists()] if manifest else []
            reason = f"of which {', '.join(lost[:3])} is missing" if lost else "which is not done"
            raise RunDirectoryError(
                f"{self.run.path}: stage {self.request.stages[0]} needs {stage}, {reason}; "
                f"run: naysay {stage} --out {self.run.path}"
            )

    def _taken_over(self, identity: Identity) -> bool:
        redo, other = self.request.redo, self.other
        if other is None or (redo is not None and position(identity.stage) >= position(redo)):
            return False
        manifest = take_over(self.run, other, identity, self.digests)
        if manifest is None:
            self.other = None  # what follows reads what this stage is about to write
            text = f"not taken over from {other.path}, where it was done from other settings or input, or not at all"
            self.on_event(Event("note", identity.stage, text=text))
            return False
        text = str(other.path)
        self.on_event(Event("reused", identity.stage, text=text, seconds=manifest.seconds, counts=manifest.counts))
        return True

    def _do(self, identity: Identity) -> None:
        stage, module = identity.stage, self.modules(identity.stage)
        names = relative_names(self.run, module.outputs(self.request.config, self.run))
        spent = self._spent_before(identity, names)
        Partial(identity.key, spent, names).save(self.run, stage)
        self.on_event(Event("started", stage, seconds=spent))
        self._look_at_cores(stage)
        start = time.monotonic()
        try:
            counts = execute(stage, module, self.request.config, self.run)
        except BaseException:  # Ctrl-C as well: nothing is swallowed, what was spent is noted and it goes on up
            with suppress(OSError):  # on a full disk, what the stage raised matters more than its seconds
                Partial(identity.key, spent + time.monotonic() - start, names).save(self.run, stage)
            raise
        seconds = spent + time.monotonic() - start
        # Asked again: how many shards a large model is written in is known only now.
        outputs = module.outputs(self.request.config, self.run)
        self.digests.forget(outputs)
        digests = output_digests(self.run, relative_names(self.run, outputs), self.digests)
        absent = [name for name, digest in digests.items() if digest == MISSING]
        if absent:
            raise RuntimeError(f"stage {stage} left no {', '.join(absent)}")
        Manifest(stage, identity.key, identity.settings, identity.inputs, digests, counts, seconds, environment()).save(
            self.run.manifest_path(stage)
        )
        Partial.remove(self.run, stage)
        self.on_event(Event("finished", stage, seconds=seconds, counts=counts))

    def _look_at_cores(self, stage: Stage) -> None:
        """Once, before the first stage that runs the model."""
        if stage in _WITH_MODEL and not self.looked_at_cores:
            self.looked_at_cores = True
            line = crowded_cores(self.request.config)
            if line is not None:
                self.on_event(Event("note", stage, text=line))

    def _spent_before(self, identity: Identity, outputs: Sequence[str]) -> float:
        """Seconds of earlier sessions; partial work of another key, or of unknown origin, is removed."""
        partial = Partial.load(self.run, identity.stage)
        if partial is not None and partial.key == identity.key:
            return partial.seconds
        clear_work(self.run, identity.stage, {*outputs, *(partial.outputs if partial else ())})
        if partial is not None:
            text = "partial work from other settings or input was removed"
            self.on_event(Event("note", identity.stage, text=text))
        return 0.0
