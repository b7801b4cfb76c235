"""`training.*` but the objective: the optimisation, the same for all of them."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from naysay.config.base import Section


class LoraSettings(Section):
    """LoRA on all linear layers but the head."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update."""

    alpha: int = Field(default=32, ge=1)
    """Scale: the update is multiplied by alpha / rank."""

    dropout: float = 0.0
    """Must be 0: cached references and the two-pass gradient need a deterministic forward."""

    target_modules: str | tuple[str, ...] = "all-linear"
    """Modules that get an adapter, in peft's notation."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dropout != 0.0:
            raise ValueError(
                f"dropout must be 0 (found {self.dropout}): references are cached constants and would not match"
            )
        return self


class EarlyStoppingSettings(Section):
    """When training ends before its budget, by what it does to dev prompts, which are not trained on.

    The objective has no finite minimiser. Dev answers are scored every few steps, and the weights of the best check are
    the result. Held-out prompts are never looked at.
    """

    enabled: bool = False
    """Whether dev prompts are scored, and whether they end the training."""

    every: int = Field(default=5, ge=1)
    """Optimizer steps between checks; there is one before step 1, and the last step is always checked."""

    prompts: int = Field(default=32, ge=1)
    """At most so many dev prompts are scored: those with an acceptable answer first, then in the order of their ids."""

    patience: int = Field(default=3, ge=1)
    """Stop after so many checks without an improvement: of the separation (acceptable minus rejected answers) where at
    least 8 of these prompts have an acceptable answer, else of the loss."""

    min_improvement: float = Field(default=0.01, ge=0.0, lt=1.0)
    """What counts as an improvement, as a share of the best value so far."""

    max_kl: float = Field(default=0.1, gt=0.0)
    """Stop where KL(initial policy || policy) on dev anchors is above this, in nats per token; such a check is never
    the best."""


class TrainingSettings(Section):
    """What every objective reads."""

    method: Literal["lora", "full"] = "lora"
    """`lora` writes adapter/, `full` writes model/."""

    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Seed of the adapter's initial values and of the order of the groups; None = the run's `seed`."""

    learning_rate: float = Field(default=1e-4, gt=0.0)
    """Peak learning rate. Our choice."""

    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    """Our choice."""

    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""

    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's."""

    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are clipped to this norm."""

    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the training prompts; ignored where `max_steps` is set."""

    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; None = by `epochs`."""

    groups_per_step: int = Field(default=8, ge=1)
    """Prompt groups in one optimizer step and process."""

    tokens_per_microbatch: int | None = Field(default=None, ge=16)
    """Token budget of one forward and backward; a group that exceeds it alone is trained exactly in two passes. None =
    2048 on a CPU and 16384 elsewhere."""

    head_chunk: int | None = Field(default=None, ge=1)
    """Response tokens that meet the LM head at a time: the largest [tokens, vocabulary] tensor that ever exists. None =
    as many as give 4 million logits on a CPU and 64 million elsewhere, so that memory does not grow with the
    vocabulary."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    save_steps: int = Field(default=10, ge=1)
    """Optimizer steps between checkpoints (what a killed run loses at most)."""

    early_stopping: EarlyStoppingSettings = Field(default_factory=EarlyStoppingSettings)
    """When training ends before its budget."""

    lora: LoraSettings = Field(default_factory=LoraSettings)
    """Settings of the adapter; not read when `method` is `full`."""

    trainer_args: dict[str, Any] = Field(default_factory=dict)
    """Any other field of transformers.TrainingArguments, by name."""

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if self.method == "full" and self.lora != LoraSettings():
            raise ValueError("training.lora is not read when training.method is full; remove it or use method: lora")
        return self
