"""What a comparison is: objectives, budget, seeds, learning rates, and the settings that all its runs share."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from naysay.artifacts.store import write_text
from naysay.config.judging import verdict_settings
from naysay.config.load import parse_config
from naysay.config.objectives import D2O, OBJECTIVES
from naysay.config.run import RunConfig
from naysay.config.training import TrainingSettings
from naysay.errors import ConfigError, RunDirectoryError
from naysay.pipeline.saved_config import changed_leaves, config_values, describe

Phase = Literal["tune", "final"]
RATES = 3
"""Learning rates that each objective may choose from, unless they are given."""

BASE_RATES: tuple[tuple[float, tuple[str, ...], str], ...] = (
    (
        2e-4,
        ("d2o", "altpo", "dpo_self", "dpo", "ipo", "slic", "simpo", "sft_chosen"),
        "anchors or chosen answers pull back, so the usual rate of LoRA holds",
    ),
    (
        1e-4,
        ("npo", "simnpo", "kto_negative", "bco_negative", "ulma_negative", "pmpo_negative"),
        "the push fades (or a KL holds it), but nothing is pulled up: half the usual rate",
    ),
    (
        3e-5,
        ("ga", "llmu", "unlikelihood"),
        "the push does not fade, and under Adam its length is that of the rate: a drift that grows with every step",
    ),
)
"""(middle of the grid, objectives, why). Our choice: the grid is base / 3, base, base x 3, and dev decides."""

SET_HERE = {
    "training.objective": "--objectives decides",
    "training.learning_rate": "--learning-rates decides",
    "training.max_steps": "--budget decides",
    "training.epochs": "--budget decides",
    "training.seed": "--seeds decides",
    "training.early_stopping": "every objective is trained to its budget",
    "evaluation.split": "rates are chosen on dev, the table is of heldout",
}
"""Settings that a comparison decides itself, and how."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run of a comparison: half the budget on dev to choose a rate, or the whole one on held-out prompts."""

    phase: Phase
    objective: str
    learning_rate: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Its folder below the comparison's, e.g. `tune/npo/lr-0.0001` or `runs/npo/seed-1`."""
        if self.phase == "tune":
            return f"tune/{self.objective}/lr-{self.learning_rate:g}"
        return f"runs/{self.objective}/seed-{self.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole comparison. `config` holds what all runs share; `learning_rates` gives the grid of each objective.

    `budget` counts prompt groups trained on, over steps: a group that is trained on twice counts twice.
    """

    config: RunConfig
    objectives: tuple[str, ...]
    budget: int
    seeds: int
    learning_rates: Mapping[str, tuple[float, ...]]

    @property
    def reference(self) -> str:
        """What the others are compared with: D²O, or the first objective where it is not among them."""
        return D2O if D2O in self.objectives else self.objectives[0]

    @property
    def steps(self) -> int:
        """Optimizer steps of a final run; a budget that does not divide is rounded up."""
        return math.ceil(self.budget / self.config.training.groups_per_step)

    @property
    def tuning_steps(self) -> int:
        """Optimizer steps of a run that chooses a learning rate: half the budget, rounded up."""
        return math.ceil(self.steps / 2)

    @property
    def runs(self) -> int:
        return sum(map(len, self.learning_rates.values())) + len(self.objectives) * self.seeds

    def tuning(self, objective: str) -> list[RunSpec]:
        return [RunSpec("tune", objective, rate, 0, self.tuning_steps) for rate in self.learning_rates[objective]]

    def final(self, chosen: Mapping[str, float]) -> list[RunSpec]:
        """Seed by seed, so that a comparison that is stopped early has as much of each objective."""
        return [
            RunSpec("final", objective, chosen[objective], seed, self.steps)
            for seed in range(self.seeds)
            for objective in self.objectives
            if objective in chosen
        ]

    def run_config(self, spec: RunSpec) -> RunConfig:
        """The config of one run: the shared settings, and what the run is about."""
        raw = _shared_values(self.config)
        raw["training"] |= {
            "objective": spec.objective,
            "learning_rate": spec.learning_rate,
            "max_steps": spec.steps,
            "seed": spec.seed,
        }
        raw["evaluation"]["split"] = "dev" if spec.phase == "tune" else "heldout"
        if spec.phase == "tune":
            raw["judges"] = []  # a learning rate is chosen without them, and they may cost money
        # Every objective is trained to its budget; what it did to the model is measured.
        raw["guard"] = {"enabled": False}
        raw["training"]["early_stopping"] = {"enabled": False}
        return parse_config(raw, origin=f"objective {spec.objective}")

    def values(self) -> dict[str, Any]:
        """The plan as it is saved and compared: every setting that decides a number of the comparison."""
        return {
            "objectives": list(self.objectives),
            "budget": self.budget,
            "seeds": self.seeds,
            "learning_rates": {name: list(rates) for name, rates in self.learning_rates.items()},
            **_shared_values(self.config),
            "judges": [verdict_settings(judge) for judge in self.config.judges],
        }


def make_plan(
    config: RunConfig,
    *,
    objectives: Sequence[str],
    budget: int,
    seeds: int,
    learning_rates: Sequence[float] | None = None,
) -> Plan:
    """Check what a comparison is asked for.

    Args:
        config: settings of `naysay align`; those of `SET_HERE` are not read.
        learning_rates: a grid for every objective; None = `default_rates` of each.

    Raises:
        ConfigError: an unknown or repeated objective, an impossible number, a setting that only one objective reads,
            or nothing that the KL could be measured on.
    """
    names = tuple(_objective(name) for name in objectives)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"--objectives {','.join(objectives)}: expected at least two, each once; e.g. d2o,npo")
    for option, value in (("--budget", budget), ("--seeds", seeds)):
        if value < 1:
            raise ConfigError(f"{option} {value}: expected at least 1")
    rates = tuple(sorted(learning_rates)) if learning_rates is not None else None
    if rates is not None and not _usable_rates(rates):
        given = ",".join(f"{rate:g}" for rate in learning_rates or ())
        raise ConfigError(f"--learning-rates {given}: expected different numbers above 0, e.g. 3e-5,1e-4,3e-4")
    if config.evaluation.benign_generations == 0:
        raise ConfigError(
            "evaluation.benign_generations is 0, and the KL to base is measured on them; learning rates are chosen by "
            "it, so set it above 0"
        )
    _refuse_own_settings(config)
    grids = {name: rates or default_rates(name) for name in names}
    plan = Plan(config, names, budget, seeds, grids)
    for spec in every_kind_of_run(plan):
        plan.run_config(spec)
    return plan


def _usable_rates(rates: Sequence[float]) -> bool:
    different = len({f"{rate:g}" for rate in rates}) == len(rates)
    return bool(rates) and different and all(rate > 0.0 and math.isfinite(rate) for rate in rates)


def every_kind_of_run(plan: Plan) -> Iterator[RunSpec]:
    """One spec for each objective and phase: all that checks of settings and data have to look at."""
    for objective in plan.objectives:
        rate = plan.learning_rates[objective][0]
        yield RunSpec("tune", objective, rate, 0, plan.tuning_steps)
        yield RunSpec("final", objective, rate, 0, plan.steps)


def default_rates(objective: str) -> tuple[float, ...]:
    """The grid of an objective: its base rate / 3, x 1, x 3, to two digits."""
    base = next(rate for rate, names, _ in BASE_RATES if objective in names)
    return tuple(float(f"{base * factor:.1e}") for factor in (1 / 3, 1.0, 3.0))


def unread_settings(config: RunConfig) -> list[str]:
    """What a recipe says and a comparison decides itself, e.g. `training.max_steps = 12 (--budget decides)`."""
    given, defaults = config.model_dump(mode="json"), RunConfig().model_dump(mode="json")
    found = []
    for key, decides in SET_HERE.items():
        section, name = key.split(".")
        if given[section][name] != defaults[section][name]:
            found.append(f"{key} = {given[section][name]} ({decides})")
    return found


def check_saved_plan(path: Path, plan: Plan) -> bool:
    """Whether a plan was saved; raises RunDirectoryError, naming the keys, where it is another one."""
    if not path.exists():
        return False
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunDirectoryError(f"{path}: not valid YAML; choose another --out") from error
    if not isinstance(saved, dict):
        raise RunDirectoryError(f"{path}: expected the settings of a comparison; choose another --out")
    changes = changed_leaves(saved, plan.values())
    if changes:
        begun = any((path.parent / name).exists() for name in ("tune", "runs"))
        way = "choose another --out" if begun else f"remove {path.parent} (nothing is trained there yet)"
        raise RunDirectoryError(
            f"{path.parent}: this comparison has other settings ({describe(changes)}); "
            f"give those of the comparison again, or {way}"
        )
    return True


def save_plan(path: Path, plan: Plan) -> None:
    write_text(path, yaml.safe_dump(plan.values(), sort_keys=False, allow_unicode=True, width=120))


def _shared_values(config: RunConfig) -> dict[str, Any]:
    """The settings of all runs, without those that a comparison sets for each."""
    values = config_values(config)
    shared = set(TrainingSettings.model_fields)
    values["training"] = {name: value for name, value in values["training"].items() if name in shared}
    for key in SET_HERE:
        section, name = key.split(".")
        values[section].pop(name, None)
    del values["guard"]
    return values


def _objective(name: str) -> str:
    if name in OBJECTIVES:
        return name
    near = difflib.get_close_matches(name, OBJECTIVES, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(OBJECTIVES)}"
    raise ConfigError(f"--objectives {name}: no such objective; {hint}")


def _refuse_own_settings(config: RunConfig) -> None:
    """Settings that one objective alone reads: a comparison takes each objective with its own defaults."""
    training = config.training
    defaults = OBJECTIVES[training.objective]()
    for name, value in training.own_settings.items():
        if value != getattr(defaults, name):
            raise ConfigError(
                f"training.{name} = {value:g}: a comparison gives every objective its own defaults, and other "
                f"objectives do not read this key; leave it out (the default of {training.objective} is "
                f"{getattr(defaults, name):g})"
            )
