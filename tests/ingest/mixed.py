"""Rows of all kinds, always the same ones."""

import random
from collections.abc import Sequence
from typing import Any

from naysay.errors import ConversationError
from naysay.records import Message

WORDS = [
    first + last for first in ("ba", "ko", "Ü", "li", "mo", "ne", "ß", "tu") for last in ("ra", "s", "né", "7", "x")
]


def mixed_rows(count: int) -> list[Any]:
    """Duplicates, near-duplicates, contradictions, several answers, all columns, conversations, and bad rows."""
    draw = random.Random(5)
    rows: list[Any] = []

    def text(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))

    for number in range(count):
        row: dict[str, Any] = {"prompt": text(12), "rejected": text(6)}
        if draw.random() < 0.5:
            row["chosen"] = text(6)
        kind = draw.randrange(20)
        if kind == 0:
            row |= {"category": draw.choice(["insult", "fraud"]), "severity": number / 4, "annotators": 2}
        elif kind == 1:
            row |= {"split": draw.choice(["train", "dev", "heldout"]), "kind": draw.choice(["", "risky"])}
        elif kind == 2:
            row["rejected"] = [text(3), text(3), text(40)]
        elif kind == 3:
            row["chosen"] = row["rejected"]
        elif kind in (4, 5, 6) and number > 9:
            old = draw.choice([item for item in rows if isinstance(item, dict) and isinstance(item["prompt"], str)])
            row["prompt"] = old["prompt"] + ("" if kind == 4 else draw.choice([" please", "?", " ".join(WORDS[:2])]))
            row |= {"split": draw.choice(["train", "dev", "heldout"])} if draw.random() < 0.3 else {}
            row["rejected"] = draw.choice([old["rejected"], old.get("chosen") or "none", row["rejected"]])
        elif kind == 7:
            turns = [{"role": "user", "content": text(9)}, {"role": "assistant", "content": text(4)}]
            row["prompt"] = [*turns, {"role": "user", "content": text(9)}] if number % 2 else [*turns[:1], *turns[:1]]
        elif kind == 8:
            row |= {"system": 'Be "brief".\n', "finish": "length", "provenance": "log", "extra": number}
        elif kind == 9:
            row |= draw.choice([{"rejected": ""}, {"prompt": None}, {"severity": "x"}, {"split": "else"}])
        rows.append([number] if kind == 10 and number % 5 == 0 else row)
    return rows


def count_tokens(messages: Sequence[Message], text: str) -> int:
    """Words; a conversation of two user turns in a row is refused."""
    if [item["role"] for item in messages] == ["user", "user"]:
        raise ConversationError("roles must alternate")
    return sum(len(item["content"].split()) for item in messages) + len(text.split())
