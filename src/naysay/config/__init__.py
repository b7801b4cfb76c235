"""The configuration: strict pydantic models, one file a stage. Imports no torch."""

from naysay.config.load import load_config
from naysay.config.run import RunConfig

__all__ = ["RunConfig", "load_config"]
