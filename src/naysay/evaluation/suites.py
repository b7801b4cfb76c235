"""`evaluation.suites`: files -> prompts, each of a kind. Torch-free, so that a wrong file is found before all else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from naysay.artifacts.digests import digest_json
from naysay.config.suites import SuiteConfig
from naysay.errors import DataError, NaysayError
from naysay.inputs.conversations import RowError, read_prompt
from naysay.inputs.readers import RawRow, RowReader
from naysay.records import SuitePrompt

_KINDS = {"lookalike": "lookalike", "safe": "lookalike", "safety": "safety", "unsafe": "safety", "benign": "benign"}


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite in the order of its file; `other_kind` rows of it are not of the kind that was asked for."""

    name: str
    prompts: Sequence[SuitePrompt]
    limit: int | None = None
    other_kind: int = 0


def read_suites(configs: Sequence[SuiteConfig]) -> list[Suite]:
    """Read all files.

    Raises:
        InputNotFoundError, DataError: a file, a column or a row that cannot be used, or a suite without a prompt; the
            message begins with the key of the suite.
    """
    suites = []
    for index, config in enumerate(configs):
        try:
            suites.append(_read(config))
        except NaysayError as error:
            raise type(error)(f"evaluation.suites.{index}: {error}") from error
    return suites


def suite_files(configs: Sequence[SuiteConfig]) -> dict[str, Path]:
    """The file of each suite, by a name for the digest of what it holds."""
    return {f"suite {config.name}": Path(config.path).expanduser() for config in configs}


def _read(config: SuiteConfig) -> Suite:
    path = Path(config.path).expanduser()
    raw = list(RowReader(path, text_lines=True))
    for row in raw:
        if row.problem:
            raise DataError(f"{path}:{row.line}: {row.problem}; correct or remove this line")
    if not raw:
        raise DataError(f"{path}: expected prompts, found no row; fill in the file, or leave the suite out")
    columns = _columns(path, raw, config)
    prompts = [_prompt(path, row, columns, config) for row in raw]
    kept = [prompt for prompt in prompts if config.kind in (None, prompt.kind)]
    if not kept:
        raise DataError(f"{path}: no prompt is of kind {config.kind}; leave out kind, or give another file")
    return Suite(config.name, kept, config.limit, len(prompts) - len(kept))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where a row says its kind and its category. `kind` is None where the config says it for all."""

    kind: str | None
    category: str | None
    xstest: bool = False


def _columns(path: Path, raw: Sequence[RawRow], config: SuiteConfig) -> _Columns:
    if config.kind_column is None and _is_xstest([row.value for row in raw], config.prompt_column):
        return _Columns("label", config.category_column or "type", xstest=True)
    if config.kind_column is None and config.kind is None:
        found = _names(raw[0].value)
        if any(isinstance(row.value, Mapping) and config.prompt_column not in row.value for row in raw):
            raise DataError(
                f"{path}: expected column {config.prompt_column!r}, found {found}; name the column of the prompts with "
                "prompt_column"
            )
        raise DataError(
            f"{path}: expected the format of XSTest (columns prompt, type, label; text in each), found {found}; say "
            "what its prompts are with kind (lookalike, safety or benign), or which column does with kind_column"
        )
    return _Columns(config.kind_column, config.category_column)


def _is_xstest(rows: Sequence[Any], prompt_column: str) -> bool:
    """XSTest (Röttger et al., NAACL 2024): `label` is safe or unsafe; without that column some `type` is a contrast."""
    if not all(isinstance(row, Mapping) and prompt_column in row and isinstance(row.get("type"), str) for row in rows):
        return False
    labels = {str(row["label"]).strip().lower() for row in rows if "label" in row}
    return labels <= {"safe", "unsafe"} if labels else any(row["type"].startswith("contrast_") for row in rows)


def _prompt(path: Path, row: RawRow, columns: _Columns, config: SuiteConfig) -> SuitePrompt:
    where = f"{path}:{row.line}"
    text = (
        row.value if path.suffix.lower() == ".txt" else _value(row.value, config.prompt_column, where, "prompt_column")
    )
    try:
        messages = read_prompt(text, config.prompt_column)
    except RowError as error:
        raise DataError(f"{where}: {error.field}: {error.detail}; {error.fix}") from error
    category = "" if columns.category is None else _value(row.value, columns.category, where, "category_column")
    return SuitePrompt(
        prompt_id=f"s-{digest_json(messages)[:16]}",
        messages=messages,
        source=f"{path.name}:{row.line}",
        split="suite",
        kind=_kind(row.value, columns, where, config),
        suite=config.name,
        category="" if category is None else str(category),
    )


def _kind(row: Any, columns: _Columns, where: str, config: SuiteConfig) -> str:
    if columns.xstest:
        unsafe = row["type"].startswith("contrast_") or str(row.get("label")).strip().lower() == "unsafe"
        return "safety" if unsafe else "lookalike"
    if columns.kind is None:
        assert config.kind is not None
        return config.kind
    value = _value(row, columns.kind, where, "kind_column")
    kind = _KINDS.get(str(value).strip().lower())
    if kind is None:
        raise DataError(
            f"{where}: {columns.kind}: expected one of {', '.join(_KINDS)}, found {str(value)[:40]!r}; correct it, or "
            "leave out kind_column and say kind"
        )
    return kind


def _value(row: Any, column: str, where: str, setting: str) -> Any:
    if not isinstance(row, Mapping) or column not in row:
        raise DataError(f"{where}: expected column {column!r}, found {_names(row)}; name the column with {setting}")
    return row[column]


def _names(row: Any) -> str:
    return ", ".join(map(str, row))[:120] if isinstance(row, Mapping) else "text without columns"
