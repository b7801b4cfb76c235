"""LoRA adapters: their configuration, and policies that are the base model with or without one."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from naysay.config.model import ModelConfig
from naysay.config.references import INITIAL as INITIAL
from naysay.config.training import LoraSettings
from naysay.errors import ModelError
from naysay.modeling.loading import empty_model, load_model, resolve


def lora_config(settings: LoraSettings) -> Any:
    """peft's LoraConfig for a causal LM."""
    from peft import LoraConfig

    modules = settings.target_modules
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )


def add_adapter(model: Any, settings: Any) -> Any:
    """The model with a fresh adapter after peft's `settings`.

    Raises:
        ModelError: they do not fit the model, e.g. it has none of the target modules.
    """
    from peft import get_peft_model

    try:
        return get_peft_model(model, settings)
    except (ValueError, re.error) as error:  # target modules as text are a regular expression
        raise ModelError(
            f"the adapter does not fit the model ({' '.join(str(error).split())[:160]}); "
            "set training.lora.target_modules (target_modules of your peft_config) to modules that it has"
        ) from error


def check_fit(model: ModelConfig, settings: LoraSettings) -> None:
    """Check an adapter against the model's architecture; weights are neither read nor held.

    Raises:
        InputNotFoundError, ModelError: there is no such model, or it has none of the target modules.
    """
    with torch.device("meta"):
        add_adapter(empty_model(model), lora_config(settings))


def load_reference(name: str, policy: ModelConfig, initial: Any) -> Any:
    """A frozen policy other than the initial one: a model, or a folder with an adapter of the initial policy.

    Raises:
        ModelError: it cannot be loaded, or its vocabulary is not the policy's.
    """
    folder = resolve(name)
    if (folder / "adapter_config.json").exists():
        return with_adapter(load_model(policy), folder)
    model = load_model(policy.model_copy(update={"name": name, "revision": None}))
    found, expected = (item.config.get_text_config().vocab_size for item in (model, initial))
    if found != expected:
        raise ModelError(
            f"reference {name!r}: its vocabulary has {found} tokens, the policy's {expected}; "
            "a reference must share the policy's tokenizer"
        )
    return model


def with_adapter(model: Any, folder: Path) -> Any:
    """The model with a saved adapter, in eval mode.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"{folder}: the adapter does not fit the model: {' '.join(str(error).split())[:160]}"
        ) from error


class BaseAndTuned:
    """The policy before and after training, with one copy of the weights where the difference is an adapter."""

    def __init__(self, base: Any, tuned: Any):
        self._base, self._tuned = base, tuned

    @classmethod
    def load(cls, model: ModelConfig, *, adapter: Path | None = None, full: Path | None = None) -> "BaseAndTuned":
        """Load the base, and the tuned policy from an adapter or from full weights (one of the two)."""
        base = load_model(model)
        if adapter is not None:
            return cls(None, with_adapter(base, adapter))
        return cls(base, load_model(model.model_copy(update={"name": str(full), "revision": None})))

    def base(self) -> AbstractContextManager[Any]:
        """The model as it was before training."""
        return self._without_adapter() if self._base is None else _just(self._base)

    def tuned(self) -> AbstractContextManager[Any]:
        """The model after training."""
        return _just(self._tuned)

    @contextmanager
    def _without_adapter(self) -> Iterator[Any]:
        with self._tuned.disable_adapter():
            yield self._tuned


@contextmanager
def _just(model: Any) -> Iterator[Any]:
    yield model
