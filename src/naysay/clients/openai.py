"""One client for every OpenAI-compatible server: bounded concurrency, retries with back-off, tokens counted.

The package `openai` does the requests and the retries (429, 5xx and lost connections, with exponential back-off and the
server's Retry-After); it shares its HTTP stack with huggingface_hub, so the extra is small.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from naysay.errors import ConfigError, ServerError
from naysay.records import Message

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_FIXES = {
    401: "set the environment variable {env} to a valid key",
    403: "use a key that may ask this model",
    404: "check base_url (it usually ends in /v1) and the model's name",
    429: "wait, or lower concurrency; answers so far are kept, run the same command again",
}
_ITEM_ERRORS = (400, 413, 422)
"""Statuses that speak of one request (too long, filtered): it has no answer, the others go on."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to the model."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What the server answered, and its cost in tokens. `refused` says why there is no text: the request itself was not
    acceptable, or the answer was not a chat completion."""

    text: str = ""
    refused: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


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
            ConfigError: the variable is not set, or the package `openai` is not installed.
        """
        self.base_url, self.model, self.key_env = base_url, model, key_env
        self.concurrency, self.retries, self.timeout = concurrency, retries, timeout
        require_openai()
        self._key = read_key(key_env)

    def ask(self, requests: Sequence[ChatRequest], on_reply: Callable[[int, ChatReply], None]) -> None:
        """Ask all; `on_reply(index, reply)` is called as replies come in, so that they can be kept at once.

        Raises:
            ServerError: the server cannot be used, after the retries. Replies until then were handed on.
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
            except* ServerError as failures:
                raise failures.exceptions[0] from None

    async def _ask_one(self, client: "AsyncOpenAI", request: ChatRequest) -> ChatReply:
        import openai

        messages: Any = [dict(message) for message in request.messages]
        try:
            answer = await client.chat.completions.create(
                model=self.model, messages=messages, max_tokens=request.max_tokens, temperature=request.temperature
            )
        except openai.APIStatusError as error:
            if error.status_code in _ITEM_ERRORS:
                return ChatReply(refused=_status(error))
            fix = _FIXES.get(error.status_code, "see the server's log; answers so far are kept, run it again")
            fix = fix.format(env=self.key_env or "that key_env names")
            raise ServerError(f"{self.base_url}: {_status(error)}; {fix}") from error
        except openai.APIConnectionError as error:
            raise ServerError(
                f"{self.base_url}: no answer ({_line(error)}); check base_url and that the server runs; answers so far "
                "are kept, run the same command again"
            ) from error
        except (openai.OpenAIError, ValueError) as error:  # an answer that is not JSON, or not a completion
            return ChatReply(refused=f"not a chat completion: {_line(error)}")
        return _reply(answer)


def require_openai() -> None:
    """Raises ConfigError where the package `openai` is not installed."""
    import importlib.util

    if importlib.util.find_spec("openai") is None:
        raise ConfigError("an LLM judge needs the package openai; run: pip install 'naysay[api]'")


def read_key(key_env: str | None) -> str:
    """The key in the environment variable of this name; the word `none` for servers that take no key.

    Raises:
        ConfigError: the variable is not set.
    """
    if key_env is None:
        return "none"
    key = os.environ.get(key_env, "")
    if not key:
        raise ConfigError(f"key_env: the environment variable {key_env} is not set; set it to the server's API key")
    return key


def _reply(answer: Any) -> ChatReply:
    usage = getattr(answer, "usage", None)
    tokens = (int(getattr(usage, name, 0) or 0) for name in ("prompt_tokens", "completion_tokens"))
    choices = getattr(answer, "choices", None)
    text = choices[0].message.content if choices else None
    if not text:
        return ChatReply("", "the server sent no text", *tokens)
    return ChatReply(text, "", *tokens)


def _status(error: "APIStatusError") -> str:
    detail = _line(error).removeprefix(f"Error code: {error.status_code}").strip(" -")
    return f"status {error.status_code}: {detail}".rstrip(": ")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
