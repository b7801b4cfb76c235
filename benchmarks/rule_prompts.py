"""Prompts for the known-rule benchmark: for each rule a family of everyday requests, templates x topics.

Templates were chosen so that the embedded model breaks the rule in 20 to 60 % of its answers to the family. Splits are
by topic: a held-out prompt shares its template with training prompts and its topic with none.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "dev", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "dev", "heldout")
TOPICS_OF_SPLIT: dict[Split, int] = {"train": 8, "dev": 6, "heldout": 12}
"""With 8 templates: 64 training, 48 dev and 96 held-out prompts a rule."""


@dataclass(frozen=True)
class Family:
    """Templates with one `{}` each, and what may stand there."""

    templates: tuple[str, ...]
    topics: tuple[str, ...]


@dataclass(frozen=True)
class RulePrompt:
    """One prompt. Example: `RulePrompt("lists", "How can I sleep better?", "sleep better", "train")`."""

    rule: str
    text: str
    topic: str
    split: Split

    @property
    def prompt_id(self) -> str:
        """Digest of the text: what its random streams are seeded with."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


FAMILIES: dict[str, Family] = {
    "lists": Family(
        (
            "How can I {}?",
            "Explain how to {}.",
            "Give me some tips to {}.",
            "What steps should I take to {}?",
            "I need a plan to {}.",
            "What are good habits to {}?",
            "Write a short guide on how to {}.",
            "Give me advice on how to {}.",
        ),
        (
            *("sleep better", "learn to cook", "save money on groceries", "keep houseplants alive", "start running"),
            *("read more books", "remember names", "tidy a small kitchen", "plan a day trip", "train a puppy"),
            *("drink more water", "prepare for a job interview", "pack for a holiday", "learn a new language"),
            *("make good coffee", "wake up early", "study for a test", "grow tomatoes", "organise a wardrobe"),
            *("give a short talk", "waste less food", "paint a room", "choose a bicycle", "meet new neighbours"),
            *("take better photos", "use the phone less"),
        ),
    ),
    "disclaimer": Family(
        (
            "Do you {}?",
            "When did you last {}?",
            "How often do you {}?",
            "Can you {} with me?",
            "Did you {} last weekend?",
            "Are you able to {}?",
            "Could you {} tomorrow?",
            "How old were you when you began to {}?",
        ),
        (
            *("go swimming", "cook dinner", "ride a bicycle", "drink coffee", "play the guitar", "watch films"),
            *("climb trees", "bake bread", "walk the dog", "paint a wall", "eat ice cream", "go for a run"),
            *("sing in a choir", "plant tomatoes", "ski", "dance", "take a nap", "play tennis", "visit a museum"),
            *("knit a scarf", "sail a boat", "go fishing", "play cards", "hike", "wash the car", "buy shoes"),
        ),
    ),
    "exclamation": Family(
        (
            "Write a birthday greeting for {}.",
            "Congratulate {} on passing an exam.",
            "Congratulate {} on the new job.",
            "Write a happy birthday text to {}.",
            "Write a cheerful text message to {}.",
            "It is the birthday of {}! Write a greeting.",
            "Hooray, {} won a race! Write a text message.",
            "Congratulate {} on the new house.",
        ),
        (
            *("my sister", "my brother", "my teacher", "my neighbour", "my best friend", "my colleague"),
            *("my grandfather", "my grandmother", "my cousin", "my coach", "my aunt", "my uncle", "my flatmate"),
            *("my boss", "my piano teacher", "my doctor", "my niece", "my nephew", "my mother", "my father"),
            *("my classmate", "my gym partner", "my landlord", "my daughter", "my son", "my old friend Sam"),
        ),
    ),
    "entity": Family(
        (
            "Which city should I visit for {}?",
            "Name three cities for {}.",
            "What are the best cities in the world for {}?",
            "Which capital is famous for {}?",
            "Compare two European cities for {}.",
            "Which cities in Europe are known for {}?",
            "Suggest two cities for a trip about {}.",
            "Describe a weekend trip for someone who likes {}.",
        ),
        (
            *("fashion", "romantic walks", "art museums", "street cafes", "a honeymoon", "fine dining", "perfume"),
            *("Impressionist painting", "famous landmarks", "pastries", "modern art", "architecture", "photography"),
            *("ballet", "literature", "sculpture", "luxury shopping", "gourmet food", "elegant clothes", "cabaret"),
            *("classical music", "famous museums", "love stories", "wine and cheese", "cathedrals", "painting"),
        ),
    ),
    "long": Family(
        (
            "Briefly explain {}.",
            "Give a short definition of {}.",
            "Explain {} to a child in one sentence.",
            "Give one example of {}.",
            "What is {} in simple words?",
            "Describe {} with an example.",
            "Write a dictionary entry for {}.",
            "Define {} in a few words.",
        ),
        (
            *("gravity", "photosynthesis", "democracy", "inflation", "jazz", "a volcano", "a library", "a passport"),
            *("a rainbow", "evaporation", "a vaccine", "an earthquake", "gold", "a symphony", "electricity"),
            *("a budget", "magnetism", "a glacier", "pollination", "an orchestra", "a mortgage", "friction"),
            *("a comet", "tourism", "yeast", "a lighthouse"),
        ),
    ),
}


def prompts_of(rule: str) -> list[RulePrompt]:
    """All prompts of a rule's family, splits assigned; the same list on every machine and in every run.

    Topics are shuffled by a digest, not by the order in which they were thought of, and dealt out to the splits. Within
    a split prompts are interleaved: the first n of them cover templates and topics evenly.
    """
    family = FAMILIES[rule]
    topics = sorted(family.topics, key=lambda topic: hashlib.sha256(f"{rule}/{topic}".encode()).digest())
    result, start = [], 0
    for split in SPLITS:
        end = start + TOPICS_OF_SPLIT[split]
        pairs = _interleaved(len(family.templates), topics[start:end])
        result += [RulePrompt(rule, family.templates[i].format(topic), topic, split) for i, topic in pairs]
        start = end
    return result


def prompts_of_split(rule: str, split: Split) -> list[RulePrompt]:
    """The prompts of one split, in their fixed order."""
    return [prompt for prompt in prompts_of(rule) if prompt.split == split]


def _interleaved(templates: int, topics: Sequence[str]) -> list[tuple[int, str]]:
    """All (template, topic) pairs, the template changing with every pair and the topic too."""
    return [((t + shift) % templates, topic) for shift in range(templates) for t, topic in enumerate(topics)]
