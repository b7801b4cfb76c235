"""`model.*`: the policy that is aligned, and how its text becomes tokens."""

from typing import Literal

from pydantic import Field

from naysay.config.base import Section


class ModelConfig(Section):
    """The initial policy. It samples the anchors, is the default for both references, and is what is trained."""

    name: str = "embedded:smollm2-135m"
    """`embedded:smollm2-135m`, a local folder, or a Hugging Face hub id."""

    revision: str | None = None
    """Revision of a hub id."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights; `auto` is bfloat16 on a GPU that has it and float32 elsewhere. Set float32 for
    `training.method=full`, whose steps are mostly less than bfloat16 can add to a weight."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""

    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template, or gives one to a model that has none."""

    max_length: int = Field(default=1024, ge=8)
    """Longest prompt plus answer, in tokens. Longer rows are dropped and counted, never truncated."""
