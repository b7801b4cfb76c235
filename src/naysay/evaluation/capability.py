"""Capability before and after: the tasks of lm-eval on the base and on the tuned policy, and the paired change.

lm-eval scores each policy by itself; what the change rests on are its scores of single questions (`log_samples`).
"""

import difflib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from naysay.errors import ConfigError, InputNotFoundError, missing_extra
from naysay.modeling.adapters import BaseAndTuned
from naysay.modeling.digests import policy_digest
from naysay.modeling.progress import bars_on_terminal_only
from naysay.statistics.estimate import Estimate
from naysay.statistics.paired import bootstrap_mean, paired_proportion_change

if TYPE_CHECKING:
    from lm_eval.api.task import Task  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks.manager import TaskDict  # pyright: ignore[reportMissingImports]

DEFAULT_FEWSHOT_SEED = 1234
"""That of lm-eval's own command."""
_STDERR = "_stderr"
_SAME = 1e-6
"""Relative difference up to which a reported score is the mean of its questions' scores."""

Results = Mapping[str, Any]
"""What `lm_eval.evaluate` returns."""


@dataclass(frozen=True, slots=True)
class CapabilitySettings:
    """What lm-eval is asked to do.

    Args:
        tasks: names of tasks, groups or tags (`*` is a wildcard), or task files (.yaml).
        tasks_dir: a folder with task files of the user's own, whose names are then known.
        limit: only the first questions of each task; None = all.
        num_fewshot: worked examples before each question; None = as the task says.
        apply_chat_template: put each question into the model's chat template.
        batch_size: rows of one forward.
    """

    tasks: tuple[str, ...]
    tasks_dir: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    batch_size: int = 8


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task (or group of tasks) before and after.

    `base_stderr` and `tuned_stderr` are lm-eval's; None where it has none. `change` is tuned minus base over the same
    questions, None where the metric is no mean over questions (perplexities, corpus scores). Example:
        TaskScore("arc_easy", "acc", "none", False, True, 0.61, 0.02, 0.60, 0.02, Estimate(-0.01, -0.03, 0.01, 500))
    """

    task: str
    metric: str
    filter: str
    group: bool
    higher_is_better: bool | None
    base: float
    base_stderr: float | None
    tuned: float
    tuned_stderr: float | None
    change: Estimate | None


class Tasks:
    """The tasks that were asked for, found and read before any model is loaded.

    Raises:
        ConfigError: lm-eval is not installed, a task is unknown, or its data cannot be read.
        InputNotFoundError: there is no folder `tasks_dir`.
    """

    def __init__(self, settings: CapabilitySettings):
        _require_lm_eval()
        folder = settings.tasks_dir
        if folder is not None and not folder.is_dir():
            raise InputNotFoundError(
                f"--tasks-dir {folder}: expected a folder with task files (.yaml), found none there"
            )
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.settings = settings
        manager = TaskManager(include_path=None if folder is None else str(folder))
        names = dict.fromkeys(name for asked in settings.tasks for name in _matching(asked, manager))
        with bars_on_terminal_only():
            self.found = _read(list(names), manager)
        for task in self.found["tasks"].values():
            _prepare(task, settings.num_fewshot)

    def run(self, model: Any, tokenizer: Any) -> Results:
        """lm-eval's results for one policy."""
        from lm_eval import evaluate  # pyright: ignore[reportMissingImports]
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

        settings = self.settings
        try:
            with bars_on_terminal_only():
                results = evaluate(
                    HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size),
                    self.found,
                    limit=settings.limit,
                    apply_chat_template=settings.apply_chat_template,
                    fewshot_as_multiturn=settings.apply_chat_template,
                )
        except ValueError as error:  # unsafe or multimodal tasks, a request that does not fit into the context, ...
            raise ConfigError(f"--tasks {','.join(settings.tasks)}: lm-eval says: {_line(error)}") from error
        assert results is not None  # None on other ranks than the first
        return results


def measure(
    tasks: Tasks, policies: BaseAndTuned, tokenizer: Any, *, bootstrap_samples: int, seed: int
) -> dict[str, Any]:
    """The content of capability.json: how it was measured, on which weights, and the scores."""
    digests, results = {}, {}
    for name, opened in (("base", policies.base), ("tuned", policies.tuned)):
        with opened() as model:
            digests[f"{name}_digest"] = policy_digest(model, tokenizer)
            results[name] = tasks.run(model, tokenizer)
    scores = compare_results(results["base"], results["tuned"], bootstrap_samples=bootstrap_samples, seed=seed)
    settings = asdict(tasks.settings) | {"tasks_dir": tasks.settings.tasks_dir and str(tasks.settings.tasks_dir)}
    return {
        "policy": digests,
        "settings": settings,
        "lm_eval": metadata.version("lm_eval"),
        "versions": dict(results["tuned"]["versions"]),
        "scores": [asdict(score) for score in scores],
    }


