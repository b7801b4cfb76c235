"""One client for every OpenAI-compatible server: bounded concurrency, retries with back-off, tokens counted.

The package `openai` does the requests and the retries (429, 5xx and lost connections, with exponential back-off and the
server's Retry-After); it shares its HTTP stack with huggingface_hub, so the extra is small.
"""

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from naysay.config.judging import check_base_url
from naysay.errors import ConfigError, ServerError, missing_extra
from naysay.records import Message

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI, BadRequestError

_FIXES = {
    401: "set the environment variable {env} to a valid key",
    403: "use a key that may ask this model",
    404: "check base_url (it usually ends in /v1) and the model's name",
    429: "wait, or lower concurrency; answers so far are kept, run the same command again",
}
_ITEM_ERRORS = (400, 413, 422)
"""Statuses that speak of one request (too long, filtered): it has no answer, the others go on."""

_LIMITS = ("max_tokens", "max_completion_tokens")
"""What servers call the most tokens of an answer; OpenAI's newer models refuse the first name, most others know no
second."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to the model."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What the server answered, and its cost in tokens. `refused` says why there is no text: the request itself was not
    acceptable, or the answer was not a chat completion. `status` is then the HTTP status of a refused request."""

    text: str = ""
    refused: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0


class ChatClient:
    """Asks one model at one server.

    Example: `ChatClient("http://localhost:8000/v1", "qwen", key_env=None).ask(requests, on_reply=keep)`.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_env: str | None = None,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 120.0,
    ):
        """`key_env` is the *name* of the environment variable that holds the key; None for servers without one.

        Raises:
            ConfigError: the variable is not set or holds no key, the address is none, or the package `openai` is not
                installed.
        """
        try:
            self.base_url = check_base_url(base_url).rstrip("/")
        except ValueError as error:
            raise ConfigError(f"base_url: {error}") from None
        self.model, self.key_env = model, key_env
        self.concurrency, self.retries, self.timeout = concurrency, retries, timeout
        require_openai()
        self._key = read_key(key_env)
        self._limit = _LIMITS[0]

    def ask(self, requests: Sequence[ChatRequest], on_reply: Callable[[int, ChatReply], None]) -> None:
        """Ask all; `on_reply(index, reply)` is called as replies come in, so that they can be kept at once.

        Raises:
            ServerError: the server cannot be used, after the retries. Replies until then were handed on.
            Exception: whatever `on_reply` raised first; nothing more is then asked.
        """
        asyncio.run(self._ask_all(requests, on_reply))

    async def _ask_all(self, requests: Sequence[ChatRequest], on_reply: Callable[[int, ChatReply], None]) -> None:
        from openai import AsyncOpenAI

        gate = asyncio.Semaphore(self.concurrency)
        async with AsyncOpenAI(
            api_key=self._key, base_url=self.base_url, max_retries=self.retries, timeout=self.timeout
        ) as client:

            async def one(index: int) -> None:
                async with gate:
                    on_reply(index, await self._ask_one(client, requests[index]))

            try:
                async with asyncio.TaskGroup() as group:
                    for index in range(len(requests)):
                        group.create_task(one(index))
            except BaseExceptionGroup as failures:
                # The first one says what is wrong; a group would hide its kind from whoever explains it.
                raise _first(failures) from None

    async def _ask_one(self, client: "AsyncOpenAI", request: ChatRequest) -> ChatReply:
        import openai

        try:
            return _reply(await self._complete(client, request))
        except openai.APIStatusError as error:
            if error.status_code in _ITEM_ERRORS:
                return ChatReply(refused=_status(error), status=error.status_code)
            fix = _FIXES.get(error.status_code, "see the server's log; answers so far are kept, run it again")
            fix = fix.format(env=self.key_env or "that key_env names")
            raise ServerError(f"{self.base_url}: {_status(error)}; {fix}") from error
        except openai.APIConnectionError as error:
            raise ServerError(
                f"{self.base_url}: no answer ({_line(error)}); check base_url and that the server runs; answers so far "
                "are kept, run the same command again"
            ) from error
        except (openai.OpenAIError, ValueError, RecursionError) as error:  # not JSON, or nested without an end
            return ChatReply(refused=f"not a chat completion: {_line(error)}")

    async def _complete(self, client: "AsyncOpenAI", request: ChatRequest) -> Any:
        """The answer to one request, asked with the other name of the token limit where the server refuses ours."""
        import openai

        limit = self._limit
        try:
            return await self._create(client, request, limit)
        except openai.BadRequestError as error:
            if limit != _LIMITS[0] or not _wants_other_limit(error):
                raise
        answer = await self._create(client, request, _LIMITS[1])
        self._limit = _LIMITS[1]  # it was the name, so that the others need not be refused first
        return answer

    async def _create(self, client: "AsyncOpenAI", request: ChatRequest, limit: str) -> Any:
        messages: Any = [dict(message) for message in request.messages]
        tokens: Any = {limit: request.max_tokens}
        return await client.chat.completions.create(
            model=self.model, messages=messages, temperature=request.temperature, **tokens
        )


def require_openai() -> None:
    """Raises ConfigError where the package `openai` is not installed."""
    import importlib.util

    if importlib.util.find_spec("openai") is None:
        raise ConfigError(f"an LLM judge needs the package openai; {missing_extra('api')}")


def read_key(key_env: str | None) -> str:
    """The key in the environment variable of this name; the word `none` for servers that take no key.

    Raises:
        ConfigError: the variable is not set, or holds what cannot stand in a header.
    """
    if key_env is None:
        return "none"
    key = os.environ.get(key_env, "").strip()
    if not key:
        raise ConfigError(f"key_env: the environment variable {key_env} is not set; set it to the server's API key")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"key_env: expected printable ASCII letters in the environment variable {key_env}, found others; set it to "
            "the key alone"
        )
    return key


def _reply(answer: Any) -> ChatReply:
    """The reply in an answer of whatever shape: the package `openai` checks none of it."""
    usage = getattr(answer, "usage", None)
    tokens = [_count(getattr(usage, name, 0)) for name in ("prompt_tokens", "completion_tokens")]
    try:
        text = answer.choices[0].message.content
    except (AttributeError, LookupError, TypeError):
        return ChatReply("", "not a chat completion: no message in its first choice", *tokens)
    if text is None or text == "":
        return ChatReply("", "the server sent no text", *tokens)
    if not isinstance(text, str):
        return ChatReply("", f"not a chat completion: expected text, found {type(text).__name__}", *tokens)
    # JSON may hold half of a surrogate pair, which no file in UTF-8 can.
    return ChatReply(text.encode("utf-8", "replace").decode("utf-8"), "", *tokens)


def _count(tokens: Any) -> int:
    """A number of tokens; 0 where the server says something else."""
    known = isinstance(tokens, int | float) and not isinstance(tokens, bool) and math.isfinite(tokens) and tokens > 0
    return int(tokens) if known else 0


def _wants_other_limit(error: "BadRequestError") -> bool:
    said = str(error).lower()
    refused = "unsupported" in said or "not supported" in said
    return _LIMITS[1] in said or (refused and _LIMITS[0] in said)


def _first(failures: BaseExceptionGroup) -> BaseException:
    found: BaseException = failures
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _status(error: "APIStatusError") -> str:
    detail = _line(error).removeprefix(f"Error code: {error.status_code}").strip(" -")
    return f"status {error.status_code}: {detail}".rstrip(": ")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
