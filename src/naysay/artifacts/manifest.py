"""What a stage says of itself when it is done: inputs, settings, counts, outputs, environment."""

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from naysay.artifacts.store import read_json, write_json

SCHEMA_VERSION = 1
_PACKAGES = ("naysay", "torch", "transformers", "peft", "accelerate", "numpy")


@dataclass(frozen=True)
class Manifest:
    """A stage's done marker. A stage is up to date when `key` is what it would be now and the outputs are in place.

    `counts` add up: in = out + the drops by reason. `seconds` is wall time over all sessions that worked on the stage.
    `outputs` maps a path relative to the run directory to the digest of its content.
    """

    stage: str
    key: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    counts: Mapping[str, Any]
    seconds: float
    environment: Mapping[str, Any] = field(default_factory=dict)
    reused_from: str = ""
    schema_version: int = SCHEMA_VERSION

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        return cls(**read_json(path))


def environment() -> dict[str, Any]:
    """Versions and hardware of this process (imports none of the packages that it names)."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
