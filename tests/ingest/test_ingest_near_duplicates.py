"""The index finds exactly what a comparison of all pairs finds."""

import itertools
import json
import math
import random
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import orjson
import pytest
from hypothesis import given, settings

from ingest.near import Shingles, index, shingles
from naysay.ingest import near_duplicates
from naysay.ingest.near_duplicates import PARTS, PrefixWriter, find_repeated
from naysay.inputs.shingles import json_shingle_tokens, prompt_text, shingle_tokens


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class NearDuplicates:
    """The index on disk, by the keys of sets."""

    def __init__(self, sets: dict[str, Shingles], threshold: float):
        self.sets, self.threshold = sets, threshold

    def clusters(self, keys: list[str]) -> list[list[str]]:
        names, members = list(self.sets), np.array([key in keys for key in self.sets])
        with index(list(self.sets.values()), self.threshold) as near:
            first = near.clusters(members).tolist()
        groups: dict[str, list[str]] = {}
        for name, at in zip(names, first, strict=True):
            if name in keys:
                groups.setdefault(names[at], []).append(name)
        return [groups[key] for key in sorted(groups)]

    def close_to(self, keys: list[str], others: list[str]) -> set[str]:
        masks = [np.array([key in chosen for key in self.sets]) for chosen in (keys, others)]
        with index(list(self.sets.values()), self.threshold) as near:
            # Both questions may be asked of one index, in any order.
            near.clusters(masks[1])
            found = near.close_to(*masks).tolist()
        return {key for key, close in zip(self.sets, found, strict=True) if close}


def jaccard(first: Shingles, second: Shingles) -> float:
    return len(first & second) / len(first | second)


def brute_clusters(sets: dict[str, Shingles], threshold: float) -> set[frozenset[str]]:
    groups = [{key} for key in sets]
    for first, second in itertools.combinations(sets, 2):
        if jaccard(sets[first], sets[second]) >= threshold:
            joined = [group for group in groups if first in group or second in group]
            groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    return {frozenset(group) for group in groups}


letters = st.frozensets(st.sampled_from("abcdefghij"), min_size=1)
many_sets = st.lists(letters, min_size=1, max_size=14).map(
    lambda sets: {f"k{n:02}": item for n, item in enumerate(sets)}
)
thresholds = st.sampled_from([0.2, 0.5, 0.55, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0])


@given(many_sets, thresholds)
@settings(max_examples=300, deadline=None)
def test_clusters_are_those_of_all_pairs(sets: dict[str, Shingles], threshold: float) -> None:
    clusters = NearDuplicates(sets, threshold).clusters(list(sets))
    assert {frozenset(group) for group in clusters} == brute_clusters(sets, threshold)
    assert clusters == sorted(sorted(group) for group in clusters)


@given(many_sets, thresholds, st.integers(0, 14))
@settings(max_examples=300, deadline=None)
def test_close_to_is_that_of_all_pairs(sets: dict[str, Shingles], threshold: float, cut: int) -> None:
    keys, others = list(sets)[:cut], list(sets)[cut:]
    expected = {key for key in keys if any(jaccard(sets[key], sets[other]) >= threshold for other in others)}
    assert NearDuplicates(sets, threshold).close_to(keys, others) == expected


@pytest.mark.parametrize("seed", range(4))
def test_many_sets_of_which_few_fit_in_memory(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"_PAIRS_AT_A_TIME": 3, "_SHINGLES_AT_A_TIME": 20, "_KEPT_SHINGLES": 50, "_KEPT_PAIRS": 4, "_BLOCK": 2}
    small["_CANDIDATES_AT_A_TIME"] = 40
    for name, value in small.items():
        monkeypatch.setattr(near_duplicates, name, value)
    draw = random.Random(seed)
    templates = [draw.sample("abcdefghijklmnop", 9) for _ in range(4)]
    sets = {
        f"k{number:02}": frozenset([*draw.choice(templates), *draw.choices("uvwxyz", k=draw.randint(0, 4))])
        for number in range(80)
    }
    clusters = NearDuplicates(sets, 0.7).clusters(list(sets))
    assert {frozenset(group) for group in clusters} == brute_clusters(sets, 0.7)
    keys, others = [*sets][::3], [name for name in sets if name not in [*sets][::3]]
    expected = {key for key in keys if any(jaccard(sets[key], sets[other]) >= 0.9 for other in others)}
    assert 0 < len(expected) < len(keys)
    assert NearDuplicates(sets, 0.9).close_to(keys, others) == expected


def test_shingles_by_hand() -> None:
    assert shingles(user("How do I bake, BREAD?")) == {"how do i", "do i bake", "i bake bread"}
    assert shingles(user("Hi there!")) == {"hi there"}
    assert shingles(user("hi THERE")) == shingles(user("Hi, there"))
    assert shingles(user("🙂")) == {"🙂"}
    assert shingles(user("你好吗朋友")) == {"你 好 吗", "好 吗 朋", "吗 朋 友"}


