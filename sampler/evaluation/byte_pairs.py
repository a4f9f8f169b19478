"""Byte-pair encoding learned from texts, the same every time: ties go to the pair that comes first in the alphabet.

The trainer of the `tokenizers` package breaks ties by chance, so that weights could not be made again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

Word = tuple[str, ...]
END = "</w>"


def learn(words: Counter[str], merges: int) -> list[tuple[str, str]]:
    """At most so many merges, the most frequent pair first. words: {a word's letters: how often it comes}."""
    pieces = {_letters(word): count for word, count in sorted(words.items())}
    found: list[tuple[str, str]] = []
    while len(found) < merges:
        pairs = _pairs(pieces)
        if not pairs:
            break
        pair = min(pairs, key=lambda one: (-pairs[one], one))
        pieces = {_merged(word, pair): count for word, count in pieces.items()}
        found.append(pair)
    return found


def vocabulary(marks: Iterable[str], alphabet: Iterable[str], merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """{token: id}: the marks, each letter inside a word and at its end, what each merge makes. No text is unknown."""
    letters = sorted(alphabet)
    listed = [*marks, *letters, *(letter + END for letter in letters), *("".join(pair) for pair in merges)]
    return {token: i for i, token in enumerate(dict.fromkeys(listed))}


def _letters(word: str) -> Word:
    return (*word[:-1], word[-1] + END)


def _pairs(pieces: dict[Word, int]) -> Counter[tuple[str, str]]:
    pairs: Counter[tuple[str, str]] = Counter()
    for word, count in pieces.items():
        for pair in pairwise(word):
            pairs[pair] += count
    return pairs


def _merged(word: Word, pair: tuple[str, str]) -> Word:
    """The word with every occurrence of the pair as one piece, from the left."""
    made: list[str] = []
    for piece in word:
        if made and (made[-1], piece) == pair:
            made[-1] += piece
        else:
            made.append(piece)
    return tuple(made)
