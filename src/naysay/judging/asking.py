"""Asking an LLM judge: replies are kept by the digest of the request, so that nothing is paid for twice."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from naysay.artifacts.answer_log import AnswerLog
from naysay.artifacts.digests import digest_json
from naysay.clients.openai import ChatClient, ChatReply, ChatRequest
from naysay.errors import ServerError, StorageError
from naysay.modeling.progress import progress_bar


@dataclass(frozen=True, slots=True)
class Cost:
    """Requests that a server answered for a set of questions, and their tokens, whether now or in an earlier run.

    Requests whose answer had no text count as well, each time that they were asked. What the server never answered (an
    outage, a retry) is not counted.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    asked_now: int
    """Those of this run; the rest was kept from earlier ones."""


class LLMAsker:
    """A client with its log of answers."""

    def __init__(self, client: ChatClient, log: Path):
        self.client = client
        self.log = AnswerLog(log)
        self._keys: set[str] = set()
        self._asked_now = 0

    @property
    def cost(self) -> Cost:
        """Of all questions that were asked through this asker."""
        replies = [reply for key in self._keys for reply in self._logged(key)]
        return Cost(
            len(replies),
            sum(reply.prompt_tokens for reply in replies),
            sum(reply.completion_tokens for reply in replies),
            self._asked_now,
        )

    def ask(self, requests: Sequence[ChatRequest], *, name: str) -> list[ChatReply]:
        """Replies in the order of the requests; equal requests are asked once. Of a reply without text only the cost is
        kept: the next call asks for it again.

        Raises:
            ServerError: the server cannot be used, or refused every request for the same reason; replies until then are
                kept, and the next call goes on from them.
            StorageError: the log cannot be written.
        """
        # The server is part of the key: many of them call whatever they serve "default".
        server = [self.client.base_url, self.client.model]
        keys = [digest_json([*server, asdict(request)]) for request in requests]
        self._keys.update(keys)
        kept = {key: _kept(self.log.get(key)) for key in keys}
        found = {key: reply for key, reply in kept.items() if reply is not None}
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in found}
        ids = list(missing)
        with progress_bar(f"answers of {name}", len(ids), "answers") as advance:

            def keep(index: int, reply: ChatReply) -> None:
                found[ids[index]] = reply
                self._add(ids[index], reply)
                advance()

            if ids:
                self.client.ask(list(missing.values()), keep)
        self._require_usable(found.values())
        return [found[key] for key in keys]

    def _add(self, key: str, reply: ChatReply) -> None:
        if reply.refused:  # under a key of its own, where the next call does not look for an answer
            key = f"{key}/{sum(1 for _ in self._without_text(key))}"
        try:
            self.log.add(key, asdict(reply))
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                error.errno, f"{self.log.path}: cannot be written ({error.strerror}); choose another --out"
            ) from error
        self._asked_now += 1

    def _without_text(self, key: str) -> Iterator[ChatReply]:
        number = 0
        while (reply := _kept(self.log.get(f"{key}/{number}"))) is not None:
            yield reply
            number += 1

    def _logged(self, key: str) -> Iterator[ChatReply]:
        reply = _kept(self.log.get(key))
        yield from self._without_text(key)
        if reply is not None:
            yield reply

    def _require_usable(self, replies: Collection[ChatReply]) -> None:
        """Raises ServerError where no request was acceptable, all for the same reason: then it is not the requests."""
        reasons = {(reply.status, reply.refused) for reply in replies}
        if len(reasons) == 1 and all(reply.status for reply in replies):
            ((_, why),) = reasons
            raise ServerError(
                f"{self.client.base_url}: every request was refused ({len(replies):,}), all with {why}; choose a model "
                "or a server that takes such requests"
            )


def _kept(row: dict[str, Any] | None) -> ChatReply | None:
    """A row of the log as a reply; None where it is none, so that it is asked for again."""
    if row is None or not isinstance(row.get("text"), str):
        return None
    try:
        return ChatReply(**row)
    except TypeError:
        return None


def read_object(text: str, keys: Collection[str]) -> dict[str, Any] | None:
    """The last JSON object with all of `keys` in a reply, which may stand among words, in a code fence or behind the
    model's thinking (`<think>...</think>`, the first mark of which some servers leave out). None where there is none.
    """
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    decoder, start, last = json.JSONDecoder(), text.find("{"), None
    while start >= 0:
        end = start + 1
        try:
            found, after = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            found, after = None, end
        if isinstance(found, dict) and found.keys() >= set(keys):
            last, end = found, after
        start = text.find("{", end)
    return last
