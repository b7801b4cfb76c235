"""What decides whether a stage's result is still valid: its version, its settings, and the content that it reads."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from naysay.artifacts.digests import digest_json, digest_tree
from naysay.artifacts.run_directory import RunDirectory
from naysay.config.run import RunConfig
from naysay.config.stages import Stage
from naysay.pipeline.graph import StageModule

MISSING = "missing"
"""Stands for the digest of a file that is not there."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A stage as it would be done now. Equal `key` = equal result, wherever the run directory lies."""

    stage: Stage
    key: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    paths: Mapping[str, Path]


class Digests:
    """Digests of files and folders; one that did not change on disk since it was read is not read again."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Any, str]] = {}

    def of(self, path: Path) -> str:
        """Digest of the content, or `MISSING`."""
        if not path.exists():
            return MISSING
        stamp = _stamp(path)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            self._known[path] = (stamp, digest_tree(path))
        return self._known[path][1]

    def forget(self, paths: Iterable[Path]) -> None:
        """Read these anew: a file that was just rewritten may have the size and the time of the old one."""
        for path in paths:
            self._known.pop(path, None)


def identify(stage: Stage, module: StageModule, config: RunConfig, run: RunDirectory, digests: Digests) -> Identity:
    """The identity of a stage under a config, from what is on disk now."""
    settings = orjson.loads(orjson.dumps(module.settings(config)))
    paths = module.inputs(config, run)
    inputs = {name: digests.of(path) for name, path in paths.items()}
    return Identity(stage, key_of(stage, module.VERSION, settings, inputs), settings, inputs, paths)


def key_of(stage: Stage, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The key of a stage that was done by this version of it, with these settings and from inputs of these digests."""
    return digest_json({"stage": stage, "version": version, "settings": settings, "inputs": inputs})


def _stamp(path: Path) -> Any:
    if path.is_file():
        return _file_stamp(path)
    return tuple(sorted((str(item), _file_stamp(item)) for item in path.rglob("*") if item.is_file()))


def _file_stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
