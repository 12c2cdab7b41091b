"""Texts that are the same, nearly the same, or known from a benchmark.

All three are decided on the normal form of a text: NFKC, case folded, its words with single spaces
between them. A word is letters, digits and marks; a symbol or an operator is a word of its own, so
that "1+1" and "1-1" differ. All other punctuation is left out.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b

import numpy as np

OPERATORS = frozenset("-*/%#&@\\")  # punctuation to Unicode, and yet it can change a question
HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")  # between two letters, where it is none
HASHES = 96  # of a MinHash signature
FOUND = 0.99  # least share of the pairs right at the threshold that banding must find
SHORTEST, RUN = 4, 13  # words that a benchmark prompt must have to be looked for; words of a run


class _Characters(dict):
    """What each character (its code point) becomes in the normal form, found once."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "LNM":
            self[code] = character
        elif category == "Cf":  # invisible, such as a soft hyphen
            self[code] = ""
        else:
            counts = category[0] == "S" or character in OPERATORS
            self[code] = f" {character} " if counts else " "
        return self[code]


CHARACTERS = _Characters()


def normal_form(text: str) -> str:
    """What two texts have in common that differ in case, punctuation and spaces alone.

    Texts without any word, such as "???", keep their punctuation.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    words = HYPHEN.sub(" ", text).translate(CHARACTERS).split()
    return " ".join(words or text.split())


# Duplicates


@lru_cache(maxsize=2**17)
def _word_hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")


def _odd_numbers(*shape: int) -> np.ndarray:
    """Multipliers that lose nothing modulo 2^64, the same ones in every process."""
    return np.random.default_rng(shape).integers(0, 2**64, shape, dtype=np.uint64) | np.uint64(1)


FIRST, SECOND, THIRD = _odd_numbers(3)


def shingles(normal: str) -> np.ndarray:
    """The set of a text's word trigrams as sorted hashes, uint64; one for fewer than three words.

    Different trigrams have different hashes, but for one pair in 2^64.
    """
    words = normal.split()
    words += [""] * (3 - len(words))
    hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    return np.unique(hashes[:-2] * FIRST + hashes[1:-1] * SECOND + hashes[2:] * THIRD)


def banding(threshold: float) -> tuple[int, int]:
    """Bands of a signature and rows of a band, so that likeness at the threshold is found.

    Sets of Jaccard likeness J agree in one of b bands of r rows with probability 1 − (1 − Jʳ)ᵇ. Of
    all r that find enough the largest one compares the fewest pairs.
    """
    found = {r: 1 - (1 - threshold**r) ** (HASHES // r) for r in range(1, HASHES + 1)}
    rows = max((r for r, probability in found.items() if probability >= FOUND), default=1)
    return HASHES // rows, rows


class Duplicates:
    """Finds texts that are the same as an earlier one, or like it: MinHash in bands, then the exact
    Jaccard likeness of the sets of word trigrams.

    No pair below the threshold is reported; few pairs above it are missed (see `banding`).
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.bands, self.rows = banding(threshold)
        size = self.bands * self.rows
        self.factors, self.offsets = _odd_numbers(2, size, 1)
        self.fold = _odd_numbers(self.rows)
        self.seen: set[bytes] = set()  # digests of all texts
        self.texts: list[np.ndarray] = []  # shingles of those that were no duplicates
        # Texts that share a band are a linked list, which takes less memory than lists do:
        self.latest: dict[int, int] = {}  # hash of a band -> the last text with it
        self.earlier = array("q")  # (text, band) -> the text before it with the same hash, or -1

    def reason(self, normal: str) -> str | None:
        """Why a text, in normal form, is a duplicate, or None. At threshold 1 only the same are."""
        digest = blake2b(normal.encode(), digest_size=16).digest()
        if digest in self.seen:
            return "exact duplicate"
        self.seen.add(digest)
        return "near duplicate" if self.threshold < 1 and self._like_earlier(normal) else None

    def _like_earlier(self, normal: str) -> bool:
        """Whether a text is like one that was no duplicate. If not, it is remembered."""
        own = shingles(normal)
        signature = (own * self.factors + self.offsets).min(axis=1)
        signature = signature.reshape(self.bands, self.rows)
        keys = (signature * self.fold).sum(axis=1).tolist()
        own_set, compared = set(own.tolist()), set()
        for band, key in enumerate(keys):
            text = self.latest.get(key, -1)
            while text >= 0:
                if text not in compared and self._alike(own_set, self.texts[text]):
                    return True
                compared.add(text)
                text = self.earlier[text * self.bands + band]
        for key in keys:
            self.earlier.append(self.latest.get(key, -1))
            self.latest[key] = len(self.texts)
        self.texts.append(own)
        return False

    def _alike(self, own: set[int], other: np.ndarray) -> bool:
        """Whether the Jaccard likeness |A ∩ B| / |A ∪ B| reaches the threshold."""
        fewer, more = sorted((len(own), len(other)))
        if fewer < self.threshold * more:
            return False
        shared = len(own.intersection(other.tolist()))
        return shared >= self.threshold * (fewer + more - shared)


# Benchmarks


class Overlap:
    """Knows the prompts of benchmarks, in memory that grows with them alone."""

    def __init__(self, prompts: Iterable[str]):
        self.whole: set[str] = set()  # normal forms
        # Every run of words that counts, by its first four: (words of its prompt, where it starts)
        self.runs: dict[str, list[tuple[list[str], int]]] = {}
        for prompt in prompts:
            normal = normal_form(prompt)
            words = normal.split()
            if normal in self.whole:
                continue
            self.whole.add(normal)
            for start in range(max(1, len(words) - RUN + 1) if len(words) >= SHORTEST else 0):
                key = " ".join(words[start : start + SHORTEST])
                self.runs.setdefault(key, []).append((words, start))

    def overlaps(self, normal: str) -> bool:
        """Whether a text, in normal form, gives away a prompt.

        It does if it equals one, contains one of at least 4 words, or shares 13 words in a row.
        """
        if normal in self.whole:
            return True
        words = normal.split()
        for at in range(len(words) - SHORTEST + 1 if self.runs else 0):
            for prompt, start in self.runs.get(" ".join(words[at : at + SHORTEST]), ()):
                run = prompt[start : start + RUN]
                if words[at : at + len(run)] == run:
                    return True
        return False
