"""The only place where text becomes tokens.

The prompt's ids are exactly what inference will see; a response's ids are appended to them, never re-split together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from naysay.config.model import ModelConfig
from naysay.errors import ConversationError, InputNotFoundError, ModelError
from naysay.records import Message

_SENTINEL = "naysay"
ContentForm = Literal["text", "parts"]
"""How a chat template takes the content of a message: as text, or as a list of parts, `[{"type": "text", "text": ...}]`
(Llama Guard 3 1B)."""


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation up to and including the generation prompt.

    Control tokens inside the messages are encoded as plain text, so that untrusted text cannot open or end a turn.

    Raises:
        ModelError: the tokenizer has no chat template.
        ConversationError: the template refuses these messages.
    """
    require_chat_template(tokenizer)
    try:
        return list(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=True,
                return_dict=False,
                sanitize_control_tokens=True,
            )
        )
    except _template_errors() as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ConversationError(f"the model's chat template refuses the roles [{roles}]: {error}") from error


def encode_for_judge(
    tokenizer: Any, messages: Sequence[Message], *, form: ContentForm = "text", **arguments: Any
) -> list[int]:
    """Ids of a whole conversation, its answer included, as a model that judges it wants to see it.

    `arguments` go to the chat template (what a guard's own template asks for, or a `chat_template` in its place).
    Control tokens inside the messages are encoded as plain text.

    Raises:
        ConversationError: the template refuses these messages.
    """
    turns = _turns(messages, form)
    try:
        return list(tokenizer.apply_chat_template(turns, return_dict=False, sanitize_control_tokens=True, **arguments))
    except _template_errors() as error:
        raise ConversationError(f"the judge's chat template refuses this conversation: {error}") from error


def content_form(tokenizer: Any, **arguments: Any) -> ContentForm:
    """The form in which a judge's chat template shows both a prompt and its answer.

    A template that does not know a form may leave the text out without a word, and the judge would then judge nothing.

    Args:
        arguments: those of `encode_for_judge`.

    Raises:
        ModelError: there is no template, or it shows them in neither form.
    """
    name = getattr(tokenizer, "name_or_path", "") or "this judge"
    fix = "give the model with the chat template that its makers published"
    if not (getattr(tokenizer, "chat_template", None) or arguments.get("chat_template")):
        raise ModelError(
            f"{name}: its tokenizer has no chat template, so what the judge would read is undefined; {fix}"
        )
    shown = [f"{_SENTINEL}{name}" for name in ("prompt", "answer")]
    messages: list[Message] = [{"role": "user", "content": shown[0]}, {"role": "assistant", "content": shown[1]}]
    why = "it leaves them out"
    forms: tuple[ContentForm, ...] = ("text", "parts")
    for form in forms:
        try:
            text = tokenizer.apply_chat_template(_turns(messages, form), tokenize=False, **arguments)
        except _template_errors() as error:
            why = " ".join(str(error).split())[:160]
            continue
        if all(part in text for part in shown):
            return form
    raise ModelError(
        f"{name}: expected a chat template that shows a prompt and its answer, found one that does not ({why}); {fix}"
    )


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Ids of a text or a pair, and for each the number of the text that it belongs to, where the tokenizer says so."""

    ids: list[int]
    type_ids: list[int] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def encode_texts(tokenizer: Any, *texts: str) -> EncodedTexts:
    """A text, or a pair of texts, with the special tokens that the tokenizer puts around them.

    Control tokens inside the texts are encoded as plain text.
    """
    found = tokenizer(*texts, split_special_tokens=True)
    types = found.get("token_type_ids")
    return EncodedTexts(list(found["input_ids"]), None if types is None else list(types))


def encode_response(tokenizer: Any, text: str, *, ended: bool) -> list[int]:
    """Ids of an answer; the end-of-turn token follows where it ended by itself (`ended`), not where it was cut off."""
    ids = list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    return [*ids, end_of_turn_id(tokenizer)] if ended else ids


def decode_response(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Text of sampled ids, without the end-of-turn token."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=True)


def end_of_turn_id(tokenizer: Any) -> int:
    """The token that the template writes after an assistant's answer, or the tokenizer's EOS where it writes none."""
    require_chat_template(tokenizer)
    return _remember("end", tokenizer, _find_end_of_turn)


def require_chat_template(tokenizer: Any) -> None:
    """Raises ModelError where the tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or "this model"
        raise ModelError(
            f"{name}: its tokenizer has no chat template, so a prompt's tokens are undefined; "
            "set model.chat_template to a Jinja file (--set model.chat_template=chat.jinja)"
        )


