"""ROUGE-L: how much of two texts is the same words in the same order (Lin 2004, "ROUGE: A Package
for Automatic Evaluation of Summaries"). The paper measures with it how much preferences, and the
responses to one instruction, differ.

    Note: words are runs of Unicode letters and digits, without stemming; on ASCII texts the
    numbers are those of the package `rouge-score`.
"""

import math
import re
from collections.abc import Iterable
from itertools import combinations

WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters and digits."""
    return WORD.findall(text.lower())


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L of two texts, F-measure with β = 1 (Lin 2004, section 3).

        P = LCS / m,  R = LCS / n,  F = 2·P·R / (P + R) = 2·LCS / (m + n)

    LCS is the length of the longest common subsequence of their m and n words.
    From 0 to 1; 0 where a text has no words.
    """
    return _f_measure(words(first), words(second))


def mean_and_max_pairwise(texts: list[str]) -> tuple[float, float]:
    """Average and maximum of ROUGE-L over all pairs of two or more texts."""
    assert len(texts) > 1, f"pairs need two texts, found {len(texts)}"
    lists = [words(text) for text in texts]
    scores = [_f_measure(*pair) for pair in combinations(lists, 2)]
    return sum(scores) / len(scores), max(scores)


def within_groups(groups: Iterable[list[str]]) -> tuple[float, float] | None:
    """Means over groups of two or more texts of the average and of the maximum of ROUGE-L in each;
    None without a group.
    """
    scores = [mean_and_max_pairwise(group) for group in groups]
    if not scores:
        return None
    averages, maxima = (math.fsum(column) / len(scores) for column in zip(*scores))
    return averages, maxima


def lcs_length(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence of two lists of words.

    L[j][i] of the textbook's table is the answer for j words of `second` and i of `first`. Along
    its row it grows by 0 or 1, so one integer V is a row: bit i is 0 where L grows with word i of
    `first` (Crochemore et al. 2001). A run of ones and the 0 above it are a block. The next word
    of `second` moves each block's growth down to the block's first match; a match above all
    growth is new growth. Addition does this in all blocks at once, as the carry of a block's first
    match runs up to its 0; subtraction keeps the ones between, which the carry clears.

        U = V & matches,  V' = (V + U) | (V − U)      (Hyyrö 2004, "Bit-parallel LCS-length
                                                       computation revisited")
    """
    matches: dict[str, int] = {}  # bits of the places in `first` at which a word stands
    for place, word in enumerate(first):
        matches[word] = matches.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    row = every  # nothing grows over no words
    for word in second:
        hits = row & matches.get(word, 0)
        row = ((row + hits) | (row - hits)) & every  # without the carry out of the top block
    return len(first) - row.bit_count()


def _f_measure(first: list[str], second: list[str]) -> float:
    return 2 * lcs_length(first, second) / max(1, len(first) + len(second))
