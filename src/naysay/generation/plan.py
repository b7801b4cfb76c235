"""The batch plan: which rows are generated together, a function of the inputs alone.

The last bits of a logit depend on the shape of its batch, so the plan is fixed before the first batch and a resumed
run starts at a batch boundary: the same responses, bitwise, on the same kind of device.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from naysay.artifacts.digests import digest_json
from naysay.artifacts.store import read_jsonl, write_jsonl
from naysay.generation.sampler import Request, Response, Sampler, SamplingSettings
from naysay.modeling.progress import progress_bar

Row = TypeVar("Row")


def plan_batches(requests: Sequence[Request], batch_size: int) -> list[list[int]]:
    """Indices of the requests, batch by batch: longest prompts first, so that the worst batch comes first, and requests
    that share a prompt side by side, so that it is computed once."""
    order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt_ids), requests[i].prompt_ids, i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def plan_digest(requests: Sequence[Request], settings: SamplingSettings, batch_size: int) -> str:
    """Digest of all that decides the responses but the policy."""
    return digest_json([[asdict(request) for request in requests], asdict(settings), batch_size])


def draw(
    sampler: Sampler,
    requests: Sequence[Request],
    settings: SamplingSettings,
    *,
    batch_size: int,
    parts: Path,
    description: str,
    to_row: Callable[[int, Response], Any],
) -> list[Any]:
    """Draw all responses, one file a batch below `parts`; batches that are there already are read, not drawn again.

    Returns `to_row(i, response)` for each request, in the order of the requests, as read back from disk.
    """
    batches = plan_batches(requests, batch_size)
    rows: dict[int, Any] = {}
    finished = {number for number in range(len(batches)) if _part(parts, number).exists()}
    with progress_bar(description, len(requests), "answers", sum(len(batches[n]) for n in finished)) as advance:
        for number, batch in enumerate(batches):
            path = _part(parts, number)
            if number not in finished:
                responses = sampler.sample([requests[i] for i in batch], settings)
                write_jsonl(path, (to_row(i, response) for i, response in zip(batch, responses, strict=True)))
                advance(len(batch))
            rows.update(zip(batch, read_jsonl(path), strict=True))
    return [rows[i] for i in range(len(requests))]


def _part(parts: Path, number: int) -> Path:
    return parts / f"part-{number:05d}.jsonl"
