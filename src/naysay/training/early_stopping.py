"""Early stopping: dev prompts are scored every few steps, and the weights of the best check are the result.

The objective has no finite minimiser: the margin can grow for ever, and the model drifts as it does. So a training ends
where dev prompts stop to gain, or where the policy has moved too far on them.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from naysay.artifacts.store import read_json, write_directory_atomic, write_json
from naysay.config.training import EarlyStoppingSettings
from naysay.errors import RunDirectoryError
from naysay.training.dev import DevState

MIN_PROMPTS = 8
"""Prompts with an acceptable answer under which the separation is too noisy to choose by."""

Criterion = Literal["separation", "loss"]
Check = Mapping[str, Any]
"""`step`, and the fields of a `DevState`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the checks say: the step of the best one, and why training ends at the last one (empty = it goes on).

    Example: `Finding("separation", 10, "dev separation had not improved since step 10")`.
    """

    criterion: Criterion
    best_step: int
    reason: str = ""


def find_best(checks: Sequence[Check], settings: EarlyStoppingSettings) -> Finding:
    """The best check whose KL is within the bound, and whether the last check ends the training.

    It does where its KL is above `max_kl`, or where none of the last `patience` checks was an improvement. What is not
    a number is neither an improvement nor within the bound.
    """
    criterion: Criterion = "separation" if checks[0]["separation_prompts"] >= MIN_PROMPTS else "loss"
    sign = 1.0 if criterion == "separation" else -1.0
    best, since = checks[0], 0
    for check in checks[1:]:
        if not check["kl"] <= settings.max_kl:
            return Finding(
                criterion,
                best["step"],
                f"KL on dev anchors was {check['kl']:.3f} nats/token, above {settings.max_kl:g}",
            )
        gain = sign * (check[criterion] - best[criterion])
        if gain > settings.min_improvement * abs(best[criterion]):
            best, since = check, 0
        else:
            since += 1
    ended = since >= settings.patience
    reason = f"dev {criterion} had not improved since step {best['step']}" if ended else ""
    return Finding(criterion, best["step"], reason)


class BestWeights:
    """The weights of the best check so far, and of the best one as the last checkpoint was written: a training that is
    killed goes on from there.

    Args:
        folder: holds one folder `best-STEP` for each.
        save: writes the weights as they are now.
        writes: False for ranks that leave the files to another.
    """

    def __init__(self, folder: Path, save: Callable[[Path], None], *, writes: bool = True):
        self._folder, self._save, self._writes = folder, save, writes
        self._at_checkpoint: int | None = None

    def path(self, step: int) -> Path:
        return self._folder / f"best-{step}"

    def keep(self, step: int) -> None:
        if self._writes:
            write_directory_atomic(self.path(step), self._save)
            self._remove_all_but({step, self._at_checkpoint})

    def pin(self, step: int) -> None:
        """A checkpoint was written, or is gone on from, while `step` was the best.

        Raises:
            RunDirectoryError: its weights are not there.
        """
        if self._writes and not self.path(step).is_dir():
            raise RunDirectoryError(
                f"{self.path(step)}: expected the weights of the best check on dev prompts, found none; train anew "
                "with --redo train"
            )
        self._at_checkpoint = step
        if self._writes:
            self._remove_all_but({step})

    def _remove_all_but(self, steps: set[int | None]) -> None:
        for path in self._folder.glob("best-*"):
            if path not in {self.path(step) for step in steps if step is not None}:
                shutil.rmtree(path)


class EarlyStopping(TrainerCallback):
    """Scores dev prompts before step 1, every `every` steps and at the last one; keeps the best weights and stops.

    Args:
        measure: the state of the policy as it is now; the same on all ranks.
        weights: where the weights of the best check are kept.
        settings: the rule.
        log: a JSON file with every check; a resumed run goes on with it.
        writes: False for ranks that leave the file to another.
    """

    def __init__(
        self,
        measure: Callable[[], DevState],
        weights: BestWeights,
        settings: EarlyStoppingSettings,
        log: Path,
        *,
        writes: bool = True,
    ):
        self._measure, self._weights, self._settings, self._log, self._writes = measure, weights, settings, log, writes
        self._checks: list[Check] = []

    @property
    def finding(self) -> Finding:
        """What the checks so far say."""
        return find_best(self._checks, self._settings)

    @property
    def best(self) -> Path:
        """The weights of the best check."""
        return self._weights.path(self.finding.best_step)

    @property
    def result(self) -> dict[str, Any]:
        """For the counts of the run: the criterion, the step whose weights are the result, the last step that was
        looked at, how often, whether that ended the training, and all of it in words."""
        finding, step = self.finding, self._checks[-1]["step"]
        ended = f"stopped early at step {step}: {finding.reason}" if finding.reason else "not stopped early"
        untrained = " (untrained: dev prompts gained nothing)" if finding.best_step == 0 else ""
        return {
            "criterion": finding.criterion,
            "best_step": finding.best_step,
            "last_step": step,
            "checks": len(self._checks),
            "stopped": bool(finding.reason),
            "said": f"{ended}; the weights are those of step {finding.best_step}{untrained}, the best by dev "
            f"{finding.criterion}",
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checks = read_json(self._log)["checks"] if state.global_step and self._log.exists() else []
        self._checks = [check for check in checks if check["step"] <= state.global_step]
        if self._checks:
            self._weights.pin(self.finding.best_step)
        else:
            self._check(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._settings.every and state.global_step < state.max_steps:
            return
        self._check(state.global_step)
        if self.finding.reason:
            control.should_training_stop = True
            # From a checkpoint of this step a resumed training would take one more.
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._weights.pin(self.finding.best_step)

    def _check(self, step: int) -> None:
        self._checks.append({"step": step, **asdict(self._measure())})
        if self.finding.best_step == step:
            self._weights.keep(step)
        if self._writes:
            finding = {"settings": self._settings.model_dump(mode="json"), **asdict(self.finding)}
            write_json(self._log, {**finding, "checks": self._checks})
