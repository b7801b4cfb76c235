"""Content digests: what a run compares instead of paths, names or modification times."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

CHUNK_BYTES = 1 << 22


def digest_text(*parts: str) -> str:
    """Hex digest (32 characters) of a tuple of strings; `("ab", "c")` and `("a", "bc")` differ."""
    return digest_json(list(parts))


def digest_json(value: Any) -> str:
    """Hex digest (32 characters) of any JSON-able value, independent of the order of keys."""
    data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return hashlib.sha256(data).hexdigest()[:32]


def digest_ids(*sequences: Iterable[int]) -> str:
    """Hex digest (32 characters) of sequences of token ids."""
    return digest_json([[int(token) for token in sequence] for sequence in sequences])


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex (64 characters)."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def digest_tree(path: Path) -> str:
    """Digest of a file, or of all files below a folder with their relative names."""
    if path.is_file():
        return digest_file(path)
    files = sorted(item for item in path.rglob("*") if item.is_file())
    return digest_json([(str(item.relative_to(path)), digest_file(item)) for item in files])
