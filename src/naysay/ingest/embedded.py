"""The data set that naysay brings along, and which file a setting of `data.path` or `data.benign` means."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from naysay.errors import DataError

if TYPE_CHECKING:
    from naysay.config import RunConfig

NAME = "embedded:smollm2-135m"
_PREFIX = "embedded:"
_COLUMNS = {"completion": "answer"}


@dataclass(frozen=True, slots=True)
class Source:
    """A file to read and how: `splits` keeps only the rows of these splits (None: all of them).

    `label` stands for the file in the records; `for_benign` files hold acceptable answers only.
    """

    path: Path
    label: str
    format: str
    for_benign: bool
    columns: Mapping[str, str] = field(default_factory=dict)
    splits: frozenset[str] | None = None


def answers_path() -> Path:
    """Where the installed package has its embedded answers."""
    return Path(str(resources.files("naysay"))) / "data" / "answers.jsonl"


def data_source(config: "RunConfig") -> Source:
    """The rejected answers that `data.path` means.

    Raises:
        DataError: an unknown embedded set, the package lacks its data, or `data.map` or `data.format` is set for it.
    """
    data = config.data
    if not data.path.startswith(_PREFIX):
        path = Path(data.path)
        return Source(path, path.name, data.format, for_benign=False, columns=data.map)
    if data.map or data.format != "auto":
        raise DataError(f"{data.path}: data.map and data.format describe a file of yours; leave them out with this set")
    splits = frozenset({"train", "dev", "heldout"})
    return Source(_embedded(data.path, "data.path"), data.path, "trl_unpaired", False, _COLUMNS, splits)


def benign_source(config: "RunConfig") -> Source:
    """The acceptable answers that `data.benign` means.

    Raises:
        DataError: an unknown embedded set, or the package lacks its data.
    """
    name = config.data.benign or NAME
    if not name.startswith(_PREFIX):
        path = Path(name)
        return Source(path, path.name, "auto", for_benign=True)
    return Source(_embedded(name, "data.benign"), name, "trl_unpaired", True, _COLUMNS, frozenset({"benign"}))


def _embedded(name: str, key: str) -> Path:
    if name != NAME:
        raise DataError(f"{key}: unknown embedded set {name!r}; there is one: {NAME}, or give the path of a file")
    path = answers_path()
    if not path.is_file():
        raise DataError(f"{key}: {name} should be at {path}, found none; reinstall naysay, or give a file of your own")
    return path
