"""`D2OConfig`: transformers' TrainingArguments plus what the objective needs."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from naysay.config.objectives import D2O
from naysay.errors import ConfigError
from naysay.training.objectives import Objective, make_objective

_KEYS_OF_THEIR_OWN = {
    "objective": "training.objective",
    "objective_args": "training.objective and its own keys",
    "alpha": "training.alpha",
    "beta": "training.beta",
    "skip_weight_below": "training.skip_weight_below",
    "learning_rate": "training.learning_rate",
    "lr_scheduler_type": "training.lr_scheduler_type",
    "warmup_steps": "training.warmup_steps",
    "weight_decay": "training.weight_decay",
    "max_grad_norm": "training.max_grad_norm",
    "num_train_epochs": "training.epochs",
    "max_steps": "training.max_steps",
    "per_device_train_batch_size": "training.groups_per_step",
    "tokens_per_microbatch": "training.tokens_per_microbatch",
    "head_chunk": "training.head_chunk",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "activation_checkpointing": "training.gradient_checkpointing",
    "save_steps": "training.save_steps",
    "max_length": "model.max_length",
    "use_cpu": "model.device",
    "seed": "training.seed",
}
_OF_D2O = {
    "alpha": "use objective_args={...}",
    "beta": "use objective_args={...}",
    "skip_weight_below": "leave it out",
}
"""What d2o alone reads, and what to do about it where another objective is asked for."""
_SET_BY_A_RUN = (
    "output_dir",
    "reference_cache_dir",
    "remove_unused_columns",
    "save_strategy",
    "save_only_model",
    "logging_strategy",
    "eval_strategy",
)
"""By these a run finds its files, resumes and draws its curves; it is evaluated by a stage of its own."""


@dataclass
class D2OConfig(TrainingArguments):
    """Arguments of `D2OTrainer`. Every field of `transformers.TrainingArguments` works as it does there; a group (a
    prompt with its negatives and anchors) is one sample, so `per_device_train_batch_size` counts groups.

    Example: `D2OConfig(output_dir="out", alpha=0.1, beta=0.1, per_device_train_batch_size=8)`.

    Raises:
        ConfigError: an impossible value.
    """

    objective: str = field(
        default="d2o", metadata={"help": "d2o, or a baseline of naysay.core.baselines (npo, ga, altpo, ...)."}
    )
    objective_args: dict[str, float] | None = field(
        default=None, metadata={"help": "The parameters of a baseline; d2o reads alpha and beta."}
    )
    alpha: float = field(default=0.1, metadata={"help": "Weight of the negative's log-ratio (paper: 0.1)."})
    beta: float = field(default=0.1, metadata={"help": "Weight of the anchors' mean log-ratio (paper: 0.1)."})
    skip_weight_below: float = field(
        default=1e-4,
        metadata={
            "help": "Pairs whose weight (1 - sigmoid of the margin) is below this get no gradient; d2o alone. 0: none."
        },
    )
    max_length: int = field(
        default=1024, metadata={"help": "Longest prompt plus answer in tokens; longer rows are dropped and counted."}
    )
    tokens_per_microbatch: int | None = field(
        default=None,
        metadata={
            "help": "Token budget of one forward and backward. A larger group is trained exactly in two passes. "
            "None: 2048 on a CPU, 16384 elsewhere."
        },
    )
    head_chunk: int | None = field(
        default=None,
        metadata={
            "help": "Response tokens that meet the LM head at a time (bounds logits in memory). "
            "None: as many as give 4 million logits on a CPU, 64 million elsewhere."
        },
    )
    reference_cache_dir: str | None = field(
        default=None, metadata={"help": "Where reference log-probs are kept; default: output_dir/reference_cache."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (our choice)."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "Our choice."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the prompts."})
    logging_steps: float = field(default=1, metadata={"help": "Log every step: the curves are the product."})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "Trackers; none unless asked for."})

    def __post_init__(self) -> None:
        self.remove_unused_columns = False
        super().__post_init__()
        for name in ("alpha", "beta"):
            if getattr(self, name) < 0:
                raise ConfigError(f"D2OConfig.{name} is {getattr(self, name)}; expected a weight of at least 0")
        if self.alpha == 0 and self.beta == 0:
            raise ConfigError("D2OConfig: alpha and beta are both 0, the loss would be constant; set one above 0")
        if not 0 <= self.skip_weight_below < 0.5:
            raise ConfigError(
                f"D2OConfig.skip_weight_below is {self.skip_weight_below}; expected at least 0 and less than 0.5, the "
                "weight of a new pair"
            )
        self.make_objective()
        for name in ("max_length", "tokens_per_microbatch", "head_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"D2OConfig.{name} is {value}; expected at least 1")
        if self.train_sampling_strategy != "random":
            raise ConfigError(
                f"D2OConfig.train_sampling_strategy is {self.train_sampling_strategy!r}; groups are drawn by naysay's "
                "own sampler, which supports 'random' only"
            )

    def make_objective(self) -> Objective:
        """The objective that these arguments name.

        Raises:
            ConfigError: no such objective, a parameter that it does not read, or an impossible value.
        """
        if self.objective == D2O:
            if self.objective_args:
                raise ConfigError("D2OConfig.objective_args is not read by d2o; set alpha and beta themselves")
            found = make_objective(D2O, {"alpha": self.alpha, "beta": self.beta})
            return replace(found, skip_weight_below=self.skip_weight_below)
        for name, fix in _OF_D2O.items():
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ConfigError(f"D2OConfig.{name} is not read by objective {self.objective!r}; {fix}")
        return make_objective(self.objective, self.objective_args)


def check_trainer_args(given: Mapping[str, Any]) -> None:
    """Whether `training.trainer_args` can be passed on.

    Raises:
        ConfigError: no such field of TrainingArguments, one that has a key of its own, or an impossible value.
    """
    known = [item.name for item in fields(D2OConfig) if item.init]
    for name in given:
        where = f"training.trainer_args.{name}"
        if name in _KEYS_OF_THEIR_OWN:
            raise ConfigError(f"{where}: has a key of its own; set {_KEYS_OF_THEIR_OWN[name]} instead")
        if name in _SET_BY_A_RUN:
            raise ConfigError(f"{where}: a run decides this itself (its files, resuming, the report); leave it out")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see transformers.TrainingArguments for the names"
            raise ConfigError(f"{where}: no such field of transformers.TrainingArguments; {hint}")
    try:
        trackers = D2OConfig(output_dir="unused", **given).report_to
        for callback in get_reporting_integration_callbacks(trackers):
            callback()  # raises where the tracker's package is not installed
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"training.trainer_args: transformers.TrainingArguments refuses {dict(given)}: {reason}"
        ) from error
