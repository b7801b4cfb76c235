"""One run of a comparison, read back from its directory; and how long the others will take."""

from collections.abc import Sequence
from pathlib import Path

from naysay.artifacts.manifest import Manifest
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, read_jsonl, read_records
from naysay.pipeline.compare_plan import RunSpec
from naysay.records import PromptEvaluation
from naysay.reporting.comparison import FinishedRun

_GROUPS = "groups.jsonl"
_OWN_STAGES = ("train", "evaluate", "report")


def read_run(spec: RunSpec, run: RunDirectory, groups_per_step: int) -> FinishedRun:
    """What the comparison needs of a finished run; prompts and curves only of those that are compared."""
    manifests = _own_manifests(run)
    counts = manifests["train"].counts
    usable = counts["groups"]["trained"] + counts["groups"].get("not_reached", 0)
    groups = groups_trained(usable, groups_per_step, counts["steps"])
    final = spec.phase == "final"
    return FinishedRun(
        name=spec.name,
        phase=spec.phase,
        objective=spec.objective,
        learning_rate=spec.learning_rate,
        seed=spec.seed,
        steps=counts["steps"],
        groups=groups,
        tokens=groups * _tokens_of_a_group(run.train / _GROUPS),
        seconds={stage: manifest.seconds for stage, manifest in manifests.items()},
        evaluation=read_json(run.evaluation),
        prompts=read_records(run.evaluation_prompts, PromptEvaluation) if final else (),
        metrics=list(read_jsonl(run.metrics)) if final else (),
        environment=manifests["train"].environment,
    )


def diverged_run(spec: RunSpec, reason: str) -> FinishedRun:
    """A run that ended with a loss that is not finite: it has no figures."""
    return FinishedRun(
        spec.name, spec.phase, spec.objective, spec.learning_rate, spec.seed, spec.steps, diverged=reason
    )


def groups_trained(groups: int, per_step: int, steps: int) -> int:
    """Groups trained on, over steps: the last step of an epoch has what is left of it.

    Example: 10 groups, 4 a step, 4 steps: 4 + 4 + 2 + 4 = 14.
    """
    steps_of_an_epoch = -(-groups // per_step)
    epochs, rest = divmod(steps, steps_of_an_epoch)
    return epochs * groups + min(rest * per_step, groups)


def seconds_left(done: Sequence[FinishedRun], todo: Sequence[RunSpec]) -> float | None:
    """Estimate from finished runs: training by the step (of the same objective if there is one), the rest by the run.

    None where nothing is finished.
    """
    measured = [run for run in done if run.seconds.get("train") and run.steps]
    if not measured:
        return None
    rest = _mean([sum(run.seconds.values()) - run.seconds["train"] for run in measured])
    total = 0.0
    for spec in todo:
        same = [run for run in measured if run.objective == spec.objective] or measured
        total += spec.steps * _mean([run.seconds["train"] / run.steps for run in same]) + rest
    return total


def _own_manifests(run: RunDirectory) -> dict[str, Manifest]:
    found = {stage: run.manifest(stage) for stage in _OWN_STAGES}
    return {stage: manifest for stage, manifest in found.items() if manifest is not None}


def _tokens_of_a_group(path: Path) -> float:
    rows = list(read_jsonl(path))
    return _mean([sum(count for name, count in row.items() if name.endswith("_tokens")) for row in rows])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
