"""`sampling.*`: which engine draws anchors and generations. It never changes what is drawn in distribution."""

from typing import Literal

from pydantic import Field

from naysay.config.base import Section


class SamplingConfig(Section):
    """The sampling engine and its batch size."""

    backend: Literal["hf"] = "hf"
    """`hf` = transformers on this machine."""

    batch_size: int = Field(default=256, ge=1)
    """Rows planned together, and the unit that an interrupted run goes on with. On a CPU at most 128 of these are
    computed at a time, and those that end make room for the rest; a GPU takes up to 2048, as far as an eighth of its
    memory goes, and few take it as long as many: set 2048 there. Part of the batch plan: another value may change the
    last bits of the logits."""
