"""`naysay compare`: several objectives on the same rows, anchors, references, steps and evaluation.

    DIR/compare_config.yaml        the plan; another one is refused
    DIR/shared/                    a run with ingest, sample and score, done once
    DIR/tune/OBJECTIVE/lr-RATE/    half the budget, one seed, evaluated on dev
    DIR/runs/OBJECTIVE/seed-S/     the whole budget at the chosen rate, evaluated on held-out prompts
    DIR/compare.json, compare.html

Each run is an ordinary run directory. Killed anywhere, the same call goes on: what is finished is skipped by digest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, write_json, write_text
from naysay.errors import DataError, NonFiniteLossError, RunDirectoryError
from naysay.pipeline import graph
from naysay.pipeline.compare_choice import Candidate, choose
from naysay.pipeline.compare_plan import Plan, RunSpec, check_saved_plan, every_kind_of_run, save_plan
from naysay.pipeline.compare_runs import diverged_run, read_run, seconds_left
from naysay.pipeline.compare_sharing import remove_checkpoints, sharing
from naysay.pipeline.graph import Modules
from naysay.pipeline.preflight import check_objective, check_settings, check_split
from naysay.pipeline.runner import Event, run_stages
from naysay.reporting.comparison import FinishedRun, RateChoice, Subject, assemble, render

_PLAN, _SHARED = "compare_config.yaml", "shared"
_ONCE = ("ingest", "sample", "score")


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something about one of the runs, for whoever shows it.

    `number` counts from 1 to `of`; `seconds` is the run's own work; `left` an estimate for all that remain, None where
    there is none yet. "known" = it was finished before, and did not start. "chosen" is about an objective, not a run.
    """

    kind: Literal["started", "finished", "known", "diverged", "chosen"]
    objective: str
    number: int = 0
    of: int = 0
    spec: RunSpec | None = None
    text: str = ""
    seconds: float = 0.0
    left: float | None = None


OnEvent = Callable[[Event | RunEvent], None]