def test_a_system_message_does_not_make_prompts_alike() -> None:
    system = {"role": "system", "content": "You are a very long system message that all prompts of a file share."}
    first, second = ([system, *user(text)] for text in ("How do I bake bread?", "Who wrote the book Emma?"))
    assert not shingles(first) & shingles(second)
    assert prompt_text(first) == "how do i bake bread?"


@pytest.mark.parametrize(("threshold", "together"), [(0.5, True), (0.51, False)])
def test_the_threshold_itself_counts(threshold: float, together: bool) -> None:
    # {a b c, b c d} and {a b c}: 1 of 2.
    sets = {"x": shingles(user("a b c d")), "y": shingles(user("a b c"))}
    assert (len(NearDuplicates(sets, threshold).clusters(["x", "y"])) == 1) == together


def test_a_pair_at_the_threshold_survives_the_rounding_of_floats() -> None:
    # 0.56 * 25 is 14.000000000000002 in floats, and 14 shared of 25 are 0.56.
    large = frozenset(f"s{number:02}" for number in range(25))
    sets = {"x": large, "y": frozenset(sorted(large)[:14])}
    assert NearDuplicates(sets, 0.56).clusters(["x", "y"]) == [["x", "y"]]
    assert NearDuplicates(sets, 0.56).close_to(["x"], ["y"]) == {"x"}


def test_clusters_of_members_only() -> None:
    # y joins x and z, but it is no member.
    sets = {"x": frozenset("abcd"), "y": frozenset("abcdefg"), "z": frozenset("cdefgh")}
    assert NearDuplicates(sets, 0.5).clusters(["x", "y", "z"]) == [["x", "y", "z"]]
    assert NearDuplicates(sets, 0.5).clusters(["x", "z"]) == [["x"], ["z"]]


def test_repeated_shingles_among_very_many_that_differ_in_one_bit(tmp_path: Path) -> None:
    tokens = np.arange(300_000, dtype=np.uint64) * np.uint64(PARTS)
    again = np.array([7, 7, 250_000, 299_999], np.uint64) * np.uint64(PARTS)
    writer = PrefixWriter(tmp_path, 0.7, np.zeros(1 << 20, np.uint8))
    writer.add(0, tokens, np.ones(len(tokens), np.int64))
    writer.add(1, again, np.ones(len(again), np.int64))
    writer.close()
    find_repeated(tmp_path, range(2))
    found = np.fromfile(tmp_path / "repeated-0.0", [("token", "<u8"), ("bucket", "<u4"), ("place", "<u4")])
    assert found["token"].tolist() == [token * PARTS for token in (7, 7, 7, 250_000, 250_000, 299_999, 299_999)]
    places = {(0, 7), (1, 0), (1, 1), (0, 250_000), (1, 2), (0, 299_999), (1, 3)}
    assert {*zip(found["bucket"].tolist(), found["place"].tolist(), strict=True)} == places


