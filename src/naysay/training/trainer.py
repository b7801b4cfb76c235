"""`D2OTrainer`: a thin subclass of transformers.Trainer.

Logging, trackers, schedulers, accumulation, checkpoints, resume, DDP, FSDP, DeepSpeed and hub upload are the Trainer's.
What is replaced is the forward and backward of a step: prompts shared by their answers, micro-batches under a token
budget, and the exact denominator (pairs of the whole optimizer step over all ranks and micro-batches).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, set_seed

from naysay.core.groups import D2OTerms, GroupLogps
from naysay.core.objective import d2o_loss
from naysay.errors import ConfigError, DataError, InputNotFoundError, ModelError, NonFiniteLossError
from naysay.modeling.adapters import add_adapter
from naysay.modeling.forward import enable_group_forward, response_logps, token_budget
from naysay.modeling.loading import refuse_dropout
from naysay.training.checkpoints import check_references, last_complete, mark_complete
from naysay.training.config import D2OConfig
from naysay.training.data import (
    EncodedGroup,
    EncodingCounts,
    GroupDataset,
    GroupSampler,
    collate_groups,
    encode_rows,
    token_groups,
)
from naysay.training.metrics import StepMetrics
from naysay.training.references import Reference, ReferencePair, add_reference_logps
from naysay.training.step import Batch, Work, group_logps, plan_work, token_counts

Rows = Sequence[Mapping[str, Any]]


class D2OTrainer(Trainer):
    """Trains a causal LM with Distributional Dispreference Optimization.

    Example:
        trainer = D2OTrainer(model=model, args=D2OConfig(output_dir="out"), train_dataset=rows,
                             processing_class=tokenizer, peft_config=LoraConfig(target_modules="all-linear"))
        trainer.train()

    Args:
        model: a causal LM or a peft model. As it is now it is the initial policy and, by default, both references.
        args: a D2OConfig.
        train_dataset: rows with `prompt`, `rejected` (one or a list) and `anchors` (texts or token ids, see
            `naysay.sample_anchors`): a list or a `datasets.Dataset`.
        eval_dataset: rows of the same kind, for `evaluate()`.
        processing_class: the tokenizer.
        peft_config: the adapter to train; None trains what requires a gradient in `model`.
        reference_positive: r⁺, the policy under the negatives.
        reference_negative: r⁻, the policy under the anchors.
        **kwargs: passed to transformers.Trainer (callbacks, optimizers, ...).

    Raises:
        DataError: rows without a prompt, negatives or anchors.
        ModelError: no chat template, dropout above 0, or not a causal LM.
    """

    # Declared by the Trainer as what its callers may pass; here they are known.
    args: D2OConfig
    model: nn.Module
    train_dataset: GroupDataset

    def __init__(
        self,
        model: Any,
        args: D2OConfig | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        reference_positive: nn.Module | Reference | None = None,
        reference_negative: nn.Module | Reference | None = None,
        **kwargs: Any,
    ):
        args = args or D2OConfig(output_dir="d2o_output")
        if processing_class is None:
            raise ModelError("D2OTrainer: expected processing_class=tokenizer (with a chat template), found None")
        _check_arguments(model, args, peft_config)
        refuse_dropout(model)
        if getattr(peft_config, "lora_dropout", 0):
            raise ModelError(f"dropout must be 0, found lora_dropout={peft_config.lora_dropout}; set lora_dropout=0.0")
        self.encoding_counts: dict[str, EncodingCounts] = {}
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or args.max_length
        longest = min(args.max_length, context)
        train = self._encode("train", train_dataset, processing_class, longest)
        evaluation = self._encode("eval", eval_dataset, processing_class, longest)
        initial = Reference.of(model.to(args.device), processing_class)
        references = ReferencePair(
            negative=_as_reference(reference_negative, initial, processing_class),
            positive=_as_reference(reference_positive, initial, processing_class),
        )
        datasets = [
            None if groups is None else GroupDataset(_add_references(groups, references, args, processing_class))
            for groups in (train, evaluation)
        ]
        # Only the digests are kept: another model that served as a reference can be freed now.
        self.reference_digests = references.digests
        if peft_config is not None:
            set_seed(args.seed)
            model = add_adapter(model, peft_config)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ModelError(
                "D2OTrainer: no parameter of the model requires a gradient; pass a peft_config, or load the adapter "
                "with is_trainable=True"
            )
        enable_group_forward(model)
        self._metrics = StepMetrics()
        self._token_budget = token_budget(args.tokens_per_microbatch, args.device)
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_groups,
            train_dataset=datasets[0],
            eval_dataset=datasets[1],
            processing_class=processing_class,
            **kwargs,
        )

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> Any:
        """As transformers' own; `True` goes on from the newest complete checkpoint.

        Raises:
            ReferenceMismatchError: the checkpoint was trained against other references.
            NonFiniteLossError: the loss or the gradient is NaN or infinite; raised before the optimizer step.
            InputNotFoundError: `True`, and there is no complete checkpoint.
        """
        if resume_from_checkpoint is True:
            found = last_complete(_output_dir(self.args))
            if found is None:
                raise InputNotFoundError(
                    f"{self.args.output_dir}: no complete checkpoint to resume from; call train() without it"
                )
            resume_from_checkpoint = str(found)
        if resume_from_checkpoint:
            check_references(Path(resume_from_checkpoint), self.reference_digests)
        return super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of this rank's groups: gradients of Σ loss / (pairs of the whole optimizer step)."""
        model.train()
        self._metrics.start()
        batch = Batch(token_groups(inputs), self._prepare_inputs(inputs))
        pairs = num_items_in_batch if num_items_in_batch is not None else self._get_num_items_in_batch([inputs])
        scale = self.accelerator.num_processes / pairs
        whole, parts = plan_work(batch, self._token_budget)
        whole_count, part_count = self._most_of_all_ranks(len(whole), len(parts))
        # A rank that has less to do than another repeats a response with coefficient 0, so that all ranks run the
        # same collectives (FSDP gathers parameters in each forward).
        idle = Work((0,), (0,), idle=True)
        coefficients, losses = self._first_pass(model, batch, parts, [idle] * (part_count - len(parts)), scale)
        queue = [*whole, *[idle] * (whole_count - len(whole)), *parts, *[idle] * (part_count - len(parts))]
        for number, work in enumerate(queue):
            with self._synchronised(model, last=number == len(queue) - 1):
                logp_R = response_logps(model, work.tokens(batch), head_chunk=self.args.head_chunk)
                if work.responses is None:
                    loss = self._micro_loss(batch, work.members, logp_R) * scale
                    losses[work] = loss.detach()
                elif work in coefficients:
                    loss = (coefficients[work].to(logp_R.dtype) * logp_R).sum()
                else:
                    loss = logp_R.sum() * 0.0
                self.accelerator.backward(loss)
        self._stop_if_not_finite(batch, losses)
        return torch.stack(list(losses.values())).sum()

    def _first_pass(
        self, model: nn.Module, batch: Batch, parts: list[Work], idle: list[Work], scale: Any
    ) -> tuple[dict[Work, Tensor], dict[Work, Tensor]]:
        """Pass 1 of the groups that exceed the budget: dL/d(log-prob) of each response, without a graph.

        Pass 2 then back-propagates each part alone with the linear surrogate Σ coefficient · log-prob.
        """
        with torch.no_grad():
            found = [
                response_logps(model, work.tokens(batch), head_chunk=self.args.head_chunk) for work in [*parts, *idle]
            ]
        coefficients: dict[Work, Tensor] = {}
        losses: dict[Work, Tensor] = {}
        for member in dict.fromkeys(work.members[0] for work in parts):
            mine = [(work, logp) for work, logp in zip(parts, found, strict=False) if work.members[0] == member]
            logp_R = torch.cat([logp for _, logp in mine]).requires_grad_()
            loss = self._micro_loss(batch, (member,), logp_R) * scale
            (gradient_R,) = torch.autograd.grad(loss, logp_R)
            losses[mine[0][0]] = loss.detach()
            for (work, _), part in zip(mine, gradient_R.split([len(logp) for _, logp in mine]), strict=True):
                coefficients[work] = part
        return coefficients, losses

    def _micro_loss(self, batch: Batch, members: Sequence[int], logp_R: Tensor) -> Tensor:
        """Sum of the loss over the pairs of `members`; padding groups have weight 0. Adds to the step's metrics."""
        group = group_logps(batch, members, logp_R)
        terms = self.objective(group)
        weight_B = batch.tensors["weight"][list(members)].to(logp_R)
        if self.model.training:
            anchor_tokens, negative_tokens = token_counts(batch, members, logp_R)
            computed = sum(batch.lengths[i] for i in members)
            self._metrics.add(terms, weight_B, group, anchor_tokens, negative_tokens, computed)
        return (terms.loss * weight_B[:, None]).sum()

    def objective(self, group: GroupLogps) -> D2OTerms:
        """Per-pair terms of the loss; the place to override for another objective."""
        return d2o_loss(group, alpha=self.args.alpha, beta=self.args.beta)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Mean D²O loss over the pairs of a batch of evaluation groups."""
        batch = Batch(token_groups(inputs), self._prepare_inputs(inputs))
        whole, parts = plan_work(batch, self._token_budget)
        with torch.no_grad():
            logps = {
                work: response_logps(model, work.tokens(batch), head_chunk=self.args.head_chunk)
                for work in [*whole, *parts]
            }
            total = torch.stack(
                [self._micro_loss(batch, work.members, logps[work]) for work in whole] or [torch.zeros(())]
            ).sum()
            for member in dict.fromkeys(work.members[0] for work in parts):
                logp_R = torch.cat([logps[work] for work in parts if work.members[0] == member])
                total = total + self._micro_loss(batch, (member,), logp_R)
        return total / _pairs(inputs), None, None

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's, on the `eval_dataset` that the constructor was given.

        Raises:
            DataError: other rows are passed here: their reference log-probs were not computed.
        """
        if eval_dataset is not None and not isinstance(eval_dataset, GroupDataset):
            raise DataError("D2OTrainer.evaluate: pass the rows as eval_dataset to the constructor, which scores them")
        return super().evaluate(eval_dataset, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's, with margin, weight and the anchor and negative log-ratios apart."""
        if "loss" in logs:
            logs = {**logs, **self._metrics.flush(self._sum_over_ranks)}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """4N per token where few parameters train (LoRA needs no weight gradients of the rest), else 6N."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        tokens = inputs["prompt_ids"].numel() + inputs["response_ids"].numel()
        return (4 if trained < parameters / 2 else 6) * parameters * tokens

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupSampler:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        world = self.accelerator.num_processes
        multiple = world * self.args.per_device_train_batch_size if world > 1 else 1
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return GroupSampler(len(dataset), seed=seed, multiple=multiple)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any = None) -> Tensor:
        """Pairs of the whole optimizer step, over all micro-batches and ranks: the denominator of the loss."""
        pairs = sum((_pairs(batch) for batch in batch_samples), start=torch.zeros(()))
        return self._sum_over_ranks(pairs.to(self.args.device))

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise NonFiniteLossError(
                f"step {self.state.global_step + 1}: the gradient norm is {float(norm)}, stopped before the optimizer "
                "step; lower the learning rate, or use float32"
            )
        return norm

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            mark_complete(folder, self.reference_digests)

    def _encode(self, name: str, rows: Rows | None, tokenizer: Any, max_length: int) -> list[EncodedGroup] | None:
        if rows is None:
            return None
        groups, self.encoding_counts[name] = encode_rows(rows, tokenizer, max_length=max_length)
        return groups

    def _most_of_all_ranks(self, *counts: int) -> list[int]:
        if self.accelerator.num_processes == 1:
            return list(counts)
        mine = torch.tensor([counts], device=self.args.device)
        gathered: Any = self.accelerator.gather(mine)
        return gathered.amax(0).tolist()

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return value
        # float32: some backends have no float64.
        summed: Any = self.accelerator.reduce(value.to(self.args.device, torch.float32), reduction="sum")
        return summed.cpu()

    @contextmanager
    def _synchronised(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        """Gradients travel between ranks only with the last backward of the optimizer step."""
        state = self.accelerator.gradient_state
        if last or not state.sync_gradients:
            yield
            return
        state._set_sync_gradients(False)
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(True)

    def _stop_if_not_finite(self, batch: Batch, losses: Mapping[Work, Tensor]) -> None:
        finite = torch.isfinite(torch.stack(list(losses.values()))).tolist()
        bad = [work for work, good in zip(losses, finite, strict=True) if not good]
        if bad:
            rows = batch.tensors["row"].tolist()
            ids = ", ".join(self.train_dataset.groups[rows[i]].group_id for work in bad for i in work.members)
            raise NonFiniteLossError(
                f"step {self.state.global_step + 1}: the loss is not finite in group(s) {ids}; stopped before the "
                "optimizer step; look at these rows, lower the learning rate, or use float32"
            )


def _check_arguments(model: Any, args: Any, peft_config: Any) -> None:
    """What would fail late, or silently, is refused at the start."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"D2OTrainer: model: expected a loaded causal LM, found {type(model).__name__}; "
            "load it with AutoModelForCausalLM.from_pretrained(...)"
        )
    if not isinstance(args, D2OConfig):
        raise ConfigError(f"D2OTrainer: args: expected a D2OConfig, found {type(args).__name__}")
    if peft_config is not None and isinstance(model, PeftModel):
        raise ModelError(
            "D2OTrainer: the model has an adapter already, so a second one from peft_config would train against the "
            "wrong references; call merge_and_unload() on it first, or leave peft_config out to go on training it"
        )


def _add_references(
    groups: list[EncodedGroup], references: ReferencePair, args: D2OConfig, tokenizer: Any
) -> list[EncodedGroup]:
    return add_reference_logps(
        groups,
        references,
        tokenizer,
        cache_root=Path(args.reference_cache_dir or _output_dir(args) / "reference_cache"),
        tokens_per_microbatch=token_budget(args.tokens_per_microbatch, args.device),
        head_chunk=args.head_chunk,
        rank=args.process_index,
        world_size=args.world_size,
        barrier=_barrier,
    )


def _output_dir(args: D2OConfig) -> Path:
    return Path(args.output_dir or "d2o_output")


def _as_reference(given: nn.Module | Reference | None, initial: Reference, tokenizer: Any) -> Reference:
    if given is None:
        return initial
    return given if isinstance(given, Reference) else Reference.of(given, tokenizer)


def _pairs(inputs: Mapping[str, Tensor]) -> Tensor:
    return ((inputs["negative_index"] >= 0).sum(1) * inputs["weight"]).sum().cpu()


def _barrier() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
