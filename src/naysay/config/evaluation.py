"""`evaluation.*`: what is measured before and after."""

from typing import Literal

from pydantic import Field

from naysay.config.base import Section
from naysay.config.suites import Suites


class EvaluationConfig(Section):
    """Held-out negatives, benign retention, generations before and after."""

    split: Literal["dev", "heldout"] = "heldout"
    """`dev` to choose hyperparameters, `heldout` for the final figure."""

    heldout_generations: int = Field(default=48, ge=0)
    """Prompts of the split that are answered before and after."""

    benign_generations: int = Field(default=48, ge=0)
    """Benign prompts that are answered before and after; the KL to base is measured on these answers."""

    suites: Suites = ()
    """Files of other prompts that are answered before and after: look-alikes, prompts for harm, harmless ones."""

    temperature: float = Field(default=0.7, gt=0.0)
    """Of the generations. The KL itself is at temperature 1 over the whole vocabulary."""

    top_k: int = Field(default=50, ge=0)
    """0 = all."""

    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    """1 = all."""

    max_new_tokens: int = Field(default=128, ge=1)
    """Longest generation, in tokens."""

    bootstrap_samples: int = Field(default=2000, ge=200)
    """Resamples of each paired bootstrap interval."""

    kl_bound: float = Field(default=0.10, gt=0.0)
    """Nats per token; the verdict says so when either KL to base is above it."""
