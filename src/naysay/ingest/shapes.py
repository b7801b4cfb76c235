"""Lines of one shape -> their texts, without parsing them one by one.

Most lines of a file differ in the texts of their values alone. Where such a text is written as `orjson` would write it,
its bytes are taken as they stand: quotation marks are found in a megabyte at a time, and what lies between the texts is
compared with a line that was parsed.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import orjson

from naysay.ingest.columns import Columns
from naysay.ingest.formats import PlainReader
from naysay.ingest.rows import UsualRows, slices
from naysay.inputs.readers import Lines

_QUOTE, _BACKSLASH, _SPACE, _DELETE = b'"\\ \x7f'
_KEPT_ESCAPES = np.zeros(256, dtype=bool)
"""What may follow a backslash: `\\u0041` would be written as `A`, and two backslashes need a second look."""
_KEPT_ESCAPES[[*b'"bfnrt']] = True
_MOST_SHAPES, _MOST_FAILURES, _ENOUGH_FAILURES = 8, 16, 64
"""At most so many shapes; so many lines of a chunk, and of all where no shape was found, are looked at in vain."""
_WORD = 8


class _Shape(NamedTuple):
    """What lines have in common.

    Attributes:
        quotes: how many quotation marks there are, but for those within a text.
        fixed: what is before the first text, between the texts and after the last one, with their quotation marks.
        opens: which quotation mark opens each text.
        wanted: which of the texts are the prompt, the rejected and the chosen answer (None: there is none).
        keys: the names of the columns.
    """

    quotes: int
    fixed: list[bytes]
    opens: list[int]
    wanted: tuple[int, int, int | None]
    keys: frozenset[str]


class Shapes:
    """Learns the shapes of lines from the lines that it gets.

    Args:
        columns, plain: what a row must be to be a usual one.
    """

    def __init__(self, columns: Columns, plain: PlainReader):
        self._names = tuple(columns.name(name) for name in ("prompt", "rejected", "chosen"))
        self._plain = plain
        self._shapes: list[_Shape] = []
        self._failures = 0

    @property
    def keys(self) -> frozenset[str]:
        """The columns of all lines that were found so far."""
        return frozenset[str]().union(*(shape.keys for shape in self._shapes))

    def find(self, lines: Lines) -> tuple[list[UsualRows], list[tuple[int, bytes]]]:
        """The usual rows of known shapes, and the other lines with their numbers."""
        if not self._shapes and self._failures >= _ENOUGH_FAILURES:  # say, each line has a number of its own
            return [], [(lines.first + at, lines[at]) for at in range(len(lines.ends))]
        text = _Text(lines)
        left = text.plain.copy()
        found = [text.take(shape, left) for shape in self._shapes]
        for shape in self._learn(text, left):
            found.append(text.take(shape, left))
        rows = [UsualRows(lines.first + at, *texts) for at, *texts in found if len(at)]
        return rows, [(lines.first + at, text.lines[at]) for at in np.flatnonzero(~text.taken).tolist()]

    def _learn(self, text: "_Text", left: np.ndarray) -> Iterator[_Shape]:
        """New shapes, each when the one before was taken out of `left`."""
        failures = 0
        while failures < _MOST_FAILURES and len(self._shapes) < _MOST_SHAPES and left.any():
            at = int(np.argmax(left))
            shape = self._shape(text.lines[at])
            if shape is None:
                failures += 1
                left[at] = False
            else:
                self._shapes.append(shape)
                yield shape
        self._failures += failures

    def _shape(self, line: bytes) -> _Shape | None:
        """The shape of a line; None where it is no usual row, or has more than texts that may change."""
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            return None
        if self._plain(row) is None:
            return None
        opens: dict[str, int] = {}
        at = 0
        for key, value in row.items():
            at += 2
            if type(value) is str:
                opens[key] = at
                at += 2
            elif value is not None and type(value) is not bool:
                return None
        marks = [at for at, byte in enumerate(line) if byte == _QUOTE and line[at - 1] != _BACKSLASH]
        if at != len(marks):  # a column that occurs twice
            return None
        ends = [0, *(marks[place + 1] for place in opens.values())]
        starts = [*(marks[place] + 1 for place in opens.values()), len(line)]
        places = {key: place for place, key in enumerate(opens)}
        prompt, rejected, chosen = self._names
        return _Shape(
            len(marks),
            [line[end:start] for end, start in zip(ends, starts, strict=True)],
            [*opens.values()],
            (places[prompt], places[rejected], places.get(chosen)),
            frozenset(row),
        )


class _Text:
    """Lines of JSON in one piece, and where their quotation marks are.

    Attributes:
        lines: the lines.
        plain: which lines surely have nothing in their texts that `orjson` would write otherwise.
        taken: which lines were taken.
    """

    def __init__(self, lines: Lines):
        self.lines = lines
        self._data = data = lines.data
        self._bytes = np.frombuffer(data, np.uint8)
        self._words = np.ndarray(max(len(data) - _WORD + 1, 0), dtype="<u8", buffer=data, strides=(1,))
        """Eight bytes from any place on."""
        self._starts = np.concatenate([[0], lines.ends])[:-1]
        # Of all but the last lines there are eight bytes from any place on.
        self.plain = lines.ends <= len(self._words)
        self.taken = np.zeros(len(lines.ends), dtype=bool)
        quotes = np.flatnonzero(self._bytes == _QUOTE)
        if b"\\" in data:
            escapes = np.flatnonzero(self._bytes == _BACKSLASH)
            self._not_plain(escapes[~_KEPT_ESCAPES[self._bytes.take(escapes + 1, mode="clip")]])
            # Where a line has no two backslashes in a row, each begins an escape.
            quotes = quotes[self._bytes[quotes - 1] != _BACKSLASH]
        # Each line has its line break, but the last one of a file perhaps.
        breaks = len(lines.ends) - (not data.endswith(b"\n"))
        if np.count_nonzero(self._bytes < _SPACE) != breaks:
            control = np.flatnonzero(self._bytes < _SPACE)
            after = self._bytes.take(control + 1, mode="clip")
            of_break = (self._bytes[control] == ord("\r")) & (after == ord("\n"))
            self._not_plain(control[(self._bytes[control] != ord("\n")) & ~of_break])
        if not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError:
                self._not_plain(np.flatnonzero(self._bytes > _DELETE))
        self._quotes = quotes
        self._first = np.searchsorted(quotes, self._starts)
        self._count = np.diff(self._first, append=len(quotes))

    def take(self, shape: _Shape, left: np.ndarray) -> tuple[np.ndarray, list[bytes], list[bytes], list[bytes]]:
        """Take the lines of a shape out of those that are `left`.

        Returns:
            which of the lines are usual rows; of each the prompt, the rejected and the chosen answer.
        """
        at = np.flatnonzero(left & (self._count == shape.quotes))
        first = self._first[at]
        opens = np.stack([self._quotes[first + place] for place in shape.opens])
        closes = np.stack([self._quotes[first + place + 1] for place in shape.opens])
        starts = np.concatenate([self._starts[at][None], closes])
        ends = np.concatenate([opens + 1, self.lines.ends[at][None]])
        lengths = np.array([len(fixed) for fixed in shape.fixed])
        same = np.flatnonzero((ends - starts == lengths[:, None]).all(axis=0))
        same = same[self._have(shape.fixed, starts[:, same])]
        left[at[same]] = False
        at, opens, closes = at[same], opens[:, same], closes[:, same]
        usual = np.ones(len(at), dtype=bool)
        wanted = [place for place in shape.wanted if place is not None]
        for place in wanted:
            usual[self._blank(opens[place], closes[place])] = False
        if len(wanted) == len(shape.wanted):
            _, rejected, chosen = wanted
            usual[self._equal(opens, closes, rejected, chosen)] = False
        at, opens, closes = at[usual], opens[:, usual], closes[:, usual]
        self.taken[at] = True
        prompts, rejected, chosen = (
            [b""] * len(at) if place is None else slices(self._data, opens[place], closes[place] + 1)
            for place in shape.wanted
        )
        return at, prompts, rejected, chosen

    def _not_plain(self, places: np.ndarray) -> None:
        self.plain[np.searchsorted(self.lines.ends, places, side="right")] = False

    def _have(self, fixed: Sequence[bytes], starts: np.ndarray) -> np.ndarray:
        """Which lines have these bytes from these places on."""
        same = np.ones(starts.shape[1], dtype=bool)
        for data, places in zip(fixed, starts, strict=True):
            for offset in range(0, len(data), _WORD):
                word = data[offset : offset + _WORD]
                mask = np.uint64((1 << (8 * len(word))) - 1)
                same &= self._words[places + offset] & mask == np.uint64(int.from_bytes(word, "little"))
        return same

    def _blank(self, opens: np.ndarray, closes: np.ndarray) -> list[int]:
        """The places of texts that are empty or white space alone."""
        # Most texts begin with a letter; the others have to be looked at.
        begin = self._bytes[opens + 1]
        unsure = np.flatnonzero((begin <= _QUOTE) | (begin == _BACKSLASH) | (begin >= _DELETE))
        texts = slices(self._data, opens[unsure], closes[unsure] + 1)
        return [at for at, text in zip(unsure.tolist(), texts, strict=True) if not orjson.loads(text).strip()]

    def _equal(self, opens: np.ndarray, closes: np.ndarray, one: int, other: int) -> list[int]:
        """The lines in which two texts are the same."""
        sizes = closes - opens
        maybe = np.flatnonzero(sizes[one] == sizes[other])
        texts = [slices(self._data, opens[place, maybe], closes[place, maybe]) for place in (one, other)]
        return [at for at, first, second in zip(maybe.tolist(), *texts, strict=True) if first == second]
