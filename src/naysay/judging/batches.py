"""Running a judge's model over token ids: longest first, too long ones told apart."""

from collections.abc import Callable, Sequence, Sized
from typing import TypeVar

from naysay.errors import ConversationError
from naysay.judging.scorer import Judged, Verdict
from naysay.modeling.progress import progress_bar

Encoded = TypeVar("Encoded", bound=Sized)
"""The tokens of an item; its length is their number."""


def judge_in_batches(
    items: Sequence[Judged],
    encode: Callable[[Judged], Encoded],
    judge: Callable[[list[Encoded]], list[Verdict]],
    *,
    longest: int | None,
    batch_size: int,
    name: str,
) -> list[Verdict]:
    """One verdict an item. Nothing is truncated: an item that does not fit is invalid, and so is one that the judge's
    chat template refuses."""
    verdicts: dict[int, Verdict] = {}
    encoded: dict[int, Encoded] = {}
    for i, item in enumerate(items):
        try:
            ids = encode(item)
        except ConversationError as error:
            verdicts[i] = Verdict(invalid=str(error))
            continue
        if longest is not None and len(ids) > longest:
            verdicts[i] = Verdict(invalid=f"too long: {len(ids)} tokens, the judge reads {longest}")
        else:
            encoded[i] = ids
    order = sorted(encoded, key=lambda i: (-len(encoded[i]), i))
    with progress_bar(f"verdicts of {name}", len(order), "answers") as advance:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            verdicts.update(zip(batch, judge([encoded[i] for i in batch]), strict=True))
            advance(len(batch))
    return [verdicts[i] for i in range(len(items))]
