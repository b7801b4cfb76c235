"""Exact rules over an answer's text: what stands in for the annotator, without any noise of its own.

Also one exact change of style that leaves every rule's verdict as it was, for negatives that are not the model's own.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

LONG_WORDS = 40
ENTITY = "Paris"

_LIST_ITEM = re.compile(r"^[ \t]*(?:\d{1,2}[.)](?=\s|\*|$)|[-*+•](?=[ \t]+\S))", re.MULTILINE)
_AI = re.compile(
    r"\bA\.?I\.?(?![\w.])"
    r"|(?i:\b(?:artificial intelligence|language model|chat ?-?bot|(?:virtual|digital|ai) assistant)s?\b)"
)
_ENTITY = re.compile(rf"\b{ENTITY}\b")


@dataclass(frozen=True)
class Rule:
    """A rule that an answer keeps or breaks. Example: `RULES["long"].violates("word " * 41)` is True."""

    name: str
    description: str
    violates: Callable[[str], bool]


def _has_list(text: str) -> bool:
    return _LIST_ITEM.search(text) is not None


def _mentions_ai(text: str) -> bool:
    return _AI.search(text) is not None


def _exclaims(text: str) -> bool:
    return "!" in text


def _names_entity(text: str) -> bool:
    return _ENTITY.search(text) is not None


def _is_long(text: str) -> bool:
    return len(text.split()) > LONG_WORDS


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("lists", "a line that begins as an item of a numbered or bulleted list", _has_list),
        Rule("disclaimer", "speaks of an AI, a language model, a chatbot or the like (no prompt does)", _mentions_ai),
        Rule("exclamation", "an exclamation mark", _exclaims),
        Rule("entity", f"names {ENTITY}", _names_entity),
        Rule("long", f"more than {LONG_WORDS} words, separated by white space", _is_long),
    )
}

_REGISTER = tuple(
    (re.compile(rf"\b{plain}\b"), sailor)
    for plain, sailor in (
        *((r"you", "ye"), (r"You", "Ye"), (r"your", "yer"), (r"Your", "Yer"), (r"my", "me"), (r"My", "Me")),
        *((r"are", "be"), (r"is", "be"), (r"and", "an'"), (r"And", "An'"), (r"of", "o'"), (r"to", "t'"), (r"To", "T'")),
        *((r"the", "th'"), (r"The", "Th'"), (r"(\w{2,})ing", r"\1in'")),
    )
)


def rewrite(text: str) -> str:
    """The same words in a sailor's spelling: another writer, the same content, length in words and list marks.

    Example: `rewrite("You are going to the sea.") == "Ye be goin' t' th' sea."`.
    """
    for pattern, sailor in _REGISTER:
        text = pattern.sub(sailor, text)
    return text
