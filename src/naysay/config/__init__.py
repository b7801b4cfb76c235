"""The configuration: strict pydantic models, one file a stage. Imports no torch.

The names below are imported on first use: who needs one section does not wait for all of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from naysay.config.load import load_config as load_config
    from naysay.config.run import RunConfig as RunConfig

_HOMES = {"RunConfig": "naysay.config.run", "load_config": "naysay.config.load"}
__all__ = ["RunConfig", "load_config"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'naysay.config' has no attribute {name!r}")
