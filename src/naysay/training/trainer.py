"""`D2OTrainer`: a thin subclass of transformers.Trainer.

Logging, trackers, schedulers, accumulation, checkpoints, resume, DDP, FSDP, DeepSpeed and hub upload are the Trainer's.
What is replaced is the forward and backward of a step: prompts shared by their answers, micro-batches under a token
budget, and the exact denominator (pairs of the whole optimizer step over all ranks and micro-batches).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, set_seed

from naysay.core.groups import D2OTerms, GroupLogps
from naysay.core.prefix import TokenGroup
from naysay.errors import DataError, InputNotFoundError, ModelError, NonFiniteLossError
from naysay.modeling.adapters import add_adapter
from naysay.modeling.forward import enable_group_forward, response_logps, token_budget
from naysay.modeling.loading import context_length, refuse_dropout
from naysay.modeling.modes import set_training
from naysay.training.balance import Dealing
from naysay.training.checkpoints import check_references, last_complete, mark_complete
from naysay.training.config import D2OConfig
from naysay.training.data import EncodedGroup, EncodingCounts, GroupCollator, GroupDataset, GroupSampler, token_groups
from naysay.training.metrics import StepMetrics
from naysay.training.objectives import Others
from naysay.training.preparation import Preparation, Rows, as_reference, check_arguments, output_dir
from naysay.training.ranks import Ranks
from naysay.training.references import Reference, ReferencePair
from naysay.training.refresh import (
    AnchorBuffer,
    AnchorSchedule,
    AnchorSource,
    RefreshAnchors,
    check_refreshable,
    frozen_initial,
    lasting,
    make_buffer,
)
from naysay.training.step import (
    Batch,
    MicroLoss,
    Work,
    group_logps,
    micro_loss,
    negative_values,
    other_answers,
    plan_work,
    token_counts,
)
from naysay.training.step_constant import StepConstant, WeightedRow


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
        normal_dataset: benign rows with `prompt` and `answers`, for objectives that need normal data (llmu).
        reference_positive: r⁺, the policy under the negatives.
        reference_negative: r⁻, the policy under the anchors.
        anchor_source: redraws anchors from the policy in training; None keeps those of `train_dataset`.
        anchor_schedule: when it does; its defaults where None.
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
        normal_dataset: Rows | None = None,
        anchor_source: AnchorSource | None = None,
        anchor_schedule: AnchorSchedule | None = None,
        **kwargs: Any,
    ):
        args = args or D2OConfig(output_dir="d2o_output")
        if processing_class is None:
            raise ModelError("D2OTrainer: expected processing_class=tokenizer (with a chat template), found None")
        check_arguments(model, args, peft_config)
        refuse_dropout(model)
        if getattr(peft_config, "lora_dropout", 0):
            raise ModelError(f"dropout must be 0, found lora_dropout={peft_config.lora_dropout}; set lora_dropout=0.0")
        self.encoding_counts: dict[str, EncodingCounts] = {}
        longest = min(args.max_length, context_length(model) or args.max_length)
        self._objective = args.make_objective()
        vocabulary = model.config.get_text_config().vocab_size
        self._preparation = Preparation(args, self._objective, processing_class, longest, vocabulary)
        encoded: dict[str, list[EncodedGroup]] = {"normal": self._preparation.encode_normal(normal_dataset)}
        for name, rows in (("train", train_dataset), ("eval", eval_dataset)):
            if rows is not None:
                encoded[name], self.encoding_counts[name] = self._preparation.encode(rows)
        initial = Reference.of(model.to(args.device), processing_class)
        references = ReferencePair(
            negative=as_reference(reference_negative, initial, processing_class),
            positive=as_reference(reference_positive, initial, processing_class),
        )
        groups = {name: self._preparation.add_references(found, references) for name, found in encoded.items()}
        datasets = {name: GroupDataset(found) for name, found in groups.items()}
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
        self._metrics = StepMetrics(self._objective.skip_weight_below)
        self._constant = StepConstant(self._objective)
        self._token_budget = token_budget(args.tokens_per_microbatch, args.device)
        self._collate = GroupCollator(groups["normal"])
        super().__init__(
            model=model,
            args=args,
            data_collator=self._collate,
            train_dataset=datasets.get("train"),
            eval_dataset=datasets.get("eval"),
            processing_class=processing_class,
            **kwargs,
        )
        self.anchor_buffer: AnchorBuffer | None = None
        if anchor_source is not None:
            check_refreshable(self._objective, self.accelerator.distributed_type)
            opened = frozen_initial(model, adapter_is_new=peft_config is not None)
            self.anchor_buffer = make_buffer(
                self.train_dataset.groups,
                anchor_source,
                anchor_schedule or AnchorSchedule(),
                policy=self.model,
                negative=lasting(references.negative, initial, opened),
                preparation=self._preparation,
            )
            self.add_callback(RefreshAnchors(self.anchor_buffer))

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
            found = last_complete(output_dir(self.args))
            if found is None:
                raise InputNotFoundError(
                    f"{self.args.output_dir}: no complete checkpoint to resume from; call train() without it"
                )
            resume_from_checkpoint = str(found)
        if resume_from_checkpoint:
            check_references(Path(resume_from_checkpoint), self.reference_digests)
            self._constant.load(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of this rank's groups: gradients of Σ loss / (pairs of the whole optimizer step)."""
        set_training(model)
        self._metrics.start()
        if self.anchor_buffer is not None:
            # The data loader collates a batch ahead, before the anchors of this step were redrawn.
            inputs = self._collate(self.train_dataset.items(inputs["row"], inputs["weight"]))
        batch = Batch(token_groups(inputs), self._prepare_inputs(inputs))
        pairs = num_items_in_batch if num_items_in_batch is not None else self._get_num_items_in_batch([inputs])
        ranks = self._ranks
        self._constant.start(self.state.global_step, lambda rows: self._mismatched(model, rows), ranks.sum)
        scale = ranks.count / pairs
        whole, parts = plan_work(batch, self._token_budget)
        whole_count, part_count = ranks.most(len(whole), len(parts))
        # A rank that has less to do than another repeats a response with coefficient 0 where all ranks must run the
        # same collectives (FSDP gathers parameters in each forward).
        idle = Work((0,), (0,), idle=True)
        idle_whole, idle_parts = [idle] * (whole_count - len(whole)), [idle] * (part_count - len(parts))
        coefficients, losses = self._first_pass(model, batch, parts, idle_parts, scale)
        coefficients[idle] = torch.zeros(())
        # Where all ranks have padding alone, one pass still carries the gradients between them.
        queue = [*whole, *idle_whole, *parts, *idle_parts] or [idle]
        for number, work in enumerate(queue):
            last = number == len(queue) - 1
            with ranks.synchronised(model, last=last):
                optional = ranks.can_leave_out(last=last)
                if work in coefficients:
                    self._surrogate_pass(model, batch, work, coefficients[work], optional=optional)
                else:
                    losses[work] = self._joint_pass(model, batch, work, scale, optional=optional)
        self._stop_if_not_finite(batch, losses)
        return sum(losses.values(), start=torch.zeros((), device=self.args.device))

    def _first_pass(
        self, model: nn.Module, batch: Batch, parts: list[Work], idle: list[Work], scale: Any
    ) -> tuple[dict[Work, Tensor], dict[Work, Tensor]]:
        """Pass 1 of the groups that exceed the budget: dL/d(log-prob) of each response, without a graph.

        Pass 2 then back-propagates each part alone with the linear surrogate Σ coefficient · log-prob.
        """
        with torch.no_grad():
            found = [self._logps(model, work.tokens(batch)) for work in [*parts, *idle]]
        coefficients: dict[Work, Tensor] = {}
        losses: dict[Work, Tensor] = {}
        for member in dict.fromkeys(work.members[0] for work in parts):
            mine = [(work, logp) for work, logp in zip(parts, found, strict=False) if work.members[0] == member]
            logp_R = torch.cat([logp for _, logp in mine]).requires_grad_()
            loss = self._micro_loss(batch, (member,), logp_R).total * scale
            (gradient_R,) = torch.autograd.grad(loss, logp_R)
            losses[mine[0][0]] = loss.detach()
            for (work, _), part in zip(mine, gradient_R.split([len(logp) for _, logp in mine]), strict=True):
                coefficients[work] = part
        return coefficients, losses

    def _surrogate_pass(
        self, model: nn.Module, batch: Batch, work: Work, coefficient_R: Tensor, *, optional: bool
    ) -> None:
        """Pass 2 of a part, or idle work; left out where no response has a coefficient and the ranks allow it."""
        skipped = optional and not bool(coefficient_R.any())
        if not skipped:
            logp_R = self._logps(model, work.tokens(batch))
            self.accelerator.backward((coefficient_R.to(logp_R) * logp_R).sum())
        if not work.idle:
            self._metrics.add_pass(skipped=skipped)

    def _joint_pass(self, model: nn.Module, batch: Batch, work: Work, scale: Any, *, optional: bool) -> Tensor:
        """Forward and backward of whole groups; the scaled loss. Finished groups get no backward."""
        loss = self._micro_loss(batch, work.members, self._logps(model, work.tokens(batch)))
        skipped = optional and not loss.has_gradient
        if not skipped:
            self.accelerator.backward(loss.total * scale)
        self._metrics.add_pass(skipped=skipped)
        return loss.total.detach() * scale

    def _micro_loss(self, batch: Batch, members: Sequence[int], logp_R: Tensor) -> MicroLoss:
        """Sum of the loss over the pairs of `members`. Adds to the step's metrics."""
        unlikelihood_R = None
        if logp_R.dim() == 2:
            logp_R, unlikelihood_R = logp_R.unbind(1)
        group = group_logps(batch, members, logp_R)
        anchor_tokens, negative_tokens = token_counts(batch, members, logp_R)
        others = Others(
            negative_tokens=negative_tokens,
            negative_unlikelihood=None if unlikelihood_R is None else negative_values(batch, members, unlikelihood_R),
            chosen=other_answers(batch, members, logp_R) if self._objective.needs_chosen else None,
            unrelated=other_answers(batch, members, logp_R) if self._objective.needs_unrelated else None,
            constant=self._constant.value,
        )
        terms = self.objective(group, others)
        if self.model.training:
            self._constant.add(terms, group.negative_mask)
            computed = sum(batch.lengths[i] for i in members)
            self._metrics.add(terms, group, anchor_tokens, negative_tokens, computed)
        return micro_loss(terms, skip_weight_below=self._objective.skip_weight_below)

    def objective(self, group: GroupLogps, others: Others) -> D2OTerms:
        """Per-pair terms of the loss; the place to override for a loss of your own."""
        return self._objective.terms(group, others)

    def _logps(self, model: nn.Module, groups: Sequence[TokenGroup]) -> Tensor:
        """[R] sums of log-probs, or [R, 2] where the objective reads Σ_t log(1 − π) too."""
        unlikelihood = self._objective.needs_unlikelihood
        return response_logps(model, groups, head_chunk=self.args.head_chunk, unlikelihood=unlikelihood)

    def _mismatched(self, model: nn.Module, rows: Sequence[WeightedRow]) -> Tensor:
        """[sum, weights] of the log-ratios of answers to other prompts; without a graph."""
        total = torch.zeros(2)
        with torch.no_grad():
            # One forward a group, whatever it holds: every rank has equally many, and so the same collectives.
            for row, weight in rows:
                group = self.train_dataset.groups[row]
                found = self._logps(model, [(group.prompt_ids, group.others or group.negatives[:1])])
                if group.others:
                    ratio = found.double().mean() - sum(group.ref_others) / len(group.ref_others)
                    total += torch.tensor([float(ratio) * weight, weight])
        return total

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Mean D²O loss over the pairs of a batch of evaluation groups."""
        batch = Batch(token_groups(inputs), self._prepare_inputs(inputs))
        whole, parts = plan_work(batch, self._token_budget)
        with torch.no_grad():
            logps = {work: self._logps(model, work.tokens(batch)) for work in [*whole, *parts]}
            total = torch.stack(
                [self._micro_loss(batch, work.members, logps[work]).total for work in whole] or [torch.zeros(())]
            ).sum()
            for member in dict.fromkeys(work.members[0] for work in parts):
                logp_R = torch.cat([logps[work] for work in parts if work.members[0] == member])
                total = total + self._micro_loss(batch, (member,), logp_R).total
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
            logs = {**logs, **self._metrics.flush(self._ranks.sum)}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """4N per token where few parameters train (LoRA needs no weight gradients of the rest), else 6N."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        tokens = inputs["prompt_ids"].numel() + inputs["response_ids"].numel()
        return (4 if trained < parameters / 2 else 6) * parameters * tokens

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupSampler:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        dealt = Dealing(self._ranks.count, self.args.train_batch_size, self.args.gradient_accumulation_steps)
        return GroupSampler(dataset.costs, seed=seed, dealt=dealt)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any = None) -> Tensor:
        """Pairs of the whole optimizer step, over all micro-batches and ranks: the denominator of the loss."""
        self._constant.expect(batch_samples)
        pairs = sum((_pairs(batch) for batch in batch_samples), start=torch.zeros(()))
        return self._ranks.sum(pairs.to(self.args.device))

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
            self._constant.save(folder)
            mark_complete(folder, self.reference_digests)

    @property
    def max_length(self) -> int:
        """Longest prompt plus answer in tokens: `args.max_length`, or the model's context where that is shorter."""
        return self._preparation.max_length

    @property
    def _ranks(self) -> Ranks:
        return Ranks(self.accelerator)

    def _stop_if_not_finite(self, batch: Batch, losses: Mapping[Work, Tensor]) -> None:
        bad = [work for work, loss in losses.items() if not torch.isfinite(loss)]
        if bad:
            rows = batch.tensors["row"].tolist()
            ids = ", ".join(self.train_dataset.groups[rows[i]].group_id for work in bad for i in work.members)
            raise NonFiniteLossError(
                f"step {self.state.global_step + 1}: the loss is not finite in group(s) {ids}; stopped before the "
                "optimizer step; look at these rows, lower the learning rate, or use float32"
            )


def _pairs(inputs: Mapping[str, Tensor]) -> Tensor:
    return ((inputs["negative_index"] >= 0).sum(1) * inputs["weight"]).sum().cpu()
