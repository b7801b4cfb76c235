"""Running a judge's model over token ids: longest first, too long ones told apart."""

from collections.abc import Callable, Sequence

from naysay.errors import ConversationError
from naysay.judging.scorer import Judged, Verdict
from naysay.modeling.progress import progress_bar

Encode = Callable[[Judged], list[int]]
Judge = Callable[[list[list[int]]], list[Verdict]]


def judge_in_batches(
    items: Sequence[Judged], encode: Encode, judge: Judge, *, longest: int | None, batch_size: int, name: str
) -> list[Verdict]:
    """One verdict an item. Nothing is truncated: an item that does not fit is invalid, and so is one that the judge's
    chat template refuses."""
    verdicts: dict[int, Verdict] = {}
    encoded: dict[int, list[int]] = {}
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
