"""ROUGE-L, against a plain table and against the package `rouge-score`."""

import random
from itertools import product

import pytest

from janus_min.rouge import lcs_length, mean_and_max_pairwise, rouge_l, within_groups, words


def table_lcs(first, second):
    """The textbook's dynamic programme, cell by cell."""
    table = [[0] * (len(first) + 1) for _ in range(len(second) + 1)]
    for j, right in enumerate(second):
        for i, left in enumerate(first):
            same = table[j][i] + 1 if left == right else 0
            table[j + 1][i + 1] = max(same, table[j][i + 1], table[j + 1][i])
    return table[-1][-1]


def test_words_are_runs_of_letters_and_digits():
    assert words("Don't PANIC: 42_times, né à Žilina!") == [
        *("don", "t", "panic", "42", "times", "né", "à", "žilina")
    ]


def test_by_hand():
    """police killed the gunman / police kill the gunman: 3 common words of 4 and 4 (Lin 2004);
    the gunman kill police: "the gunman" is all that keeps its order.
    """
    assert rouge_l("police killed the gunman", "Police kill the gunman.") == 0.75
    assert rouge_l("police killed the gunman", "the gunman kill police") == 0.5
    assert rouge_l("a b c d", "b d") == pytest.approx(2 * 1 * 0.5 / (1 + 0.5))  # R = 1, P = 1/2
    assert rouge_l("a b", "A, b!") == 1.0 and rouge_l("a b", "c d") == 0.0


def test_a_text_without_words_is_like_nothing():
    assert rouge_l("", "") == rouge_l("a", "") == rouge_l("", "a") == rouge_l("?!", "?!") == 0.0


def test_bits_are_the_table_on_all_short_texts():
    texts = [text for length in range(6) for text in product("ab", repeat=length)]
    for first, second in product(texts, texts):
        assert lcs_length(first, second) == table_lcs(first, second), (first, second)


@pytest.mark.parametrize("letters", ["ab", "abcdef", "abcdefghijklmnopqrstuvwxyz"])
def test_bits_are_the_table_on_long_texts(letters):
    """Beyond the 64 bits of a machine's word."""
    draw = random.Random(0)
    for _ in range(30):
        first, second = (draw.choices(letters, k=draw.randrange(1, 200)) for _ in range(2))
        assert lcs_length(first, second) == lcs_length(second, first) == table_lcs(first, second)


def test_same_numbers_as_the_package_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    draw = random.Random(1)
    pool = ["You", "you", "value", "plain", "WORDS.", "it's", "a_b", "--", "3.5", "(so)", "\n", "…"]
    for _ in range(200):
        first, second = (" ".join(draw.choices(pool, k=draw.randrange(0, 60))) for _ in range(2))
        theirs = scorer.score(first, second)["rougeL"].fmeasure
        assert rouge_l(first, second) == pytest.approx(theirs, abs=1e-12), (first, second)


def test_mean_and_max_over_all_pairs():
    """a b / a c is 1/2, a b / d is 0, a c / d is 0."""
    assert mean_and_max_pairwise(["a b", "a c", "d"]) == (pytest.approx(1 / 6), 0.5)
    assert mean_and_max_pairwise(["a b", "a b"]) == (1.0, 1.0)
    with pytest.raises(AssertionError, match="pairs need two texts, found 1"):
        mean_and_max_pairwise(["a"])


def test_means_over_groups():
    """Averages 1/6 and 1, maxima 1/2 and 1: each group counts once, whatever its size."""
    groups = [["a b", "a c", "d"], ["a b", "a b"]]
    assert within_groups(groups) == (pytest.approx(7 / 12), 0.75)
    assert within_groups([]) is None