class ComparisonDirectory:
    """Paths of a comparison."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.plan = self.path / _PLAN
        self.shared = RunDirectory(self.path / _SHARED)
        self.result = self.path / "compare.json"
        self.report = self.path / "compare.html"

    def run(self, spec: RunSpec) -> RunDirectory:
        return RunDirectory(self.path / spec.name)

    def diverged(self, spec: RunSpec) -> Path:
        """Where it is noted that the loss of a run was not finite."""
        return self.path / f"{spec.name}.diverged.json"


def compare(
    plan: Plan,
    out: Path | str,
    *,
    command: str = "",
    on_event: OnEvent = lambda event: None,
    modules: Modules | None = None,
) -> ComparisonDirectory:
    """Do all runs of a comparison, write compare.json and compare.html, and return where they are.

    Args:
        command: how it was asked for, for the record.
        on_event: called for everything worth a line.
        modules: gives the module of a stage; by default that of the package.

    Raises:
        ConfigError, DataError, InputNotFoundError, ModelError: some objective cannot be trained or evaluated on this
            data; said before the model is loaded.
        RunDirectoryError: the folder holds another comparison, or something else.
        NaysayError: whatever a stage raises; the same call goes on from there.
    """
    folder = ComparisonDirectory(out)
    _refuse_foreign_folder(folder)
    for spec in every_kind_of_run(plan):
        check_settings(plan.run_config(spec))
    with RunDirectory(folder.path).locked():
        session = _Session(plan, folder, on_event, modules or graph.stage_module)
        session.prepare()
        choices = {objective: session.tune(objective) for objective in plan.objectives}
        chosen = {name: choice.learning_rate for name, choice in choices.items() if choice.learning_rate is not None}
        session.todo = [spec for spec in session.todo if spec.phase == "tune" or spec.objective in chosen]
        for spec in plan.final(chosen):
            session.do(spec)
        _write(plan, folder, choices, session.done, command)
    return folder


@dataclass
class _Session:
    """One call of `compare`, holding the lock. `todo` are the runs that are left; rates of final ones are stand-ins."""

    plan: Plan
    folder: ComparisonDirectory
    on_event: OnEvent
    modules: Modules
    done: list[FinishedRun] = field(default_factory=list)
    todo: list[RunSpec] = field(default_factory=list)

    def __post_init__(self) -> None:
        some = {name: rates[0] for name, rates in self.plan.learning_rates.items()}
        self.todo = [spec for name in self.plan.objectives for spec in self.plan.tuning(name)] + self.plan.final(some)

    def prepare(self) -> None:
        """Read the rows, refuse what they cannot support, and draw and select the anchors, all once."""
        specs = list(every_kind_of_run(self.plan))
        config, shared = self.plan.run_config(specs[0]), self.folder.shared
        known = check_saved_plan(self.folder.plan, self.plan)
        # Rows that were refused may be there, read with other settings: nothing else was done with them.
        redo = "ingest" if shared.config.exists() and not known else None
        run_stages(config, shared.path, ("ingest",), redo=redo, modules=self.modules, on_event=self.on_event)
        for spec in specs:
            check_split(self.plan.run_config(spec), shared)
            check_objective(self.plan.run_config(spec), shared)
        _check_benign(shared, config.data.path)
        save_plan(self.folder.plan, self.plan)
        run_stages(config, shared.path, _ONCE, modules=self.modules, on_event=self._after_ingest)

    def _after_ingest(self, event: Event) -> None:
        if event.stage != "ingest":
            self.on_event(event)

    def tune(self, objective: str) -> RateChoice:
        """Train with every learning rate of an objective and choose one."""
        candidates = []
        for spec in self.plan.tuning(objective):
            run = self.do(spec)
            candidates.append(
                Candidate(spec.learning_rate, diverged=run.diverged)
                if run.diverged
                else Candidate.of(spec.learning_rate, run.evaluation)
            )
        choice = choose(candidates, self.plan.config.evaluation.kl_bound, self.plan.steps / self.plan.tuning_steps)
        figures = [asdict(candidate) for candidate in candidates]
        if choice is None:
            self.on_event(RunEvent("chosen", objective, text="none: the loss was not finite with any"))
            return RateChoice(None, "every run diverged", False, figures)
        self.on_event(RunEvent("chosen", objective, text=f"{choice.learning_rate:g}: {choice.reason}"))
        return RateChoice(choice.learning_rate, choice.reason, choice.at_edge, figures)

    def do(self, spec: RunSpec) -> FinishedRun:
        """Bring one run up to date; the same steps again find it finished."""
        number, of = len(self.done) + 1, len(self.done) + len(self.todo)
        begun = RunEvent("started", spec.objective, number, of, spec, left=seconds_left(self.done, self.todo))
        run, known = self._finish(spec, begun)
        self.done.append(run)
        del self.todo[0]
        kind = "diverged" if run.diverged else "known" if known else "finished"
        text = run.diverged or _figures(run)
        seconds = sum(run.seconds.values())
        left = seconds_left(self.done, self.todo)
        self.on_event(RunEvent(kind, spec.objective, number, of, spec, text, seconds, left))
        return run

    def _finish(self, spec: RunSpec, begun: RunEvent) -> tuple[FinishedRun, bool]:
        """The run, and whether it was finished before; where it was not, `begun` is told."""
        run, marker, shared = self.folder.run(spec), self.folder.diverged(spec), self.folder.shared
        if marker.exists():
            return diverged_run(spec, read_json(marker)["reason"]), True
        working: list[str] = []

        def watch(event: Event) -> None:
            if event.kind == "started" and not working:
                self.on_event(begun)
            if event.kind == "started":
                working.append(str(event.stage))

        try:
            run_stages(
                self.plan.run_config(spec),
                run.path,
                reuse=shared.path,
                on_event=watch,
                modules=sharing(self.modules, shared),
            )
        except NonFiniteLossError as error:
            write_json(marker, {"reason": str(error)})
            return diverged_run(spec, str(error)), False
        remove_checkpoints(run)
        return read_run(spec, run, self.plan.config.training.groups_per_step), not working


def _write(
    plan: Plan,
    folder: ComparisonDirectory,
    choices: Mapping[str, RateChoice],
    runs: Sequence[FinishedRun],
    command: str,
) -> None:
    subject = Subject(plan.values(), plan.reference, command, metadata.version("naysay"))
    comparison = assemble(subject, choices, runs)
    write_json(folder.result, comparison)
    final = [run for run in runs if run.phase == "final" and not run.diverged]
    histories = {name: [run.metrics for run in final if run.objective == name] for name in plan.objectives}
    write_text(folder.report, render(comparison, histories))


def _check_benign(shared: RunDirectory, path: str) -> None:
    manifest = shared.manifest("ingest")
    if manifest is not None and manifest.counts.get("prompts", {}).get("benign") == 0:
        raise DataError(
            f"{path}: there are no benign prompts, on which the KL to base is measured; give a file with data.benign, "
            "or raise data.limit.benign"
        )


def _refuse_foreign_folder(folder: ComparisonDirectory) -> None:
    path = folder.path
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"{path}: expected a folder, found a file; choose another --out")
    if not path.is_dir() or folder.plan.exists():
        return
    foreign = sorted(item.name for item in path.iterdir() if not item.name.startswith(".") and item.name != _SHARED)
    if foreign:
        raise RunDirectoryError(
            f"{path}: expected a new or empty folder or a comparison, found {foreign[0]!r} and no {_PLAN}; "
            "choose another --out"
        )


def _figures(run: FinishedRun) -> str:
    """The figures that a learning rate is chosen by, in a few words."""
    heldout, kl = run.evaluation["heldout"], run.evaluation["kl"]
    shown = [
        f"{name} {heldout[name]['value']:+.3f}"
        for name in ("separation", "margin")
        if heldout[name]["value"] is not None
    ]
    both = [kl[direction]["value"] for direction in ("base_to_tuned", "tuned_to_base")]
    if None not in both:
        shown.append(f"KL {both[0]:.3f} / {both[1]:.3f}")
    return ", ".join(shown)
