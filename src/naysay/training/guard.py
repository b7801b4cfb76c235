"""The collapse guard: a fixed probe, measured every few steps, stops training while the last good weights are kept."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from naysay.artifacts.store import read_json, write_directory_atomic, write_json
from naysay.config.guard import GuardConfig
from naysay.errors import ModelError, NonFiniteLossError, RunDirectoryError

STEP_FILE = "guard_step.json"
"""Beside the last good weights: the step that they are of."""


@dataclass(frozen=True, slots=True)
class ProbeState:
    """What the guard looks at. Nats are per token; shares are of the probe's answers; `length` is a mean in tokens.

    Example: `ProbeState(anchor_logp=-1.2, entropy=1.1, degenerate=0.0, refusal=0.25, length=40.5)`.
    """

    anchor_logp: float
    entropy: float
    degenerate: float
    refusal: float
    length: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Why training was stopped: the bound (a key of `guard.*`, or `finite_loss`), at which step, in words, and the step
    whose weights were kept (0 = before the first)."""

    bound: str
    step: int
    reason: str
    kept_step: int


def broken_bound(before: ProbeState, now: ProbeState, config: GuardConfig) -> tuple[str, str] | None:
    """(key of the bound, what was measured) of the first bound that does not hold, None where all hold.

    What is not a number holds no bound.
    """
    fall = before.anchor_logp - now.anchor_logp
    if not fall <= config.max_anchor_fall:
        return "max_anchor_fall", (
            f"anchors fell by {fall:.2f} nats/token (from {before.anchor_logp:.2f} to {now.anchor_logp:.2f}), above "
            f"{config.max_anchor_fall:g}"
        )
    if reason := _out_of_range("the entropy of the next token", before.entropy, now.entropy, config.entropy_range):
        return "entropy_range", reason
    for kind, bound in (("degenerate", config.max_degenerate_rise), ("refusal", config.max_refusal_rise)):
        was, is_now = getattr(before, kind), getattr(now, kind)
        if not is_now - was <= bound:
            return f"max_{kind}_rise", (
                f"{kind} answers went from {100 * was:.0f} to {100 * is_now:.0f} % of the probe, a rise above "
                f"{100 * bound:g} points"
            )
    if reason := _out_of_range("the mean length of answers", before.length, now.length, config.length_range):
        return "length_range", reason
    return None


def _out_of_range(name: str, before: float, now: float, allowed: tuple[float, float]) -> str:
    low, high = allowed
    if low * before <= now <= high * before:
        return ""
    return f"{name} went from {before:.3g} to {now:.3g}, outside {low:g} to {high:g} times what it was"


class GoodWeights:
    """The weights of the last check that held, with the step that they are of: a resumed training may have forgotten
    the check, and the weights are then still its own.

    Args:
        folder: holds them; absent until the first check.
        save: writes the weights as they are now into a folder.
    """

    def __init__(self, folder: Path, save: Callable[[Path], None]):
        self._folder, self._save = folder, save

    @property
    def step(self) -> int:
        """0 = before the first.

        Raises:
            RunDirectoryError: the weights are not there.
        """
        path = self._folder / STEP_FILE
        if not path.exists():
            raise RunDirectoryError(
                f"{path}: expected the weights of the guard's last good check and their step, found none; train anew "
                "with --redo train"
            )
        return read_json(path)["step"]

    def keep(self, step: int) -> None:
        def write(temporary: Path) -> None:
            self._save(temporary)
            write_json(temporary / STEP_FILE, {"step": step})

        write_directory_atomic(self._folder, write)


class CollapseGuard(TrainerCallback):
    """Measures the probe before step 1 and every `every` steps; stops the training where a bound is broken.

    Args:
        measure: the state of the policy as it is now.
        weights: where the last good ones are kept.
        config: bounds.
        log: a JSON file with every check and, at the end, the stop; a resumed run goes on with it.
    """

    def __init__(self, measure: Callable[[], ProbeState], weights: GoodWeights, config: GuardConfig, log: Path):
        self._measure, self._weights, self._config, self._log = measure, weights, config, log
        self._checks: list[dict[str, Any]] = read_json(log)["checks"] if log.exists() else []
        self.stop: Stop | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._checks = [check for check in self._checks if check["step"] <= state.global_step]
        if self._checks:
            return
        before = self._measure()
        if not all(map(math.isfinite, asdict(before).values())):
            raise ModelError(
                f"step {state.global_step}: the probe of the model before training is not finite ({before}): its "
                "weights or its dtype are broken; use model.dtype float32 or another model"
            )
        self._passed(state.global_step, before)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._config.every and state.global_step < state.max_steps:
            return
        before = ProbeState(**{name: self._checks[0][name] for name in ProbeState.__slots__})
        now = self._measure()
        broken = broken_bound(before, now, self._config)
        if broken is None:
            self._passed(state.global_step, now)
            return
        self._stopped(*broken, step=state.global_step, now=asdict(now))
        control.should_training_stop = True

    def not_finite(self, error: NonFiniteLossError, step: int) -> None:
        """The loss of the step after `step` was not finite: stop here as at a broken bound."""
        self._stopped("finite_loss", str(error), step=step, now=None)

    def _passed(self, step: int, now: ProbeState) -> None:
        self._weights.keep(step)
        self._checks.append({"step": step, **asdict(now)})
        self._write()

    def _stopped(self, bound: str, reason: str, *, step: int, now: dict[str, float] | None) -> None:
        self.stop = Stop(bound, step, reason, kept_step=self._weights.step)
        self._write(over=None if now is None else {"step": step, **_finite(now)})

    def _write(self, over: dict[str, Any] | None = None) -> None:
        write_json(
            self._log,
            {
                "bounds": self._config.model_dump(mode="json"),
                "checks": self._checks,
                **({} if over is None else {"over": over}),
                "stop": None if self.stop is None else asdict(self.stop),
            },
        )


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
