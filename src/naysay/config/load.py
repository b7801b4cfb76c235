"""YAML -> --set overrides -> one validation, with errors that name the key and suggest the right one."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from naysay.config.judging import JUDGES
from naysay.config.objectives import OBJECTIVES, objective_name
from naysay.config.run import RunConfig
from naysay.config.suites import SuiteConfig
from naysay.config.training import TrainingSettings
from naysay.errors import ConfigError, InputNotFoundError

_SECRET = frozenset({"base_url", "key_env"})
"""Settings in whose place a user may have put a key: what was found there is not shown."""

TRAINING = ("training",)
"""The section whose keys depend on `training.objective`."""


def load_config(
    recipe: str | Path | None = None, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> RunConfig:
    """Resolve a configuration.

    Args:
        recipe: a YAML file, or None for the defaults.
        overrides: `section.key=value` strings as given to `--set`; the value is read as YAML.
        values: dotted keys that the command line sets by other flags; applied before `overrides`.

    Raises:
        InputNotFoundError: the recipe does not exist.
        ConfigError: not YAML, an unknown key (with a suggestion) or an impossible value.
    """
    raw = _read(Path(recipe)) if recipe is not None else {}
    for key, value in (values or {}).items():
        _assign(raw, key, value, origin="the command line")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {override}: expected section.key=value, for example --set training.beta=0.2")
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML ({_first_line(error)})") from error
        _assign(raw, key.strip(), _numbers(value), origin="--set")
    return parse_config(raw, origin=_origin(recipe, changed=bool(values or overrides)))


def _origin(recipe: str | Path | None, *, changed: bool) -> str:
    """What to name in an error: the recipe where the mistake is there already without the command line."""
    if recipe is None:
        return "the command line"
    if not changed:
        return str(recipe)
    try:
        parse_config(_read(Path(recipe)), origin=str(recipe))
    except ConfigError:
        return str(recipe)
    return "the command line"


def parse_config(raw: Mapping[str, Any], origin: str) -> RunConfig:
    """Validate a mapping; `origin` is named in the error."""
    _check_keys(raw, RunConfig, (), origin)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(item, origin) for item in error.errors())) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputNotFoundError(f"recipe {path}: no such file; check the path given to --recipe") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: cannot be read ({error}); expected a UTF-8 YAML file") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path}: not valid YAML ({_first_line(error)}); fix the file") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"recipe {path}: expected a mapping of sections, found {type(raw).__name__}")
    return _numbers(raw)


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text; every user means the number."""
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _numbers(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _numbers(value) for key, value in raw.items()}
    return [_numbers(value) for value in raw] if isinstance(raw, list) else _number(raw)


def _assign(raw: dict[str, Any], dotted: str, value: Any, origin: str) -> None:
    *parents, last = dotted.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{origin}: {dotted}: {parent!r} is a value, not a section")
        node = child
    node[last] = value


def _check_keys(raw: Mapping[str, Any], model: type[BaseModel], path: tuple[str, ...], origin: str) -> None:
    for key, value in raw.items():
        if key not in model.model_fields:
            raise ConfigError(f"{origin}: {_unknown(str(key), model, path)}")
        section = _section(model.model_fields[key])
        if (*path, key) == TRAINING:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{origin}: training: expected a section of settings (found {value!r:.40})")
            section = _training_section(value, origin)
        if (*path, key) == ("judges",):
            _check_judges(value, origin)
        if (*path, key) == ("evaluation", "suites"):
            _check_suites(value, origin)
        if section is not None and isinstance(value, Mapping):
            _check_keys(value, section, (*path, key), origin)


def _check_judges(raw: Any, origin: str) -> None:
    """The keys of each judge, which depend on its kind."""
    expected = "a list of judges, each with its kind, for example [{kind: offline, folder: judges/mine}]"
    for index, judge in enumerate(_sections(raw, f"{origin}: judges", expected)):
        kind = judge.get("kind")
        if kind not in JUDGES:
            near = difflib.get_close_matches(str(kind), JUDGES, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(JUDGES)}"
            raise ConfigError(f"{origin}: judges.{index}.kind is {kind!r}; {hint}")
        _check_keys(judge, JUDGES[kind], ("judges", str(index)), origin)


def _check_suites(raw: Any, origin: str) -> None:
    """The keys of each suite."""
    expected = "a list of suites, each with its path, for example [{path: xstest_prompts.csv}]"
    for index, suite in enumerate(_sections(raw, f"{origin}: evaluation.suites", expected)):
        _check_keys(suite, SuiteConfig, ("evaluation", "suites", str(index)), origin)


def _sections(raw: Any, where: str, expected: str) -> Sequence[Any]:
    """A list whose entries are mappings, as sections of settings are."""
    if not isinstance(raw, list | tuple) or not all(isinstance(section, Mapping) for section in raw):
        raise ConfigError(f"{where}: expected {expected} (found {raw!r:.40})")
    return raw


def _training_section(raw: Mapping[str, Any], origin: str) -> type[BaseModel]:
    name = objective_name(dict(raw))
    if not isinstance(name, str) or name not in OBJECTIVES:
        near = difflib.get_close_matches(str(name), OBJECTIVES, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(OBJECTIVES)}"
        raise ConfigError(f"{origin}: training.objective is {name!r}; {hint}")
    return OBJECTIVES[name]


def _unknown(key: str, model: type[BaseModel], path: tuple[str, ...]) -> str:
    dotted = ".".join((*path, key))
    objective = next((name for name, cls in OBJECTIVES.items() if cls is model), None)
    if objective is not None and dotted in dotted_keys(RunConfig):
        own = [name for name in model.model_fields if name not in TrainingSettings.model_fields and name != "objective"]
        return (
            f"{dotted} is not read by training.objective {objective!r}, whose own keys are "
            f"{', '.join(own) or 'none'}; leave it out"
        )
    return f"unknown key {dotted!r}; {_suggest(key, model, path)}"


def _section(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _suggest(key: str, model: type[BaseModel], path: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, list(model.model_fields), n=1, cutoff=0.6)
    if near:
        return f"did you mean {'.'.join((*path, near[0]))!r}?"
    elsewhere = [dotted for dotted in dotted_keys(RunConfig) if dotted.rsplit(".", 1)[-1] == key]
    if elsewhere:
        return f"did you mean {elsewhere[0]!r}?"
    return f"known keys of {'.'.join(path) or 'the top level'}: {', '.join(model.model_fields)}"


def dotted_keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> list[str]:
    """Every leaf key of the configuration, e.g. `training.lora.rank`; of `training` the keys of all objectives."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        section = _section(field)
        if (*path, name) == TRAINING:
            keys += [key for cls in OBJECTIVES.values() for key in dotted_keys(cls, TRAINING)]
        else:
            keys += dotted_keys(section, (*path, name)) if section else [".".join((*path, name))]
    return list(dict.fromkeys(keys))


def _explain(item: Any, origin: str) -> str:
    # The tag of a union is no part of the key that the user wrote.
    tags = {("training", 1): OBJECTIVES, ("judges", 2): JUDGES}
    parts = [part for i, part in enumerate(item["loc"]) if part not in tags.get((item["loc"][0], i), ())]
    where = ".".join(str(part) for part in parts) or "the configuration"
    message = str(item["msg"]).removeprefix("Value error, ")
    found = item.get("input")
    secret = not _SECRET.isdisjoint(parts[-1:])
    shown = f" (found {found!r})" if isinstance(found, str | int | float | bool) and not secret else ""
    return f"{origin}: {where}: {message}{shown}"


def _first_line(error: Exception) -> str:
    return str(error).strip().replace("\n", " ")[:160]
