"""`references.*`: the two frozen policies that log-ratios are taken against.

The names invite a swap: `positive` is r+ (more helpful) and stands under the *negatives*; `negative` is r- (more
harmful) and stands under the *anchors*.
"""

from pydantic import Field

from naysay.config.base import Section

INITIAL = "initial"
"""The name of the initial policy as a reference."""


class ReferencesConfig(Section):
    """Both default to the initial policy, as in the paper's experiments."""

    positive: str = Field(default=INITIAL, min_length=1)
    """r+, the denominator of the negatives: `initial`, a model, or a folder with a peft adapter of `model.name`."""

    negative: str = Field(default=INITIAL, min_length=1)
    """r-, the denominator of the anchors: `initial`, a model, or a folder with a peft adapter of `model.name`."""
