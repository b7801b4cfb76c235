"""The rules and prompts of the known-rule benchmark."""

import hashlib
import json

import pytest
from benchmarks.rule_prompts import FAMILIES, SPLITS, TOPICS_OF_SPLIT, prompts_of, prompts_of_split
from benchmarks.rules import LONG_WORDS, RULES, rewrite

BREAKS = {
    "lists": [
        "1. Sleep early.\n2. Rise early.",
        "Here are some tips:\n\n1. **Plan** your day",
        "Steps:\n  - wash\n  - dry",
        "Try this:\n* one\n* two",
        "First:\n• bread",
        "1) Begin",
        "You need:\n\n12.",
        "Do:\n1.**Walk**",
    ],
    "disclaimer": [
        "As an AI, I cannot swim.",
        "I'm an AI language model.",
        "I am just a chatbot designed to help.",
        "Sorry, I'm a Chat-Bot.",
        "as a large language model I do not eat",
        "I'm a virtual assistant.",
        "I am an A.I. and have no legs.",
        "I'm only an AI-based helper.",
        "An artificial intelligence does not sleep.",
    ],
    "exclamation": ["Congratulations!", "Wow! That is good.", "Really?!", "!"],
    "entity": ["Visit Paris.", "Rome, Paris and Tokyo", "Paris's museums", '"Paris"'],
    "long": [" ".join(["word"] * (LONG_WORDS + 1)), "a\nb\t" * 21],
}
KEEPS = {
    "lists": [
        "Sleep early and rise early.",
        "In 1999. I was there.",
        "It costs 3.50 a day.\n2020 was a year.",
        "I like tea - and coffee.",
        "**Bold** text\nand *stress*",
        "A well-known way",
        "100. is too long a number",
        "",
    ],
    "disclaimer": [
        "I swim every day in Hawaii.",
        "He said the aid came late.",
        "AIM is a word, and so is MAID.",
        "The model of the train",
        "My assistant helps me.",
        "ai is a sloth with three toes",
    ],
    "exclamation": ["Congratulations.", "Is it 5 ¡ or ?", ""],
    "entity": ["Visit Rome.", "the Parisian way", "paris in small letters", "Parish church"],
    "long": [" ".join(["word"] * LONG_WORDS), "word", ""],
}


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in BREAKS.items() for text in texts])
def test_a_violation_is_seen(rule, text):
    assert RULES[rule].violates(text)


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in KEEPS.items() for text in texts])
def test_what_keeps_the_rule_is_left_alone(rule, text):
    assert not RULES[rule].violates(text)


def test_every_rule_has_examples_and_prompts():
    assert set(BREAKS) == set(KEEPS) == set(RULES) == set(FAMILIES)
    assert len(RULES) >= 5


@pytest.mark.parametrize("text", [text for texts in (*BREAKS.values(), *KEEPS.values()) for text in texts])
def test_rewriting_changes_no_verdict_and_no_number_of_words(text):
    assert [rule.violates(rewrite(text)) for rule in RULES.values()] == [rule.violates(text) for rule in RULES.values()]
    assert len(rewrite(text).split()) == len(text.split())


def test_rewriting_changes_the_spelling():
    assert rewrite("You are going to the sea.") == "Ye be goin' t' th' sea."
    assert rewrite("Your king and my youth") == "Yer king an' me youth"


@pytest.mark.parametrize("rule", RULES)
def test_splits_share_no_prompt_and_no_topic(rule):
    prompts = prompts_of(rule)
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 8 * sum(TOPICS_OF_SPLIT.values())
    topics = [{prompt.topic for prompt in prompts if prompt.split == split} for split in SPLITS]
    assert [len(found) for found in topics] == [TOPICS_OF_SPLIT[split] for split in SPLITS]
    assert len(set.union(*topics)) == sum(map(len, topics))


@pytest.mark.parametrize("rule", RULES)
def test_the_first_prompts_of_a_split_cover_templates_and_topics_evenly(rule):
    prompts = prompts_of_split(rule, "heldout")
    for count, topics in ((12, 12), (24, 12)):
        first = prompts[:count]
        assert len({prompt.topic for prompt in first}) == topics
        used = [sum(prompt.text == t.format(prompt.topic) for prompt in first) for t in FAMILIES[rule].templates]
        assert max(used) - min(used) <= 1 + count // 12


def test_prompts_are_the_same_on_every_machine():
    text = json.dumps([[p.rule, p.text, p.split, p.prompt_id] for rule in RULES for p in prompts_of(rule)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7ab4c9f1d95ba43d"


def test_no_prompt_mentions_what_its_rule_forbids():
    for rule in ("disclaimer", "entity", "lists", "long"):
        assert not any(RULES[rule].violates(prompt.text) for prompt in prompts_of(rule))
