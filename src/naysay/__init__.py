"""naysay: align language models from the answers people said no to (Distributional Dispreference Optimization).

The names below are the public surface. They are imported on first use, so that `import naysay` costs nothing.
"""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from naysay.config import RunConfig as RunConfig
    from naysay.config import load_config as load_config
    from naysay.core.groups import D2OTerms as D2OTerms
    from naysay.core.groups import GroupLogps as GroupLogps
    from naysay.core.objective import d2o_loss as d2o_loss
    from naysay.errors import NaysayError as NaysayError
    from naysay.pipeline.runner import run_stages as run_stages
    from naysay.sampling.rows import sample_anchors as sample_anchors
    from naysay.training.config import D2OConfig as D2OConfig
    from naysay.training.trainer import D2OTrainer as D2OTrainer

__version__ = _version("naysay")

_HOMES = {
    "D2OConfig": "naysay.training.config",
    "D2OTerms": "naysay.core.groups",
    "D2OTrainer": "naysay.training.trainer",
    "GroupLogps": "naysay.core.groups",
    "NaysayError": "naysay.errors",
    "RunConfig": "naysay.config",
    "d2o_loss": "naysay.core.objective",
    "load_config": "naysay.config",
    "run_stages": "naysay.pipeline.runner",
    "sample_anchors": "naysay.sampling.rows",
}
__all__ = [
    "D2OConfig",
    "D2OTerms",
    "D2OTrainer",
    "GroupLogps",
    "NaysayError",
    "RunConfig",
    "__version__",
    "d2o_loss",
    "load_config",
    "run_stages",
    "sample_anchors",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'naysay' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
