"""Exact and near duplicates, and what instructions share with benchmarks."""

import numpy as np
import pytest

from janus_min.duplicates import HASHES, Duplicates, Overlap, banding, normal_form, shingles


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is rain?", "what is  RAIN"),
        ("“What” (is) rain…", "What\nis\train"),
        ("Ｗｈａｔ ﬁts", "what fits"),  # NFKC
        ("Straße", "STRASSE"),
        ("cafe\u0301", "Café"),
        ("A well-known co\u00adwork", "a well known cowork"),
        ("snake_case", "snake case"),
    ],
)
def test_case_punctuation_and_spaces_do_not_count(one, other):
    assert normal_form(one) == normal_form(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1+1", "1-1"),
        ("1 - 1", "1 * 1"),
        ("4/2", "4%2"),
        ("x < 3", "x > 3"),
        ("Learn C", "Learn C#"),
        ("Learn C", "Learn C++"),
        ("$5", "€5"),
        ("🙂", "🙁"),
        ("???", "!!!"),  # no word at all
        ("dont", "don't"),
        ("काम", "किम"),  # marks are vowels
        ("1.5", "15"),
    ],
)
def test_operators_symbols_and_marks_count(one, other):
    assert normal_form(one) != normal_form(other)


def test_texts_of_symbols_have_a_normal_form():
    assert normal_form("?? !!") == "?? !!" and normal_form("1+1=?") == "1 + 1 ="


def test_shingles_are_the_set_of_trigrams():
    assert len(shingles("a b c d a b c")) == 5 - 1  # "a b c" twice
    assert [len(shingles(text)) for text in ("", "a", "a b", "a b c")] == [1, 1, 1, 1]
    distinct = {int(shingles(text)[0]) for text in ("a", "b", "a b", "b a", "a b c", "c b a")}
    assert len(distinct) == 6


def trigrams(words):
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def likeness(one, other):
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def perturbed_texts(count):
    """Each text and a copy in which some words are exchanged, both as their words."""
    random = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(500)]
    for _ in range(count):
        words = random.choice(vocabulary, random.integers(8, 300)).tolist()
        copy = list(words)
        for at in random.integers(0, len(copy), random.integers(1, 5)):
            copy[at] = str(random.choice(vocabulary))
        yield words
        yield copy


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9])
def test_near_duplicates_are_those_of_brute_force(threshold):
    """None below the threshold, nearly all above it; `-s` shows how many."""
    duplicates, remembered, clear, close = Duplicates(threshold), [], [], []
    for words in perturbed_texts(300):
        own = trigrams(words)
        best = max((likeness(own, other) for other in remembered), default=0.0)
        found = duplicates.reason(" ".join(words)) == "near duplicate"
        if not found:
            remembered.append(own)
        assert best >= threshold or not found
        if best >= threshold:
            (clear if best >= threshold + 0.05 else close).append(found)
    print(f"{threshold}: found {sum(clear)} of {len(clear)} clear, {sum(close)} of {len(close)}")
    assert len(clear) >= 50 and np.mean(clear) >= 0.98
    assert not close or np.mean(close) >= 0.9


def test_banding_finds_what_is_at_the_threshold():
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99):
        bands, rows = banding(threshold)
        assert bands * rows <= HASHES and 1 - (1 - threshold**rows) ** bands >= 0.99
    assert banding(0.8) == (16, 6)  # and 7 rows would find 96 %
    assert banding(0.001) == (HASHES, 1)


LONG = "please explain in a few short words how rain is made over the sea in summer"


def test_reasons_and_what_they_are_compared_with():
    duplicates = Duplicates(0.8)
    nearer, farther = LONG.replace("summer", "winter"), LONG.replace("short", "long")
    assert [duplicates.reason(text) for text in (LONG, LONG)] == [None, "exact duplicate"]
    assert duplicates.reason(nearer) == "near duplicate"  # 13 trigrams of 15
    assert duplicates.reason(farther) is None  # 11 of 17
    assert duplicates.reason(farther.replace("summer", "winter")) == "near duplicate"


def test_a_likeness_is_found_behind_others_that_share_its_bands():
    duplicates = Duplicates(0.5)
    for family in range(20):
        start = " ".join(f"{letter}{family}" for letter in "abcd")  # two trigrams
        assert duplicates.reason(start) is None
        for i in range(100):  # alike by 2 of 5, and 2 of 8 to each other
            assert duplicates.reason(f"{start} x{i} y{i} z{i}") is None
        assert duplicates.reason(f"{start} end") == "near duplicate"  # 2 of 3, to the first alone


def test_the_threshold_itself_is_too_like():
    nine = "a b c d e f g h i j k"  # nine trigrams
    assert Duplicates(0.9).reason(nine) is None
    duplicates = Duplicates(0.9)
    assert [duplicates.reason(text) for text in (nine, nine + " l")] == [None, "near duplicate"]
    duplicates = Duplicates(0.901)
    assert [duplicates.reason(text) for text in (nine, nine + " l")] == [None, None]


def test_threshold_one_keeps_all_but_the_same():
    duplicates = Duplicates(1)
    assert duplicates.reason("a a a a") is None
    assert duplicates.reason("a a a") is None  # the same set of trigrams
    assert duplicates.reason("a a a") == "exact duplicate"
    assert Duplicates(0.99).reason("a a a a") is None


# Benchmarks


WORDS = [f"w{i}" for i in range(30)]


def words(start, stop):
    return " ".join(WORDS[start:stop])


@pytest.mark.parametrize(
    ("prompt", "text", "overlaps"),
    [
        ("What is rain?", "what is RAIN", True),  # equal
        ("What is rain?", "Tell me: what is rain?", False),  # contained, but three words
        ("Why is rain wet?", "Tell me, why is rain wet", True),  # four
        ("Why is rain wet?", "Why is rain so wet?", False),
        ("Why is rain wet?", "Why is rain wetter?", False),
        (words(0, 12), f"x {words(0, 12)} y", True),  # contained
        (words(0, 12), words(0, 11), False),
        (words(0, 13), f"x {words(0, 13)} y", True),
        (words(0, 30), f"x {words(17, 30)}", True),  # the last 13 words
        (words(0, 30), f"{words(8, 21)} x", True),  # 13 in the middle
        (words(0, 30), f"x {words(8, 20)} y", False),  # 12
        (words(0, 30), f"{words(0, 7)} x {words(7, 14)}", False),  # not in a row
        ("1+1=2?", "Is 1+1=2", True),
    ],
)
def test_what_overlaps_with_a_bench(prompt, text, overlaps):
    bench = ["Something else altogether here", prompt, prompt, "w0 w1 w2 w3 other"]
    assert Overlap(bench).overlaps(normal_form(text)) is overlaps


def test_overlap_is_found_by_brute_force_too():
    random = np.random.default_rng(1)
    letters = list("abc")
    for _ in range(300):
        bench = " ".join(random.choice(letters, random.integers(1, 20)))
        text = " ".join(random.choice(letters, random.integers(1, 40)))
        own, known = text.split(), bench.split()
        size = min(13, len(known))
        runs = {tuple(known[i : i + size]) for i in range(len(known) - size + 1)}
        shared = any(tuple(own[i : i + size]) in runs for i in range(len(own) - size + 1))
        wanted = text == bench or (len(known) >= 4 and shared)
        assert Overlap([bench]).overlaps(text) is wanted


def test_an_empty_bench_knows_nothing():
    assert not Overlap([]).overlaps("what is rain")
