"""`evaluation.suites`: files of prompts that are answered before and after beside those of the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from naysay.config.base import Section

SuiteKind = Literal["lookalike", "safety", "benign"]


class SuiteConfig(Section):
    """A file of prompts. One in the format of XSTest needs nothing but its path."""

    path: str = Field(min_length=1)
    """A .csv, .json, .jsonl, .jsonl.gz, .parquet or .txt file (a prompt a line)."""

    name: str = ""
    """What reports call it; the file's name without extension where it is left out."""

    kind: SuiteKind | None = None
    """What its prompts are; where the rows say it themselves, only those of this kind are taken."""

    prompt_column: str = "prompt"
    """Column with the prompt: text, or a list of messages."""

    kind_column: str | None = None
    """Column that says what a prompt is: lookalike (or safe), safety (or unsafe), benign."""

    category_column: str | None = None
    """Column with a category, from which `limit` takes evenly."""

    limit: int | None = Field(default=None, ge=1)
    """At most this many prompts, from each kind and category in turn; None = all."""

    @model_validator(mode="before")
    @classmethod
    def _name(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not values.get("name") and isinstance(values.get("path"), str):
            return {**values, "name": Path(values["path"]).name.partition(".")[0]}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        columns = (self.prompt_column != "prompt", self.kind_column is not None, self.category_column is not None)
        if self.path.lower().endswith(".txt") and any(columns):
            raise ValueError(f"{self.path} has a prompt a line and no columns; leave out the settings of columns")
        return self


def _different_names(suites: tuple[SuiteConfig, ...]) -> tuple[SuiteConfig, ...]:
    names = [suite.name for suite in suites]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(f"suites: two have the name {name!r}; give one of them another name")
    return suites


Suites = Annotated[tuple[SuiteConfig, ...], AfterValidator(_different_names)]
