"""What every section of the configuration has in common: unknown keys and impossible values are errors."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A strict, frozen group of settings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
