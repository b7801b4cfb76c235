"""Loading models that judge answers: classifiers, score models of safe-rlhf, and generative guards.

Legend: S sequences of a batch, T tokens, D hidden.
"""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from naysay.errors import ModelError
from naysay.modeling.loading import pick_device, pick_dtype, resolve
from naysay.modeling.progress import quiet_loading

SCORE_ARCHITECTURES = ("LlamaForScore", "LlamaModelForScore")
"""What safe-rlhf calls its reward and cost models in config.json, in its two versions."""

_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, SafetensorError, pickle.UnpicklingError)
_HEAD = "score_head."


class ScoreModel(nn.Module):
    """A decoder with a linear head on each hidden state, as in safe-rlhf (PKU-Alignment, `ScoreModelMixin`).

    The score of a sequence is that of its last token.
    """

    def __init__(self, decoder: nn.Module, weight_1D: Tensor, bias: Tensor | None):
        super().__init__()
        self.model = decoder
        self.score_head = nn.Linear(weight_1D.shape[1], 1, bias=bias is not None)
        self.score_head.load_state_dict({"weight": weight_1D} | ({} if bias is None else {"bias": bias}))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores [S] of sequences padded on the right."""
        hidden_STD = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last_S = attention_mask.sum(dim=1) - 1
        hidden_SD = hidden_STD[torch.arange(len(last_S), device=last_S.device), last_S]
        return self.score_head(hidden_SD).squeeze(-1).float()


def judge_tokenizer(name: str) -> Any:
    """The tokenizer of a judge, with a padding token.

    Raises:
        InputNotFoundError, ModelError: it cannot be found or read.
    """
    from transformers import AutoTokenizer

    folder = resolve(name)
    if (folder / "config.json").exists():
        _config(folder, name)  # transformers takes whatever stands there for an object
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except _LOAD_ERRORS as error:
        raise ModelError(f"judge {name!r}: its tokenizer cannot be read from {folder}: {_line(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(name: str, *, device: str, dtype: str) -> Any:
    """A sequence-classification model in eval mode.

    Raises:
        ModelError: another kind of model, or one without a trained classification head.
    """
    from transformers import AutoModelForSequenceClassification

    return _load(AutoModelForSequenceClassification, name, "a sequence classifier", device, dtype)


def load_guard(name: str, *, device: str, dtype: str) -> Any:
    """A causal LM that writes verdicts, in eval mode.

    Raises:
        ModelError: another kind of model, or an incomplete one.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, name, "a causal LM", device, dtype)


def load_score_model(name: str, *, device: str, dtype: str) -> ScoreModel:
    """A reward or cost model of safe-rlhf: `model.*` and `score_head.weight` (and `.bias`) in its weight files.

    Raises:
        ModelError: another architecture, a head that is missing or not of one score, or scores that are normalised
            (the published models' are not).
    """
    from transformers import AutoModel

    folder = resolve(name)
    config = _config(folder, name)
    found = (config.get("architectures") or ["none"])[0]
    if found not in SCORE_ARCHITECTURES:
        raise ModelError(
            f"judge {name!r}: expected the architecture {' or '.join(SCORE_ARCHITECTURES)} in {folder}/config.json, "
            f"found {found}; use kind: classifier for other reward models"
        )
    if config.get("do_normalize"):
        raise ModelError(
            f"judge {name!r}: do_normalize is set in {folder}/config.json, and normalised scores are not supported; "
            "give a model whose scores are used as they are"
        )
    weight, bias = _head(folder, name)
    decoder = _load(AutoModel, name, "a decoder", device, dtype)
    return ScoreModel(decoder, weight, bias).to(decoder.device, decoder.dtype).eval()


def context_of(model: Any) -> int | None:
    """The longest input of a model in tokens, where its config says so.

    RoBERTa's family counts positions from behind its padding token, so that as many of them are never used.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return None
    padding = (
        module.padding_idx
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    )
    unused = next((index + 1 for index in padding if index is not None), 0)
    return positions - unused


def padded(sequences: Sequence[Sequence[int]], pad_id: int, device: Any, *, left: bool = False) -> dict[str, Tensor]:
    """`input_ids` [S, T] and `attention_mask` [S, T] of ragged sequences."""
    longest = max(map(len, sequences))
    ids, mask = [], []
    for sequence in sequences:
        gap = longest - len(sequence)
        filler, ones = [pad_id] * gap, [1] * len(sequence)
        ids.append([*filler, *sequence] if left else [*sequence, *filler])
        mask.append([0] * gap + ones if left else ones + [0] * gap)
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def _load(kind: Any, name: str, called: str, device: str, dtype: str) -> Any:
    folder, place = resolve(name), pick_device(device)
    try:
        with quiet_loading():
            model, found = kind.from_pretrained(folder, dtype=pick_dtype(dtype, place), output_loading_info=True)
    except _LOAD_ERRORS as error:
        raise ModelError(f"judge {name!r}: cannot be loaded from {folder} as {called}: {_line(error)}") from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers fills them with random numbers and goes on
        raise ModelError(
            f"judge {name!r}: {folder} lacks {len(missing)} of the weights of {called} ({', '.join(missing[:3])}); "
            "give a model that was trained to judge in this way"
        )
    return model.to(place).eval()


def _config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"judge {name!r}: {folder}/config.json cannot be read: {_line(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"judge {name!r}: expected an object in {folder}/config.json, found {type(config).__name__}")
    return config


def _head(folder: Path, name: str) -> tuple[Tensor, Tensor | None]:
    try:
        tensors = _tensors(folder)
    except _LOAD_ERRORS as error:
        raise ModelError(f"judge {name!r}: the weights in {folder} cannot be read: {_line(error)}") from error
    weight = tensors.get("weight")
    if weight is None or weight.shape[0] != 1:
        shape = "none" if weight is None else f"shape {tuple(weight.shape)}"
        raise ModelError(f"judge {name!r}: expected score_head.weight with one row in {folder}, found {shape}")
    return weight.float(), None if tensors.get("bias") is None else tensors["bias"].float()


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of the head, from the one file of a sharded or whole checkpoint that holds each."""
    for name, read in (("model.safetensors", _read_safetensors), ("pytorch_model.bin", _read_pickle)):
        index = folder / f"{name}.index.json"
        if index.exists():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted({file for key, file in shards.items() if key.startswith(_HEAD)})
        else:
            files = [name] if (folder / name).exists() else []
        if files:
            found = {key: value for file in files for key, value in read(folder / file).items()}
            return {key.removeprefix(_HEAD): value for key, value in found.items()}
    return {}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys() if key.startswith(_HEAD)}  # noqa: SIM118  no mapping


def _read_pickle(path: Path) -> dict[str, Tensor]:
    # weights_only: nothing but tensors is unpickled, so that loading runs no code of the file.
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value for key, value in state.items() if key.startswith(_HEAD)}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