def test_frequent_shingles_come_last_in_the_order_of_all(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    weights = np.where(draw.random(1 << 20) < 0.3, draw.integers(1, 256, 1 << 20), 0).astype(np.uint8)
    sizes = draw.integers(1, 40, 500)
    tokens = draw.integers(0, 2**52, sizes.sum(), dtype=np.uint64)
    ends = np.cumsum(sizes)
    expected: list[tuple[int, int]] = []
    for place, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        mine = tokens[end - size : end]
        mine.sort()
        ordered = sorted(mine.tolist(), key=lambda token: (weights[(token // PARTS) % (1 << 20)], token))
        expected += [(token, place) for token in ordered[: size - math.ceil(0.75 * size) + 1]]
    writer = PrefixWriter(tmp_path, 0.75, weights)
    writer.add(0, tokens, sizes)
    writer.close()
    found: list[tuple[int, int]] = []
    for part in range(PARTS):
        postings = np.fromfile(tmp_path / f"prefixes-{part}.0", [("token", "<u8"), ("bucket", "<u4"), ("place", "<u4")])
        assert (postings["token"] % PARTS == part).all()
        found += zip(postings["token"].tolist(), postings["place"].tolist(), strict=True)
    assert sorted(found) == sorted(expected)


words = st.text(st.sampled_from("ab_9 .,\nÄßİé你好カ🙂'"), max_size=40)


@given(st.lists(st.one_of(words, st.text(max_size=30)), max_size=12))
@settings(max_examples=300, deadline=None)
def test_tokens_stand_for_the_shingles_of_the_definition(texts: list[str]) -> None:
    conversations = [user(text) for text in texts]
    tokens, sizes = shingle_tokens([prompt_text(item) for item in conversations])
    expected = [shingles(item) for item in conversations]
    assert sizes.tolist() == [len(item) for item in expected]
    ends = np.cumsum(sizes)
    found = [tokens[end - size : end].tolist() for end, size in zip(ends, sizes, strict=True)]
    assert all(item == sorted(item) for item in found)
    for (one, first), (two, second) in itertools.combinations(zip(found, expected, strict=True), 2):
        assert len(set(one) & set(two)) == len(first & second)


def test_long_words_differ_wherever_they_do() -> None:
    word = "x" * 40
    texts = [f"one two {word[:at]}y{word[at + 1 :]}" for at in range(40)] + [f"one two {word}", f"one two {word}x"]
    tokens, _ = shingle_tokens(texts)
    assert len(set(tokens.tolist())) == 42


def test_texts_of_several_batches() -> None:
    texts = [f"prompt number {number} of many" for number in range(9000)]
    tokens, sizes = shingle_tokens(texts)
    assert set(sizes.tolist()) == {3}
    assert len(set(tokens.tolist())) == 3 * 9000
    assert tokens[3 * 8999 :].tolist() == shingle_tokens(texts[8999:])[0].tolist()


@given(
    st.lists(
        st.one_of(words, st.text(max_size=30), st.sampled_from(["One\nTwo Three", 'A "b" C d', "\\", ""])), max_size=8
    )
)
@settings(max_examples=300, deadline=None)
def test_the_json_of_a_text_has_its_shingles(texts: list[str]) -> None:
    data = [orjson.dumps(text) for text in texts]
    found = json_shingle_tokens(b"".join(data), np.array([len(item) for item in data], np.int64))
    expected = shingle_tokens([text.lower() for text in texts])
    for one, other in zip(found, expected, strict=True):
        assert one.tolist() == other.tolist()


ODD = [
    "\\",
    '\\"',
    "\\\\n",
    "\\u0041",
    "/",
    "\n",
    "\t",
    "\x00",
    "\x1f",
    "\x7f",
    "‟",
    "\u203f",
    "\u2040",
    "\u2028",
    "\u00a0",
]
ODD += [
    "é",
    "Ж",
    "Ⱥ",
    "×",
    "e\u0301",
    "ÉSΣ",
    "ΑΣ",
    "İ",
    "K",
    "²",
    "你好",
    "カ",
    "🙂",
    " ",
    "  ",
    "the",
    "THE",
    "_",
    "9",
    "a b c",
]
odd_texts = st.lists(st.one_of(st.sampled_from(ODD), st.text(st.sampled_from("abZ ,"), max_size=30))).map("".join)


@given(st.lists(st.tuples(st.one_of(odd_texts, st.text(max_size=30)), st.booleans()), max_size=12), st.booleans())
@settings(max_examples=300, deadline=None)
def test_texts_in_one_piece_have_the_shingles_of_each(texts: list[tuple[str, bool]], wide: bool) -> None:
    parts = [json.dumps(text).encode() if escaped else orjson.dumps(text) for text, escaped in texts]
    lengths = np.array([len(part) for part in parts], np.int64 if wide else np.uint32)
    found = json_shingle_tokens(b"".join(parts), lengths)
    expected = shingle_tokens([text.lower() for text, _ in texts])
    for one, other in zip(found, expected, strict=True):
        assert one.tolist() == other.tolist()


def test_every_character_in_one_piece_as_in_a_text() -> None:
    characters = [chr(code) for code in [*range(0x900), *range(0x1FF0, 0x2050), *range(0x3030, 0x3100)]]
    texts = [f"on{item}e two {item}{item} t{item} {item}hree" for item in characters]
    parts = [orjson.dumps(text) for text in texts]
    found = json_shingle_tokens(b"".join(parts), np.array([*map(len, parts)]))
    expected = shingle_tokens([text.lower() for text in texts])
    for one, other in zip(found, expected, strict=True):
        assert one.tolist() == other.tolist()


def test_long_texts_and_many_in_one_piece() -> None:
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(["a", "b", "c", "don’t", "naïve\n"], k=draw.choice([0, 2, 20]))) for _ in range(9000)
    ]
    texts[17], texts[4000] = "one two three " * 50_000, "’ été " * 30_000
    parts = [orjson.dumps(text) for text in texts]
    tokens, sizes = json_shingle_tokens(b"".join(parts), np.array([*map(len, parts)]))
    expected = [shingle_tokens([text])[0].tolist() for text in texts]
    assert sizes.tolist() == [len(item) for item in expected]
    assert tokens.tolist() == [*itertools.chain(*expected)]


def token(words: list[str]) -> int:
    """Of a few words, in whole numbers of any size."""

    def mix(value: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            value = (value ^ (value >> shift)) * factor % 2**64
        return value ^ (value >> 31)

    places = [0x243F6A8885A308D3, 0x13198A2E03707345, 0xA4093822299F31D1]
    total = 0
    for word, place in zip(words, places, strict=False):
        first, *more = (int.from_bytes(word.encode()[at : at + 8], "little") for at in range(0, len(word.encode()), 8))
        for item in more:
            first = mix((first * places[0] + item) % 2**64)
        total += first * place
    return mix(total % 2**64) >> 12


def test_the_number_of_a_shingle_is_the_hash_of_its_words() -> None:
    words = ["how", "do", "extraordinarily", "ähnliche", "internationalization_of_9"]
    texts = [" ".join(words[at : at + size]) for at in range(5) for size in (1, 2, 3)]
    expected = [token(text.split()) for text in texts]
    assert shingle_tokens(texts)[0].tolist() == expected
    assert shingle_tokens([" ".join(words)])[0].tolist() == sorted(token(words[at : at + 3]) for at in range(3))
