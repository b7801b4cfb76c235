"""What is wrong with rows: which line, and why; 12 bytes each, as most of it repeats."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import orjson

from naysay.inputs.conversations import RowError
from naysay.inputs.readers import RawRow

_Reason = tuple[str, str, str, str]


class Doubts:
    """Why rows, or answers of rows, are not used; the same reason for the same line is kept once, as first given."""

    def __init__(self) -> None:
        self._lines = array("Q")
        self._codes = array("I")
        self._reasons: dict[_Reason, int] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: int, error: RowError) -> None:
        reason = (error.field, error.reason, error.detail, error.fix)
        self._lines.append(line)
        self._codes.append(self._reasons.setdefault(reason, len(self._reasons)))

    def update(self, other: "Doubts") -> None:
        new = [self._reasons.setdefault(reason, len(self._reasons)) for reason in other._reasons]
        self._lines.extend(other._lines)
        self._codes.extend(new[code] for code in other._codes)

    def by_reason(self) -> Counter[str]:
        names = [reason for _, reason, _, _ in self._reasons]
        return Counter(names[code] for code in self._codes)

    def lines(self) -> list[int]:
        """Each doubted line once, ascending."""
        return np.unique(np.frombuffer(self._lines, np.uint64)).tolist() if self._lines else []

    def entries(self, file: str, rows: Iterable[RawRow]) -> Iterator[dict[str, Any]]:
        """The entries of quarantine.jsonl, by line and reason. `rows` holds the doubted lines in ascending order."""
        reasons = list(self._reasons)
        order = iter(self._order().tolist())
        at = next(order, None)
        for raw in rows:
            value = _json_able(raw.value)
            while at is not None and self._lines[at] == raw.line:
                field, reason, detail, fix = reasons[self._codes[at]]
                yield {
                    "file": file,
                    "line": raw.line,
                    "field": field,
                    "reason": reason,
                    "detail": detail,
                    "fix": fix,
                    "row": value,
                }
                at = next(order, None)

    def first(self) -> tuple[int, str, str, str]:
        """(line, field, detail, fix) of the first entry."""
        reasons = list(self._reasons)
        at = int(self._order()[0])
        field, _, detail, fix = reasons[self._codes[at]]
        return self._lines[at], field, detail, fix

    def _order(self) -> np.ndarray:
        names = sorted({reason for _, reason, _, _ in self._reasons})
        place = np.array([names.index(reason) for _, reason, _, _ in self._reasons], dtype=np.uint8)
        codes, lines = np.frombuffer(self._codes, np.uint32), np.frombuffer(self._lines, np.uint64)
        return np.lexsort((place[codes], lines)) if len(self) else np.empty(0, np.int64)


def _json_able(value: Any) -> Any:
    """Parquet has types that JSON lacks (bytes, decimals): quarantine shows them as text, and so what orjson reads but
    does not write, some hundred lists within each other."""
    try:
        return orjson.loads(orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS))
    except TypeError:
        return str(value)
