"""Prompts that also occur in training: by hand, and beside a comparison of all pairs."""

import random
import re

import pytest

from naysay.evaluation.leakage import MOST_MISSED, PERMUTATIONS, bands, find_leaks


def conversation(*turns, system=""):
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    return ([{"role": "system", "content": system}] if system else []) + messages


def test_the_same_words_are_exact_and_nearly_the_same_ones_near():
    trained = [
        conversation("How do I bake a loaf of bread at home without any yeast today?"),
        conversation("Hi", "Hello!", "Tell me a joke."),
    ]
    asked = [
        conversation("how do I bake a loaf of bread at home, without any yeast today"),
        conversation("How do I bake a loaf of bread at home without any yeast today?", system="Be brief."),
        # 12 shingles of the first prompt, one of its own: 12 / 13
        conversation("How do I bake a loaf of bread at home without any yeast today, please?"),
        # 9 of 12 shingles in common, 3 of its own: 9 / 15
        conversation("How do I bake a loaf of bread at home without some yeast today?"),
        conversation("Tell me a joke."),
        conversation("Hi", "Hello!", "tell me a joke"),
    ]
    assert find_leaks(asked, trained, threshold=0.7) == ["exact", "exact", "near", "", "", "exact"]
    assert find_leaks(asked, trained, threshold=9 / 15)[3] == "near"
    assert find_leaks(asked, trained, threshold=9 / 15 + 1e-6)[3] == ""
    assert find_leaks(asked[2:3], trained, threshold=12 / 13 + 1e-6) == [""]
    assert find_leaks(asked, [], threshold=0.7) == [""] * 6
    assert find_leaks([], trained, threshold=0.7) == []


def test_short_prompts_and_prompts_without_words_are_compared_as_they_are():
    trained = [conversation("Why?"), conversation("???")]
    asked = [conversation(text) for text in ("why", "??? ", "!!!", "Why not?")]
    assert find_leaks(asked, trained, threshold=0.7) == ["exact", "exact", "", ""]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9])
def test_nothing_near_is_missed_and_nothing_else_is_called_near(threshold):
    """Changed copies of 40 prompts, compared pair by pair with sets of words."""
    draw = random.Random(7)
    words = [f"w{i}" for i in range(300)]
    trained = [draw.choices(words, k=40) for _ in range(40)]
    asked = []
    for text in trained:
        for changes in (1, 1, 2, 4, 7, 11):
            changed = list(text)
            for place in draw.sample(range(40), changes):
                changed[place] = draw.choice(words)
            asked.append(changed)
    expected = []
    for text in asked:
        similar = max(similarity(text, other) for other in trained)
        expected.append("exact" if text in trained else "near" if similar >= threshold else "")
    found = find_leaks(
        [conversation(" ".join(text)) for text in asked],
        [conversation(" ".join(text)) for text in trained],
        threshold=threshold,
    )
    assert 0 < expected.count("near") < len(expected)
    assert found == expected


def similarity(one, other):
    first, second = ({tuple(text[i : i + 3]) for i in range(len(text) - 2)} for text in (one, other))
    return len(first & second) / len(first | second)


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.5, 0.7, 0.95, 1.0])
def test_the_bands_miss_few_pairs_at_the_threshold(threshold):
    number, rows = bands(threshold)
    assert number * rows <= PERMUTATIONS
    if rows > 1 or threshold > 0.1:
        assert (1 - threshold**rows) ** number <= MOST_MISSED
    assert bands(0.7) == (32, 4)


def test_words_are_those_of_ingest():
    """The same definition of a word: what is exact here has similarity 1 there."""
    from naysay.inputs.shingles import prompt_text, shingle_tokens, spoken_words

    texts = ["It's 5 o'clock, isn't it?", "东京 Tower 2", "naïve_name x", "a\n\tb"]
    for text in texts:
        again = conversation(re.sub(r"\s+", "  ", text.upper()) + " !")
        one, other = (shingle_tokens([prompt_text(item)])[0] for item in (conversation(text), again))
        assert spoken_words(conversation(text)) == spoken_words(again)
        assert one.tolist() == other.tolist()