def template_file(model: ModelConfig) -> dict[str, Path]:
    """`{"chat_template": path}` where `model.chat_template` is set: a file that every stage with a tokenizer reads.

    Raises:
        InputNotFoundError: there is no such file.
    """
    if model.chat_template is None:
        return {}
    path = Path(model.chat_template).expanduser()
    if not path.is_file():
        raise InputNotFoundError(f"model.chat_template: {path}: no such file; give the path of a Jinja file")
    return {"chat_template": path}


def with_instruction(tokenizer: Any, messages: Sequence[Message], instruction: str) -> list[Message]:
    """Put an instruction in front of a conversation: into its system message where the template knows one, else
    before the first user turn. An empty instruction changes nothing."""
    if not instruction:
        return list(messages)
    if supports_system(tokenizer):
        first, *rest = messages
        if first["role"] == "system":
            return [{"role": "system", "content": f"{first['content']}\n\n{instruction}"}, *rest]
        return [{"role": "system", "content": instruction}, *messages]
    at = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
    turn = messages[at]
    with_it = {"role": turn["role"], "content": f"{instruction}\n\n{turn['content']}"}
    return [*messages[:at], with_it, *messages[at + 1 :]]


def supports_system(tokenizer: Any) -> bool:
    """Whether the chat template shows a system message."""
    require_chat_template(tokenizer)
    return _remember("system", tokenizer, _find_system)


def token_counter(model: ModelConfig) -> Callable[[Sequence[Message], str], int]:
    """A function that counts the tokens of a prompt plus its answer (end-of-turn included).

    The tokenizer is loaded at the first call.
    """
    from naysay.modeling.loading import load_tokenizer

    @cache
    def tokenizer() -> Any:
        return load_tokenizer(model)

    def count(messages: Sequence[Message], answer: str) -> int:
        return len(encode_prompt(tokenizer(), messages)) + len(encode_response(tokenizer(), answer, ended=True))

    return count


# Facts of each tokenizer, forgotten with it; its template may be replaced, so that is part of the key.
_facts: WeakKeyDictionary[Any, dict[tuple[str, str], Any]] = WeakKeyDictionary()


def _remember(kind: str, tokenizer: Any, compute: Callable[[Any], Any]) -> Any:
    facts = _facts.setdefault(tokenizer, {})
    key = (kind, str(tokenizer.chat_template))
    if key not in facts:
        facts[key] = compute(tokenizer)
    return facts[key]


def _find_end_of_turn(tokenizer: Any) -> int:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _SENTINEL}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    tail = tokenizer(text.rpartition(_SENTINEL)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    found = next((token for token in tail if token in special), tokenizer.eos_token_id)
    if found is None:
        raise ModelError(
            "the tokenizer has no EOS token and its chat template ends an answer with none; "
            "set an eos_token in tokenizer_config.json"
        )
    return int(found)


def _find_system(tokenizer: Any) -> bool:
    messages = [{"role": "system", "content": _SENTINEL}, {"role": "user", "content": "x"}]
    try:
        return _SENTINEL in tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except _template_errors():
        return False


def _turns(messages: Sequence[Message], form: ContentForm) -> list[dict[str, Any]]:
    if form == "text":
        return [dict(message) for message in messages]
    return [
        {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]} for message in messages
    ]


def _template_errors() -> tuple[type[Exception], ...]:
    from jinja2.exceptions import TemplateError

    return (TemplateError, ValueError, TypeError, KeyError)
