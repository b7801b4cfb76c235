"""What `train` may not import: redrawing anchors with the sampler, and judging which of them to train on."""

import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_records
from naysay.config.run import RunConfig
from naysay.generation.anchors import draw_anchors
from naysay.generation.hf import HFSampler
from naysay.judging.select import score_anchor, select_anchors
from naysay.modeling.digests import policy_digest
from naysay.modeling.loading import load_tokenizer
from naysay.records import Anchor, Negative, Prompt


class RefreshedAnchors:
    """Draws as the stage `sample` does, from the policy as it is now, and keeps what the stage `score` would keep."""

    def __init__(self, config: RunConfig, run: RunDirectory):
        self.config, self.run = config, run

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.config.model)

    @cached_property
    def _prompts(self) -> dict[str, Prompt]:
        return {prompt.prompt_id: prompt for prompt in read_records(self.run.prompts, Prompt)}

    @cached_property
    def _negatives(self) -> dict[str, list[Negative]]:
        found: dict[str, list[Negative]] = {}
        for negative in read_records(self.run.negatives, Negative):
            found.setdefault(negative.prompt_id, []).append(negative)
        return found

    def draw(self, model: Any, slots: Sequence[tuple[str, int]], round: int) -> list[Anchor | None]:
        """One anchor for each (prompt id, index); None where a filter of `anchors.filters` drops it."""
        config = self.config
        with tempfile.TemporaryDirectory() as parts:
            anchors, _ = draw_anchors(
                HFSampler(model, self._tokenizer, policy_digest(model, self._tokenizer)),
                self._tokenizer,
                [(self._prompts[prompt_id], index) for prompt_id, index in slots],
                config.anchors,
                run_seed=config.seed,
                batch_size=config.sampling.batch_size,
                parts=Path(parts),
                max_length=config.model.max_length,
                rejected=self._negatives,
                round=round,
            )
        return [anchor if self._is_kept(anchor) else None for anchor in anchors]

    def _is_kept(self, anchor: Anchor) -> bool:
        negatives = self._negatives.get(anchor.prompt_id, [])
        return bool(select_anchors([anchor], negatives, [score_anchor(anchor)], self.config.anchors.filters).kept)
