"""One value of a row -> messages and answers: plain text, role/content messages, from/value messages, transcripts."""

import re
from collections.abc import Sequence
from typing import Any

from naysay.inputs.readers import json_type

Messages = tuple[dict[str, str], ...]
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


class RowError(Exception):
    """One row cannot be used; the run goes on.

    `reason` is a short word that is counted, `detail` says what was expected and found, `fix` what to do about it.
    """

    def __init__(self, field: str, reason: str, detail: str, fix: str):
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.reason = reason
        self.detail = detail
        self.fix = fix


def read_text(value: Any, field: str) -> str:
    """A text that says something.

    Raises:
        RowError: missing, not text, or nothing but white space.
    """
    if value is None:
        raise RowError(field, "missing", f"expected {field}, found none", f"add {field} to the row or remove the row")
    if not isinstance(value, str):
        raise RowError(field, "wrong_type", f"expected text, found {json_type(value)}", f"make {field} a text")
    if not value.strip():
        raise RowError(field, "empty", "expected text, found an empty one", f"fill in {field} or remove the row")
    return value


def read_messages(value: Any, field: str) -> Messages:
    """A conversation: text is one message of the user; a list holds role/content (or from/value) messages.

    Raises:
        RowError: another type, an empty message or an unknown role.
    """
    if value is None or isinstance(value, str):
        return ({"role": "user", "content": read_text(value, field)},)
    if not isinstance(value, list):
        detail = f"expected text or a list of messages, found {json_type(value)}"
        raise RowError(field, "wrong_type", detail, 'write [{"role": "user", "content": "..."}]')
    if not value:
        raise RowError(field, "empty", "expected messages, found an empty list", f"fill in {field} or remove the row")
    return tuple(_read_message(item, f"{field}[{number}]") for number, item in enumerate(value))


def read_prompt(value: Any, field: str, system: str = "") -> Messages:
    """The conversation before the answer, `system` first where given.

    Raises:
        RowError: as `read_messages`; the last message is not the user's; two system messages.
    """
    return finish_prompt(read_messages(value, field), field, system)


def finish_prompt(messages: Messages, field: str, system: str) -> Messages:
    """Check that the user has the last word, and put the row's system message in front.

    Raises:
        RowError: the last message is not the user's; two system messages.
    """
    if not messages or messages[-1]["role"] != "user":
        found = f"one from {messages[-1]['role']}" if messages else "no message"
        detail = f"expected the last message before the answer to be from the user, found {found}"
        raise RowError(field, "last_message_not_user", detail, f"end {field} with the user's message")
    if not system:
        return messages
    if messages[0]["role"] == "system":
        detail = "expected one system message, found one in the conversation and one in its own column"
        raise RowError("system", "two_system_messages", detail, "remove one of them")
    return ({"role": "system", "content": system}, *messages)


def read_answers(value: Any, field: str, prompt: Sequence[dict[str, str]]) -> list[str]:
    """One answer or several: text, a message of the assistant, or a list of these.

    Messages that repeat `prompt` in front of the answer are taken off.

    Raises:
        RowError: another type, an empty answer, or a message that is not the assistant's.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return [read_text(value, field)]
    if not value:
        raise RowError(field, "empty", "expected an answer, found an empty list", f"fill in {field} or remove the row")
    if not all(isinstance(item, dict) for item in value):
        return [text for number, item in enumerate(value) for text in read_answers(item, f"{field}[{number}]", prompt)]
    messages = read_messages(value, field)
    spoken = [item for item in prompt if item["role"] != "system"]
    for repeated in (list(prompt), spoken):
        if repeated and len(messages) > len(repeated) and list(messages[: len(repeated)]) == repeated:
            messages = messages[len(repeated) :]
            break
    other = next((item["role"] for item in messages if item["role"] != "assistant"), None)
    if other is not None:
        detail = f"expected the assistant's answer to this prompt, found a message from {other}"
        raise RowError(field, "not_an_answer", detail, f"leave only the assistant's message in {field}")
    return [item["content"] for item in messages]


def split_conversation(value: Any, field: str) -> tuple[Messages, str]:
    """A whole conversation (messages or a transcript) -> the context and the last answer of the assistant.

    Raises:
        RowError: not a conversation, or it does not end with the assistant.
    """
    messages = _read_transcript(value, field) if isinstance(value, str) else read_messages(value, field)
    if messages[-1]["role"] != "assistant":
        detail = f"expected the last message to be the assistant's, found one from {messages[-1]['role']}"
        raise RowError(field, "no_answer", detail, f"end {field} with the assistant's answer")
    return messages[:-1], messages[-1]["content"]


def is_transcript(value: Any) -> bool:
    """Text in the way of HH-RLHF: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def is_conversation(value: Any) -> bool:
    """A list of messages, of which one is the user's: more than an answer."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return False
    return any(_ROLES.get(str(item.get("role", item.get("from")))) == "user" for item in value)


def _read_transcript(value: str, field: str) -> Messages:
    read_text(value, field)
    before, *parts = _TURN.split(value)
    if before.strip() or not parts:
        detail = 'expected a transcript "\\n\\nHuman: ...\\n\\nAssistant: ...", found text without these turns in front'
        raise RowError(field, "not_a_transcript", detail, f"begin {field} with \\n\\nHuman:")
    return tuple(
        {"role": _ROLES["human" if speaker == "Human" else "assistant"], "content": read_text(text.strip(), field)}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    )


def _read_message(item: Any, field: str) -> dict[str, str]:
    if not isinstance(item, dict):
        detail = f"expected a message (an object with role and content), found {json_type(item)}"
        raise RowError(field, "wrong_type", detail, 'write {"role": "user", "content": "..."}')
    name, content = ("from", "value") if "from" in item and "role" not in item else ("role", "content")
    role = read_text(item.get(name), f"{field}.{name}")
    if role not in _ROLES:
        detail = f"expected a role out of {', '.join(_ROLES)}, found {role!r}"
        raise RowError(f"{field}.{name}", "unknown_role", detail, "rename the role, or remove the message")
    return {"role": _ROLES[role], "content": read_text(item.get(content), f"{field}.{content}")}
