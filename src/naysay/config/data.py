"""`data.*`: where the rejected answers are and how they are split."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from naysay.config.base import Section

RowCount = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
COLUMNS = (
    "prompt",
    "rejected",
    "chosen",
    "completion",
    "label",
    "category",
    "severity",
    "annotators",
    "provenance",
    "finish",
    "split",
    "kind",
    "system",
)


class SplitLimits(Section):
    """At most this many prompts of each split, and answers of each prompt; the rest is counted. None = all."""

    train: RowCount | None = None
    dev: RowCount | None = None
    heldout: RowCount | None = None
    benign: RowCount | None = None
    answers_per_prompt: Annotated[int, Field(ge=1)] | None = None
    """Rejected answers of a prompt, and as many acceptable ones."""


class DataConfig(Section):
    """The input file and the split by prompt."""

    path: str = "embedded:smollm2-135m"
    """A .jsonl, .jsonl.gz, .csv or .parquet file with rejected answers, or `embedded:smollm2-135m`."""

    format: Literal["auto", "prompt_rejected", "hh_rlhf", "trl_preference", "trl_unpaired"] = "auto"
    """Shape of the rows; `auto` looks at the columns."""

    map: dict[str, str] = Field(default_factory=dict)
    """naysay's column name -> the file's column name, e.g. `{prompt: question, rejected: bad_answer}`."""

    benign: str | None = None
    """A file with `prompt` and `chosen` (an acceptable answer) to measure what must not change; None = embedded."""

    dev_fraction: Fraction = 0.1
    """Share of prompts for choosing hyperparameters."""

    heldout_fraction: Fraction = 0.2
    """Share of prompts that are scored once, at the end."""

    near_duplicate_threshold: float = Field(default=0.7, gt=0.0, le=1.0)
    """Prompts whose 3-word shingles have at least this Jaccard similarity (exact) go to the same split."""

    limit: SplitLimits = Field(default_factory=SplitLimits)
    """Use only a part of each split."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dev_fraction + self.heldout_fraction >= 1.0:
            raise ValueError("data.dev_fraction + data.heldout_fraction must leave something to train on (below 1)")
        unknown = sorted(set(self.map) - set(COLUMNS))
        if unknown:
            raise ValueError(f"data.map: unknown column {unknown[0]!r}; naysay's columns are {', '.join(COLUMNS)}")
        return self
