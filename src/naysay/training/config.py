"""`D2OConfig`: transformers' TrainingArguments plus what the objective needs."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from naysay.errors import ConfigError


@dataclass
class D2OConfig(TrainingArguments):
    """Arguments of `D2OTrainer`. Every field of `transformers.TrainingArguments` works as it does there; a group (a
    prompt with its negatives and anchors) is one sample, so `per_device_train_batch_size` counts groups.

    Example: `D2OConfig(output_dir="out", alpha=0.1, beta=0.1, per_device_train_batch_size=8)`.

    Raises:
        ConfigError: an impossible value.
    """

    alpha: float = field(default=0.1, metadata={"help": "Weight of the negative's log-ratio (paper: 0.1)."})
    beta: float = field(default=0.1, metadata={"help": "Weight of the anchors' mean log-ratio (paper: 0.1)."})
    max_length: int = field(
        default=1024, metadata={"help": "Longest prompt plus answer in tokens; longer rows are dropped and counted."}
    )
    tokens_per_microbatch: int | None = field(
        default=None,
        metadata={
            "help": "Token budget of one forward and backward. A larger group is trained exactly in two passes. "
            "None: 1024 on a CPU, 16384 elsewhere."
        },
    )
    head_chunk: int = field(
        default=1024, metadata={"help": "Response tokens that meet the LM head at a time (bounds logits in memory)."}
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
        for name in ("max_length", "tokens_per_microbatch", "head_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"D2OConfig.{name} is {value}; expected at least 1")
        if self.train_sampling_strategy != "random":
            raise ConfigError(
                f"D2OConfig.train_sampling_strategy is {self.train_sampling_strategy!r}; groups are drawn by naysay's "
                "own sampler, which supports 'random' only"
            )
