"""From rows to groups that can be trained on: encoded, fitted to the objective, with reference log-probs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from naysay.core.prefix import TokenGroup
from naysay.errors import ConfigError, DataError, ModelError
from naysay.modeling.forward import token_budget
from naysay.modeling.reference import score_groups
from naysay.training.config import D2OConfig
from naysay.training.data import EncodedGroup, EncodingCounts, check_vocabulary, encode_rows
from naysay.training.objectives import Objective
from naysay.training.other_answers import encode_normal_rows, fit_to_objective
from naysay.training.references import Reference, ReferencePair, add_reference_logps

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Preparation:
    """How rows become groups: the same for training, evaluation and normal data."""

    args: D2OConfig
    objective: Objective
    tokenizer: Any
    max_length: int
    vocabulary: int

    def encode(self, rows: Rows) -> tuple[list[EncodedGroup], EncodingCounts]:
        """Token ids of every row, with the answers that the objective reads.

        Raises:
            DataError: rows without what the objective needs, or token ids that the model does not have.
        """
        groups, counts = encode_rows(
            rows, self.tokenizer, max_length=self.max_length, chosen=self.objective.needs_chosen
        )
        check_vocabulary(groups, self.vocabulary)
        fitted = fit_to_objective(groups, self.objective, seed=self.args.seed, max_length=self.max_length)
        return fitted, counts

    def encode_normal(self, rows: Rows | None) -> list[EncodedGroup]:
        """Groups of normal data; none where the objective needs none.

        Raises:
            ConfigError: rows that the objective does not read.
            DataError: no rows, and the objective needs them.
        """
        if not self.objective.needs_normal:
            if rows is not None:
                raise ConfigError(f"normal_dataset is not read by objective {self.objective.name!r}; leave it out")
            return []
        if not rows:
            raise DataError(
                f"objective {self.objective.name} needs normal data: give benign rows with prompt and answers as "
                "normal_dataset"
            )
        return encode_normal_rows(rows, self.tokenizer, max_length=self.max_length)

    def add_references(self, groups: list[EncodedGroup], references: ReferencePair) -> list[EncodedGroup]:
        """The groups with log-probs under both references, through the cache; ranks share the work."""
        return add_reference_logps(
            groups,
            references,
            self.tokenizer,
            cache_root=cache_root(self.args),
            tokens_per_microbatch=token_budget(self.args.tokens_per_microbatch, self.args.device),
            head_chunk=self.args.head_chunk,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            barrier=_barrier,
        )

    def score(self, reference: Reference, groups: Sequence[TokenGroup]) -> list[dict[tuple[int, ...], float]]:
        """Sums of log-probs (nats) of each group's answers under a reference, through the cache."""
        with reference.open() as model:
            scored = score_groups(
                model,
                self.tokenizer,
                groups,
                cache_root=cache_root(self.args),
                tokens_per_microbatch=token_budget(self.args.tokens_per_microbatch, self.args.device),
                head_chunk=self.args.head_chunk,
                digest=reference.digest,
            )
        return [
            dict(zip(map(tuple, answers), values.logps, strict=True))
            for (_, answers), values in zip(groups, scored, strict=True)
        ]


def check_arguments(model: Any, args: Any, peft_config: Any) -> None:
    """What would fail late, or silently, is refused at the start."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"D2OTrainer: model: expected a loaded causal LM, found {type(model).__name__}; "
            "load it with AutoModelForCausalLM.from_pretrained(...)"
        )
    if not isinstance(args, D2OConfig):
        raise ConfigError(f"D2OTrainer: args: expected a D2OConfig, found {type(args).__name__}")
    if args.n_gpu > 1:
        raise ConfigError(
            f"D2OTrainer: expected one GPU a process, found {args.n_gpu}: nn.DataParallel would cut a prompt from its "
            "answers; start with `torchrun --nproc-per-node ...` or `accelerate launch`, or show one GPU "
            "(CUDA_VISIBLE_DEVICES=0)"
        )
    if peft_config is not None and isinstance(model, PeftModel):
        raise ModelError(
            "D2OTrainer: the model has an adapter already, so a second one from peft_config would train against the "
            "wrong references; call merge_and_unload() on it first, or leave peft_config out to go on training it"
        )


def cache_root(args: D2OConfig) -> Path:
    return Path(args.reference_cache_dir or output_dir(args) / "reference_cache")


def output_dir(args: D2OConfig) -> Path:
    return Path(args.output_dir or "d2o_output")


def as_reference(given: nn.Module | Reference | None, initial: Reference, tokenizer: Any) -> Reference:
    """What stands in a role: what was given, else the initial policy."""
    if given is None:
        return initial
    return given if isinstance(given, Reference) else Reference.of(given, tokenizer)


def _barrier() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
