"""Which rank trains on which groups of an optimizer step, so that all ranks are done at about the same time."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Dealing:
    """How the data loader deals: batches of `groups` groups go round the `ranks`, and an optimizer step takes
    `accumulated` of them from each rank."""

    ranks: int
    groups: int
    accumulated: int = 1

    @property
    def step(self) -> int:
        """Groups of one optimizer step over all ranks."""
        return self.ranks * self.groups * self.accumulated


def deal_evenly(costs: Sequence[int], dealt: Dealing) -> list[int]:
    """The order in which the groups of one optimizer step are handed to the data loader.

    The dearest group first, each goes to the rank that has least and still has room (Graham's longest-processing-time
    rule, with equally many groups for each rank); a rank takes its dearest first, so that batches of like cost meet. A
    single group that costs more than a rank's share cannot be evened out.

    Args:
        costs: of each group, in any unit that adds up; as many as fill all batches.
        dealt: how the loader deals them.
    """
    room = len(costs) // dealt.ranks
    shares: list[list[int]] = [[] for _ in range(dealt.ranks)]
    least = [(0, rank) for rank in range(dealt.ranks)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        cost, rank = heapq.heappop(least)
        shares[rank].append(index)
        if len(shares[rank]) < room:
            heapq.heappush(least, (cost + costs[index], rank))
    return [
        i for start in range(0, room, dealt.groups) for share in shares for i in share[start : start + dealt.groups]
    ]