def compare_results(base: Results, tuned: Results, *, bootstrap_samples: int = 2000, seed: int = 0) -> list[TaskScore]:
    """Every metric of two results on the same tasks, groups before their tasks.

    The change is paired by question: Newcombe's interval where every question scores 0 or 1, else a bootstrap of the
    mean difference over questions. The change of a group is over all questions of its tasks.
    """
    found = []
    groups = base.get("groups", {})
    names = [*groups, *(name for name in base["results"] if name not in groups)]
    for name in names:
        before, after = (side["groups"][name] if name in groups else side["results"][name] for side in (base, tuned))
        for key, value in before.items():
            metric, comma, filter_ = key.partition(",")
            if not comma or metric.endswith(_STDERR) or not _is_number(value):
                continue
            leaves = _leaves(name, base.get("group_subtasks", {}))
            pairs = _pairs(base, tuned, leaves, metric, filter_)
            found.append(
                TaskScore(
                    task=name,
                    metric=metric,
                    filter=filter_,
                    group=name in groups,
                    higher_is_better=base.get("higher_is_better", {}).get(name, {}).get(metric),
                    base=float(value),
                    base_stderr=_number(before.get(f"{metric}{_STDERR},{filter_}")),
                    tuned=float(after[key]),
                    tuned_stderr=_number(after.get(f"{metric}{_STDERR},{filter_}")),
                    change=_change(pairs, float(value), float(after[key]), bootstrap_samples, seed),
                )
            )
    return found


def _change(
    pairs: Sequence[tuple[float, float]] | None, base: float, tuned: float, samples: int, seed: int
) -> Estimate | None:
    if not pairs:
        return None
    before, after = (np.array(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    if not (np.isclose(before.mean(), base, rtol=_SAME) and np.isclose(after.mean(), tuned, rtol=_SAME)):
        return None  # the score is something else than this mean, so its change is too
    if set(before) | set(after) <= {0.0, 1.0}:
        return paired_proportion_change(list(before == 1.0), list(after == 1.0))
    return bootstrap_mean(after - before, samples=samples, seed=seed)


def _pairs(
    base: Results, tuned: Results, tasks: Sequence[str], metric: str, filter_: str
) -> list[tuple[float, float]] | None:
    """(before, after) of each question; None where a question has no number for this metric."""
    before, after = (_by_question(side, tasks, metric, filter_) for side in (base, tuned))
    if before is None or after is None or before.keys() != after.keys():
        return None
    return [(value, after[question]) for question, value in before.items()]


def _by_question(
    results: Results, tasks: Sequence[str], metric: str, filter_: str
) -> dict[tuple[str, int], float] | None:
    values: dict[tuple[str, int], float] = {}
    for task in tasks:
        for sample in results["samples"].get(task, ()):
            if sample["filter"] != filter_:
                continue
            value = sample.get(metric)
            if not _is_number(value):
                return None
            values[task, sample["doc_id"]] = float(value)
    return values


def _leaves(name: str, subtasks: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks of a group and of the groups in it, each once; a task is its own."""
    if name not in subtasks:
        return [name]
    return list(dict.fromkeys(leaf for child in subtasks[name] for leaf in _leaves(child, subtasks)))


def _matching(asked: str, manager: "TaskManager") -> list[str]:
    if asked.endswith((".yaml", ".yml")):
        if not Path(asked).is_file():
            raise InputNotFoundError(f"--tasks {asked}: no such file")
        return [asked]
    names = list(manager.match_tasks([asked]))
    if not names:
        near = difflib.get_close_matches(asked, manager.all_tasks, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "lm-eval ls tasks lists them; --tasks-dir adds your own"
        raise ConfigError(f"--tasks {asked}: lm-eval knows no such task; {hint}")
    return names


def _read(names: Sequence[str], manager: "TaskManager") -> "TaskDict":
    from yaml import YAMLError

    try:
        return manager.load(list(names))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError, YAMLError) as error:
        raise ConfigError(
            f"--tasks {','.join(names)}: the questions cannot be read: {_line(error)}; pass --online to download what "
            "they need, or give a task with local files (docs/evals.md)"
        ) from error


def _prepare(task: "Task", num_fewshot: int | None) -> None:
    """As `lm_eval.simple_evaluate` does, which also asks git and the machine for what is not ours to keep."""
    own = task.get_config("num_fewshot")
    if num_fewshot is not None and own != 0:  # a task that says 0 can have none
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=DEFAULT_FEWSHOT_SEED)


def _require_lm_eval() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(f"naysay capability needs the package lm-eval; {missing_extra('capability')}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating | np.bool_) and bool(np.isfinite(value))


def _number(value: Any) -> float | None:
    """lm-eval writes `N/A` where it has no standard error."""
    return float(value) if _is_number(value) else None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
