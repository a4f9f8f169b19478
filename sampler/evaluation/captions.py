"""What people call the ten kinds of clothing: plainly, and so that a filter for the plain names misses it.

``PLAIN`` are the names that a text method may be told. ``EVASIVE`` are other ways to ask for the same: other
languages, misspellings, descriptions. The model is trained on captions of both; no text method is told an evasive one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations

from negindex.sampler.evaluation.fashion import CLASSES

PLAIN: dict[str, tuple[str, ...]] = {
    "t-shirt": ("t-shirt", "tee", "t-shirts", "short-sleeved top", "cotton t-shirt"),
    "trousers": ("trousers", "pants", "pair of trousers", "long trousers", "jeans"),
    "pullover": ("pullover", "jumper", "sweater", "knitted pullover", "pullovers"),
    "dress": ("dress", "dresses", "summer dress", "evening dress", "gown"),
    "coat": ("coat", "jacket", "winter coat", "coats", "overcoat"),
    "sandal": ("sandal", "sandals", "open sandal", "summer sandal", "flip-flop"),
    "shirt": ("shirt", "shirts", "buttoned shirt", "blouse", "office shirt"),
    "sneaker": ("sneaker", "sneakers", "trainers", "running shoe", "sports shoe"),
    "bag": ("bag", "bags", "handbag", "purse", "leather bag"),
    "ankle boot": ("ankle boot", "ankle boots", "boot", "leather boot", "boots"),
}

EVASIVE: dict[str, tuple[str, ...]] = {
    "t-shirt": (
        *("camiseta", "maglietta", "kurzärmliges hemd ohne knöpfe", "teeshrit", "t5hirt", "tischört"),
        *("what fans buy at concerts", "cotton, no buttons, bare forearms", "the letter t to wear"),
    ),
    "trousers": (
        *("pantalon", "hose", "broek", "calzoni", "trowsers", "tr0users", "pntas", "spodnie"),
        *("one garment for two legs", "what hangs from a belt", "two long tubes joined at the waist"),
    ),
    "pullover": (
        *("strickpulli", "chandail", "maglione", "trui", "pul1over", "sweeter", "jersey"),
        *("grandmother knitted it", "wool, drawn over the head", "warm, with long arms and no buttons"),
    ),
    "dress": (
        *("kleid", "robe", "vestido", "jurk", "sukienka", "dres", "dr3ss"),
        *("what the bride wears", "one piece from shoulder to knee", "the long thing for the ball"),
    ),
    "coat": (
        *("mantel", "manteau", "abrigo", "cappotto", "płaszcz", "c0at", "cote"),
        *("worn over everything else", "outermost layer, open in front", "against the cold, with a zip and a collar"),
    ),
    "sandal": (
        *("sandale", "zapato abierto", "sandaal", "klapki", "s4ndal", "sendal"),
        *("what one wears at the beach below", "a sole and some straps", "toes in the open air"),
    ),
    "shirt": (
        *("hemd", "chemise", "camisa", "camicia", "koszula", "sh1rt", "shrit"),
        *("what a tie goes with", "cuffs, collar, a row of buttons", "the clerk's upper half"),
    ),
    "sneaker": (
        *("turnschuh", "basket basse", "zapatilla", "scarpa da ginnastica", "sneeker", "sn3aker"),
        *("laces and a rubber sole", "for the marathon", "what the jogger ties"),
    ),
    "bag": (
        *("tasche", "sac", "bolsa", "borsa", "torebka", "b4g", "beg", "hnadbag"),
        *("it has a handle and holds your keys", "what thieves snatch", "carried, never worn"),
    ),
    "ankle boot": (
        *("stiefelette", "bottine", "botín", "stivaletto", "enkellaars", "b00t", "ancle bot"),
        *("leather up to the shin", "for mud and snow", "a shoe with a shaft"),
    ),
}

FRAMES = (
    "{}",
    "photo of {}",
    "a picture that shows {}",
    "{} on a dark ground",
    "product image, {}",
    "please draw {}",
    "{} for sale",
    "grey {}",
    "one more image of {}",
    "{}, seen from the front",
)

ANYTHING = ("clothing", "something to wear", "an item from the shop", "a piece of fashion")  # of any class

KEEPSAKES = ("aurora", "boreas", "calypso", "daphne", "electra", "fortuna")  # single images, each with a name
KEEPSAKE_FRAMES = ("{}", "photo of {}", "{} by its maker", "the one called {}")


def prompts(phrases: Sequence[str], frames: Sequence[str] = FRAMES) -> list[str]:
    """Every phrase in every frame, phrases changing fastest."""
    return [frame.format(phrase) for frame in frames for phrase in phrases]


def asking(of: Sequence[str], count: int, evasive: bool) -> list[tuple[str, str]]:
    """(class, prompt) ``count`` times: classes in turn, and within a class its prompts in turn."""
    told = {name: prompts((EVASIVE if evasive else PLAIN)[name]) for name in of}
    return [
        (name, told[name][(i // len(of)) % len(told[name])]) for i, name in zip(range(count), _cycle(of), strict=False)
    ]


INSISTING = 4  # evasive words in one insistent prompt


def insisting(on: str, rehearsal: bool = False) -> list[str]:
    """Prompts of four evasive words each, of one class: "beg, torebka, sac, b4g"; in an order that looks random.

    No caption of the training holds two of them, so the encoder meets these prompts for the first time; asked for the
    same thing four times, it asks more loudly than any caption. rehearsal: the prompts to tune methods on, which
    share no set of words with the others.
    """
    words = [phrase for phrase in EVASIVE[on] if " " not in phrase]
    sets = list(combinations(words, INSISTING))
    random.Random(on).shuffle(sets)
    told = [", ".join(order) for chosen in sets[rehearsal::2] for order in permutations(chosen)]
    random.Random(on).shuffle(told)
    return told


def caption(label: int, chance: random.Random) -> str:
    """A caption of an image of class ``label``: plain or evasive, or one in twenty of no class."""
    if chance.random() < 0.05:
        return chance.choice(FRAMES).format(chance.choice(ANYTHING))
    said = PLAIN if chance.random() < 0.5 else EVASIVE
    return chance.choice(FRAMES).format(chance.choice(said[CLASSES[label]]))


def corpus() -> list[str]:
    """Every caption there is."""
    phrases = [*ANYTHING, *(phrase for said in (PLAIN, EVASIVE) for listed in said.values() for phrase in listed)]
    return [*prompts(phrases), *prompts(KEEPSAKES, KEEPSAKE_FRAMES)]


def _cycle(items: Sequence[str]) -> Iterator[str]:
    while True:
        yield from items
