"""The config.yaml of a run: written once, compared leaf by leaf with what is asked for later."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import write_text
from naysay.config.load import parse_config
from naysay.config.run import RunConfig
from naysay.errors import ConfigError, RunDirectoryError

_UNSET = "unset"
_LONGEST_VALUE = 60
_MOST_CHANGES = 6


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that differs, e.g. `Change("training.beta", "0.1", "0.2")`; the values are shortened JSON."""

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def config_values(config: RunConfig) -> dict[str, Any]:
    """All settings as a recipe may give them: `load_config` accepts the result and gives an equal config."""
    values = config.model_dump(mode="json")
    if config.training.method == "full":
        # It is not read then, and a recipe that sets it is refused.
        del values["training"]["lora"]
    return values


def config_text(config: RunConfig) -> str:
    """The resolved config as YAML."""
    return yaml.safe_dump(config_values(config), sort_keys=False, allow_unicode=True, width=120)


def save_config(config: RunConfig, run: RunDirectory) -> None:
    write_text(run.config, config_text(config))


def load_saved_config(run: RunDirectory) -> RunConfig | None:
    """The config of a run, None where the run is new.

    Raises:
        RunDirectoryError: config.yaml is not the config of a run of this version of naysay.
    """
    if not run.config.exists():
        return None
    try:
        raw = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ConfigError(f"expected a mapping of sections, found {type(raw).__name__}")
        return parse_config(raw, origin="config.yaml")
    except (ConfigError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunDirectoryError(
            f"{run.config}: not the config of a run that this version of naysay can read ({reason}); "
            "choose another --out"
        ) from error


def differences(old: RunConfig, new: RunConfig) -> list[Change]:
    """Every setting that differs, in the order of the configuration."""
    return changed_leaves(old.model_dump(mode="json"), new.model_dump(mode="json"))


def changed_leaves(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Every leaf of two nested mappings that differs, by its dotted key."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = [*before, *(key for key in after if key not in before)]
    return [
        Change(key, _shown(before, key), _shown(after, key))
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    ]


def describe(changes: Sequence[Change]) -> str:
    """The changes on one line; the first few by name, then how many more."""
    more = f" and {len(changes) - _MOST_CHANGES} more" if len(changes) > _MOST_CHANGES else ""
    return ", ".join(str(change) for change in changes[:_MOST_CHANGES]) + more


def _leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield ".".join((*path, name)), value


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    if key not in leaves:
        return _UNSET
    text = json.dumps(leaves[key], ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
