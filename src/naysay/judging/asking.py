"""Asking an LLM judge: replies are kept by the digest of the request, so that nothing is paid for twice."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from naysay.artifacts.answer_log import AnswerLog
from naysay.artifacts.digests import digest_json
from naysay.clients.openai import ChatClient, ChatReply, ChatRequest
from naysay.modeling.progress import progress_bar


@dataclass(frozen=True, slots=True)
class Cost:
    """Requests and tokens that a set of answers took, whether now or in an earlier run."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    asked_now: int
    """Requests that this run made; the rest was kept from earlier ones."""


class LLMAsker:
    """A client with its log of answers. `cost` adds up over the calls."""

    def __init__(self, client: ChatClient, log: Path):
        self.client = client
        self.log = AnswerLog(log)
        self.cost = Cost(0, 0, 0, 0)

    def ask(self, requests: Sequence[ChatRequest], *, name: str) -> list[ChatReply]:
        """Replies in the order of the requests; equal requests are asked once. A reply without text is not kept: the
        next call asks for it again.

        Raises:
            ServerError: the server cannot be used; replies until then are kept, and the next call goes on from them.
        """
        keys = [digest_json([self.client.model, asdict(request)]) for request in requests]
        kept = {key: self.log.get(key) for key in keys}
        found = {key: ChatReply(**row) for key, row in kept.items() if row is not None}
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in found}
        ids = list(missing)
        with progress_bar(f"answers of {name}", len(ids), "answers") as advance:

            def keep(index: int, reply: ChatReply) -> None:
                found[ids[index]] = reply
                if not reply.refused:
                    self.log.add(ids[index], asdict(reply))
                advance()

            if ids:
                self.client.ask(list(missing.values()), keep)
        self.cost = Cost(
            self.cost.requests + len(found),
            self.cost.prompt_tokens + sum(reply.prompt_tokens for reply in found.values()),
            self.cost.completion_tokens + sum(reply.completion_tokens for reply in found.values()),
            self.cost.asked_now + len(ids),
        )
        return [found[key] for key in keys]


def read_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in a reply, which may stand among words or in a code fence; None where there is none."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(text, start)
        except ValueError:
            start = text.find("{", start + 1)
            continue
        return found if isinstance(found, dict) else None
    return None
