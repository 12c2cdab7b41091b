"""The seeds of the preference hierarchy: names, sizes, and that no two preferences say the same."""

import json
import re
from itertools import combinations
from pathlib import Path

PATH = Path(__file__).resolve().parents[1] / "janus_min" / "hierarchy.json"
DIMENSIONS = ["style", "background_knowledge", "informativeness", "harmlessness"]


def unique_keys(pairs):
    """An object as a dict. The parser itself would drop all but the last of equal keys."""
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), f"a key is there twice: {keys}"
    return dict(pairs)


HIERARCHY = json.loads(PATH.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
SUBDIMENSIONS = [(name, leaves) for d in HIERARCHY.values() for name, leaves in d.items()]
LEAVES = [leaf for _, leaves in SUBDIMENSIONS for leaf in leaves]


def test_four_dimensions_in_order():
    assert list(HIERARCHY) == DIMENSIONS


def test_sizes():
    for dimension, subdimensions in HIERARCHY.items():
        assert 5 <= len(subdimensions) <= 6, dimension
    for name, leaves in SUBDIMENSIONS:
        assert 5 <= len(leaves) <= 6, name
    assert len(LEAVES) >= 110


def test_subdimensions_are_lower_case_words_of_one_dimension_only():
    names = [name for name, _ in SUBDIMENSIONS]
    assert all(re.fullmatch(r"[a-z]+", name) for name in names), names
    assert len(set(names)) == len(names)


def test_leaves_have_two_texts_of_plain_ascii_on_one_line():
    for leaf in LEAVES:
        assert list(leaf) == ["preference", "description"], leaf
        for text in leaf.values():
            assert isinstance(text, str) and text.isascii() and text.isprintable(), leaf
            assert text == " ".join(text.split()), leaf


def test_lengths_in_words():
    for leaf in LEAVES:
        assert 2 <= len(leaf["preference"].split()) <= 6, leaf
        assert 15 <= len(leaf["description"].split()) <= 35, leaf
        assert re.search(r"[a-z]\.$", leaf["description"]), leaf


def test_preferences_are_unique():
    seen = {}
    for leaf in LEAVES:
        name = leaf["preference"].lower()
        assert name not in seen, (seen[name], leaf)
        seen[name] = leaf


def test_descriptions_differ_and_begin_differently():
    """Below a half of the words of any two are shared, and no two begin with the same three."""
    texts = [leaf["description"].lower() for leaf in LEAVES]
    words = [re.findall(r"[a-z']+", text) for text in texts]
    for (a, one), (b, other) in combinations(zip(words, texts), 2):
        shared, either = len({*a} & {*b}), len({*a} | {*b})
        assert shared < 0.5 * either, f"{one!r} and {other!r}"
        assert a[:3] != b[:3], f"{one!r} and {other!r}"


def test_lines_fit_the_screen():
    assert max(map(len, PATH.read_text(encoding="utf-8").splitlines())) <= 180
