"""Tiny judges, saved as their published counterparts are."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    LlamaModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from conftest import make_config, make_model, make_tokenizer
from naysay.judging.scorer import Judged

HEAD = torch.Generator().manual_seed(7)


def ask(prompt: str, response: str) -> Judged:
    return Judged(({"role": "user", "content": prompt},), response)


def save_tokenizer(folder: Path, **changes: str) -> None:
    tokenizer = make_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)


def save_classifier(folder: Path, labels: list[str]) -> None:
    """A classifier with a class for each label; a reward model where there is one."""
    torch.manual_seed(1)
    config = make_config("llama")
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.num_labels = len(labels)
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=0.1)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def save_bert(folder: Path) -> None:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=259,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        num_labels=2,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)


def save_roberta(folder: Path, *, positions: int) -> None:
    """With the tokenizer's length unknown and the published padding token, 1."""
    torch.manual_seed(1)
    config = RobertaConfig(
        vocab_size=259,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=positions,
        pad_token_id=1,
        num_labels=2,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)


def change_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON object in a file; None removes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def save_score_model(
    folder: Path, *, layout: str = "safetensors", architecture: str = "LlamaModelForScore", bias: bool = True
) -> None:
    """safe-rlhf's layout: the decoder's weights under `model.`, the head beside them."""
    torch.manual_seed(2)
    decoder = LlamaModel(make_config("llama")).eval()
    head = {"score_head.weight": torch.randn(1, 32, generator=HEAD)}
    if bias:
        head["score_head.bias"] = torch.tensor([0.25])
    weights = {f"model.{key}": value.contiguous() for key, value in decoder.state_dict().items()} | head
    folder.mkdir()
    if layout == "sharded":
        parts = {"one.safetensors": {}, "two.safetensors": {}}
        for index, (key, value) in enumerate(weights.items()):
            parts["two.safetensors" if index % 2 else "one.safetensors"][key] = value
        shards = {key: file for file, part in parts.items() for key in part}
        for file, part in parts.items():
            save_file(part, folder / file, metadata={"format": "pt"})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    elif layout == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = decoder.config.to_dict() | {"architectures": [architecture], "score_type": "cost", "do_normalize": False}
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(folder)


def save_guard(folder: Path) -> None:
    model = make_model()
    model.generation_config.eos_token_id = 257
    model.save_pretrained(folder)
    save_tokenizer(folder)
