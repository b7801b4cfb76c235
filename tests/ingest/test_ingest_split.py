"""Who is trained on and who is held out."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ingest.near import index, shingles
from naysay.config.data import DataConfig
from naysay.ingest.gather import draws
from naysay.ingest.merge import SPLIT_CODES
from naysay.ingest.split import (
    NEAR_DUPLICATE,
    NEAR_TRAINING,
    SPLITS,
    draw_one,
    group_draws,
    limit_prompts,
    split_prompts,
)
from naysay.records import Message, Split

WORDS = [f"word{letter}" for letter in "abcdefghijklmnop"]


@dataclass(frozen=True)
class AskedPrompt:
    prompt_id: str
    messages: tuple[Message, ...]
    asked: Split | None
    category: str
    kind: str
    both: bool


@dataclass(frozen=True)
class Found:
    """Prompt ids by split, and those removed."""

    by_split: dict[Split, list[str]]
    near_duplicates_removed: list[str]
    benign_removed: list[str]


def prompt(
    number: int, text: str = "", *, asked: Split | None = None, category: str = "", kind: str = "", good: bool = False
) -> AskedPrompt:
    text = text or " ".join(f"{word}{number}" for word in WORDS[:8])
    return AskedPrompt(f"p-{number:04}", ({"role": "user", "content": text},), asked, category, kind, good)


def split(prompts: list[AskedPrompt], benign: Any = (), seed: int = 0, **settings: Any) -> Found:
    data = DataConfig(**settings)
    ordered = sorted([*prompts, *benign], key=lambda item: item.prompt_id)
    ids = [item.prompt_id for item in ordered]
    with index([shingles(item.messages) for item in ordered], data.near_duplicate_threshold, per_bucket=64) as near:
        codes = split_prompts(
            np.array([item in prompts for item in ordered]),
            np.array([SPLIT_CODES[item.asked] for item in ordered], np.uint8),
            np.array([draw_one(seed, "split", key) for key in ids]),
            near,
            data,
        ).tolist()

    def chosen(wanted: int) -> list[str]:
        return [key for key, code in zip(ids, codes, strict=True) if code == wanted]

    by_split = {name: chosen(code) for code, name in enumerate(SPLITS)}
    return Found(by_split, chosen(NEAR_DUPLICATE), chosen(NEAR_TRAINING))


def test_draws_of_many_are_those_of_each() -> None:
    ids = [0, *(int.from_bytes([number] * 8) for number in range(1, 20)), 2**64 - 1]
    expected = [draw_one(7, "split", f"p-{key:016x}") for key in ids]
    assert draws(7, "split", np.array(ids, np.uint64)).tolist() == expected
    assert len(draws(7, "limit", np.empty(0, np.uint64))) == 0


def close(first: AskedPrompt, second: AskedPrompt, threshold: float = 0.7) -> bool:
    one, two = shingles(first.messages), shingles(second.messages)
    return len(one & two) / len(one | two) >= threshold


def test_shares_and_determinism() -> None:
    prompts = [prompt(number) for number in range(1000)]
    found = split(prompts, seed=3)
    sizes = {name: len(ids) for name, ids in found.by_split.items()}
    # Four standard deviations of a binomial with n = 1000.
    assert abs(sizes["heldout"] - 200) < 51
    assert abs(sizes["dev"] - 100) < 38
    assert sum(sizes.values()) == 1000
    assert split(prompts[::-1], seed=3) == found
    assert split(prompts, seed=4) != found
    # A prompt's split does not depend on the other prompts.
    half = split(prompts[:500], seed=3).by_split
    assert all(set(half[name]) <= set(found.by_split[name]) for name in half)


def test_near_duplicates_share_a_split() -> None:
    base = [" ".join(f"{word}{number}" for word in WORDS) for number in range(60)]
    prompts = [prompt(number, text) for number, text in enumerate(base)]
    prompts += [prompt(100 + number, f"{text} please") for number, text in enumerate(base)]
    found = split(prompts).by_split
    where = {key: name for name, ids in found.items() for key in ids}
    assert all(where[f"p-{number:04}"] == where[f"p-{100 + number:04}"] for number in range(60))
    assert len(found["heldout"]) >= 2


def test_explicit_splits_are_kept_but_not_near_training() -> None:
    base = [" ".join(f"{word}{number}" for word in WORDS) for number in range(6)]
    prompts = [
        prompt(0, base[0], asked="train"),
        prompt(1, base[0] + " please", asked="heldout"),
        prompt(2, base[0] + " now", asked="dev"),
        prompt(3, base[0] + " then"),  # goes with the training prompt
        prompt(4, base[1], asked="dev"),
        prompt(5, base[1] + " please", asked="heldout"),
        prompt(6, base[2], asked="heldout"),
    ]
    found = split(prompts)
    assert found.by_split["train"] == ["p-0000", "p-0003"]
    assert found.by_split["dev"] == ["p-0004"]
    assert found.by_split["heldout"] == ["p-0006"]
    assert found.near_duplicates_removed == ["p-0001", "p-0002", "p-0005"]


@pytest.mark.parametrize("asked", [False, True])
def test_nothing_held_out_is_near_a_training_prompt(asked: bool) -> None:
    wishes: tuple[Split | None, ...] = ("train", None, "heldout", "dev", None) if asked else (None,)
    texts = [" ".join([f"{w}{n // 7}" for w in WORDS[: 12 - n % 7]] + WORDS[: n % 7]) for n in range(150)]
    prompts = [prompt(n, text, asked=wishes[n % len(wishes)]) for n, text in enumerate(texts)]
    by_id = {item.prompt_id: item for item in prompts}
    found = split(prompts, near_duplicate_threshold=0.5)
    kept = found.by_split
    assert len(found.near_duplicates_removed) + sum(map(len, kept.values())) == 150
    assert bool(found.near_duplicates_removed) == asked
    for key, other in itertools.product(kept["train"], kept["dev"] + kept["heldout"]):
        assert not close(by_id[key], by_id[other], 0.5)
    for key, other in itertools.product(kept["dev"], kept["heldout"]):
        assert not close(by_id[key], by_id[other], 0.5)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_small_files_train_and_hold_out(count: int) -> None:
    for seed in range(30):
        found = split([prompt(number) for number in range(count)], seed=seed).by_split
        assert found["train"], seed
        assert found["heldout"], seed


def test_one_prompt_is_trained_on_and_no_heldout_fraction_means_none() -> None:
    for seed in range(20):
        assert split([prompt(0)], seed=seed).by_split["train"] == ["p-0000"]
        assert not split([prompt(n) for n in range(20)], seed=seed, heldout_fraction=0.0).by_split["heldout"]


def test_benign_prompts_near_training_ones_are_removed() -> None:
    base = [" ".join(f"{word}{number}" for word in WORDS) for number in range(3)]
    prompts = [prompt(0, base[0], asked="train"), prompt(1, base[1], asked="heldout")]
    benign = [prompt(10, base[0] + " please"), prompt(11, base[1] + " please"), prompt(12, base[2])]
    found = split(prompts, benign)
    assert found.benign_removed == ["p-0010"]
    assert found.by_split["benign"] == ["p-0011", "p-0012"]


def limited(prompts: list[AskedPrompt], limit: int | None, seed: int = 0, prefer_both: bool = False) -> list[str]:
    ordered = sorted(prompts, key=lambda item: item.prompt_id)
    ids = [item.prompt_id for item in ordered]
    groups = sorted({(item.kind, item.category) for item in ordered})
    kept = limit_prompts(
        np.arange(len(ids)),
        limit=len(ids) if limit is None else limit,
        draw=np.array([draw_one(seed, "limit", key) for key in ids]),
        group=np.array([groups.index((item.kind, item.category)) for item in ordered]),
        group_draw=group_draws(seed, groups),
        second=np.array([prefer_both and not item.both for item in ordered]),
    )
    return [ids[number] for number in kept]


def test_limits_take_categories_in_turn() -> None:
    prompts = [prompt(n, category="common") for n in range(50)]
    prompts += [prompt(50 + n, category="rare") for n in range(4)]
    prompts += [prompt(60 + n, category="other") for n in range(20)]
    for seed in range(5):
        found = limited(prompts, 18, seed)
        assert len(found) == 18
        assert sum(key >= "p-0060" for key in found) == 7
        assert sum("p-0050" <= key < "p-0060" for key in found) == 4
    assert limited(prompts, 18, 1) != limited(prompts, 18, 2)
    assert limited(prompts[::-1], 18, 1) == limited(prompts, 18, 1)
    # A larger limit keeps what a smaller one took.
    assert set(limited(prompts, 9)) <= set(limited(prompts, 18))
    assert limited(prompts, None) == limited(prompts, 1000) == sorted(item.prompt_id for item in prompts)
    assert limited(prompts, 0) == []


def test_limits_prefer_prompts_with_both_answers() -> None:
    prompts = [prompt(n, category="xyz"[n % 3], good=n >= 20) for n in range(30)]
    assert limited(prompts, 10, prefer_both=True) == [f"p-{n:04}" for n in range(20, 30)]
    assert limited(prompts, 10) != limited(prompts, 10, prefer_both=True)
    assert set(limited(prompts, 12, prefer_both=True)) > {f"p-{n:04}" for n in range(20, 30)}
