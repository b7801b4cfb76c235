"""What the lab says of one claim."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim, and whether it holds in the enumerated world.

    `expected` is what the theory and earlier runs say. It is False for claims (of the paper, or that one would like to
    make) that the lab refutes; a finding that is not as expected means that the library or the theory is wrong.
    `numbers` holds JSON values only; `reading` says in a sentence what they mean.
    """

    claim: str
    statement: str
    holds: bool
    reading: str
    numbers: Mapping[str, Any]
    expected: bool = True

    @property
    def verdict(self) -> str:
        return "holds" if self.holds else "does not hold as stated"

    @property
    def as_expected(self) -> bool:
        return self.holds == self.expected

    def as_dict(self) -> dict[str, Any]:
        return {
            "claim": self.claim,
            "statement": self.statement,
            "verdict": self.verdict,
            "as_expected": self.as_expected,
            "reading": self.reading,
            "numbers": dict(self.numbers),
        }
