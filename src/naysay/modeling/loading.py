"""Loading models and tokenizers, with every reason why one cannot be used said before any work begins."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from naysay.config.model import ModelConfig
from naysay.errors import InputNotFoundError, ModelError
from naysay.modeling.embedded import is_embedded, model_folder
from naysay.modeling.progress import quiet_loading

_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, SafetensorError)
_OF_OTHER_HEADS = ("classifier", "summary")
"""Dropout keys of heads that a causal LM does not have, e.g. GPT-2's `summary_first_dropout`."""


def resolve(name: str, revision: str | None = None) -> Path:
    """Folder of a model: `embedded:...`, a local folder, or a hub id (from the local hub cache when offline).

    Raises:
        InputNotFoundError: there is no such folder and no such hub id within reach.
    """
    if is_embedded(name):
        return model_folder(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputNotFoundError(f"model {name!r}: expected a folder with a model, found none there; check the path")
    return _from_hub(name, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = os.environ.get("HF_HUB_OFFLINE", "") not in {"", "0"}
    fix = "pass --online to download it, or give a local folder" if offline else "check its name and your connection"
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=offline))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        where = "nor in the local hub cache" if offline else "nor on the hub"
        raise InputNotFoundError(f"model {name!r}: unknown: neither a local folder {where}; {fix}") from error


def context_length(model: Any) -> int | None:
    """Tokens that a model takes at most; None where its config names no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def load_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer, with `model.chat_template` in place of its own where that is set.

    Raises:
        InputNotFoundError, ModelError: it cannot be read, or it has no chat template.
    """
    from transformers import AutoTokenizer

    from naysay.modeling.chat import require_chat_template, template_file

    folder = resolve(model.name, model.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except _LOAD_ERRORS as error:
        raise ModelError(f"model {model.name!r}: its tokenizer cannot be read from {folder}: {_line(error)}") from error
    tokenizer.name_or_path = model.name
    for template in template_file(model).values():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    require_chat_template(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: ModelConfig) -> Any:
    """The causal LM in eval mode on its device.

    Raises:
        ModelError: not a causal LM, damaged, incomplete, or `model.max_length` is beyond its context.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = resolve(model.name, model.revision)
    device = pick_device(model.device)
    try:
        config = AutoConfig.from_pretrained(folder)
        check_context(config, model)
        with quiet_loading():
            load: Any = AutoModelForCausalLM.from_pretrained  # its stub does not know that it can return a pair
            loaded, found = load(folder, config=config, dtype=pick_dtype(model.dtype, device), output_loading_info=True)
    except ModelError:
        raise
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"model {model.name!r}: cannot be loaded from {folder} as a causal LM: {_line(error)}"
        ) from error
    if found["missing_keys"]:  # transformers fills them with random numbers and goes on
        names = sorted(found["missing_keys"])
        raise ModelError(
            f"model {model.name!r}: {folder} lacks {len(names)} of the weights of a causal LM "
            f"({', '.join(names[:3])}); give the folder of a complete model that was trained to generate text"
        )
    return loaded.to(device).eval()


def empty_model(model: ModelConfig) -> Any:
    """The causal LM without its weights: on the device `meta`.

    Raises:
        InputNotFoundError, ModelError: there is no such model, or it is no causal LM.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = resolve(model.name, model.revision)
    try:
        with torch.device("meta"), quiet_loading():
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"model {model.name!r}: the config.json of {folder} is not that of a causal LM: {_line(error)}"
        ) from error


def check_context(config: Any, model: ModelConfig) -> None:
    """Raises ModelError where `model.max_length` is beyond the model's context."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and model.max_length > context:
        raise ModelError(
            f"model.max_length is {model.max_length}, but the context of {model.name!r} is {context} tokens; "
            f"set model.max_length to at most {context}"
        )


def refuse_dropout(model: nn.Module) -> None:
    """Raises ModelError where the model has dropout above 0.

    Cached references and the two-pass gradient need a forward that gives the same value twice.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise ModelError(
                f"dropout must be 0, found {module.p} in {name}; set the dropout keys of the model's config.json "
                "(or of your peft_config: lora_dropout) to 0"
            )
    config = getattr(model, "config", None)
    keys: Mapping[str, Any] = config.get_text_config().to_dict() if config is not None else {}
    for key, value in keys.items():
        other = any(head in key for head in _OF_OTHER_HEADS)
        if "drop" in key and not other and isinstance(value, float) and value > 0:
            raise ModelError(f"dropout must be 0, found {key} = {value}; set {key} to 0 in the model's config.json")


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, then MPS, then CPU.

    Raises:
        ModelError: torch knows no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"model.device: {name!r} is not usable here ({_line(error)}); set model.device=auto"
        ) from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it, float32 elsewhere (bfloat16 is far slower on most CPUs)."""
    if name == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if bf16 else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
