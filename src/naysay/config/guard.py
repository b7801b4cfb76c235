"""`guard.*`: when training is stopped because the model is coming apart."""

from typing import Self

from pydantic import Field, model_validator

from naysay.config.base import Section


class GuardConfig(Section):
    """The collapse guard: a fixed probe is measured every few steps and compared with what it was before step 1.

    Over a bound, training stops and the weights of the last check that held are kept.
    """

    enabled: bool = True
    """Whether training is watched at all."""

    every: int = Field(default=10, ge=1)
    """Optimizer steps between checks; the last step is always checked."""

    prompts: int = Field(default=16, ge=1)
    """Prompts that are answered at each check: look-alikes first, then other benign ones, then training prompts. As
    many training prompts give the anchors whose likelihood is watched."""

    max_new_tokens: int = Field(default=48, ge=1)
    """Longest answer of the probe, in tokens."""

    max_anchor_fall: float = Field(default=1.0, gt=0.0)
    """Nats per token that the anchors may be below where they were."""

    entropy_range: tuple[float, float] = (0.2, 3.0)
    """The mean entropy of the next token, as multiples of what it was."""

    max_degenerate_rise: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of the probe's answers by which degenerate ones (empty, repeating, no language) may become more."""

    max_refusal_rise: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the probe's answers by which refusals may become more."""

    length_range: tuple[float, float] = (0.2, 5.0)
    """The mean length of the probe's answers, as multiples of what it was."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("entropy_range", "length_range"):
            low, high = getattr(self, name)
            if not 0.0 <= low < 1.0 < high:
                raise ValueError(f"guard.{name} is [{low:g}, {high:g}]: expected a number below 1 and one above 1")
        return self
