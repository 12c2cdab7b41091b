"""The seeds of the preference hierarchy: names, sizes, and that no two preferences say the same;
how they are read, and how users get theirs.
"""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from janus_min.errors import UserError
from janus_min.hierarchy import read_hierarchy, starting_points

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


# Read from a file, and drawn from


def leaf(name: str) -> dict:
    return {"preference": name, "description": f"All is {name}."}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "not found: a file like janus_min/hierarchy.json is needed"),
        ("[]", "is damaged: a JSON object is needed"),
        ("{", "is damaged: "),
        ({"style": None}, r"needed are the keys \['style', .*\], found \['background_knowledge', "),
        ({"length": {"a": [leaf("a")]}}, r"needed are the keys .*'length'"),
        ({"style": []}, "'style' must map subdimensions to lists of seeds"),
        ({"style": {}}, "'style' must map subdimensions to lists of seeds"),
        ({"style": {"tone": []}}, "'style' must map subdimensions to lists of seeds"),
        ({"style": {"tone": leaf("a")}}, "'style' must map subdimensions to lists of seeds"),
        ({"style": {"tone": ["warm"]}},
         "a seed of 'style' must have 'preference' and 'description', found 'warm'"),
        ({"style": {"tone": [None]}}, "a seed of 'style' must have .*, found None"),
        ({"style": {"tone": [leaf("a"), {"preference": "b"}]}}, r"found \{'preference': 'b'\}"),
        ({"style": {"tone": [leaf("a") | {"description": " "}]}}, "a seed of 'style' must have"),
        ({"style": {"tone": [leaf("a") | {"preference": 3}]}}, "a seed of 'style' must have"),
    ],
)  # fmt: skip
def test_files_that_are_no_hierarchy_say_why(tmp_path, change, message):
    path = tmp_path / "seeds.json"
    if isinstance(change, dict):
        found = {d: {"kind": [leaf(d)]} for d in DIMENSIONS} | change
        found = {dimension: seeds for dimension, seeds in found.items() if seeds is not None}
        path.write_text(json.dumps(found))
    elif change:
        path.write_text(change)
    with pytest.raises(UserError, match=message) as caught:
        read_hierarchy(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_hierarchy_of_ones_own_is_read_in_the_order_of_the_dimensions(tmp_path):
    seeds = {dimension: {"kind": [leaf(dimension)]} for dimension in reversed(DIMENSIONS)}
    path = tmp_path / "seeds.json"
    path.write_text(json.dumps(seeds))
    assert list(read_hierarchy(path).items()) == [(d, seeds[d]) for d in DIMENSIONS]


@pytest.mark.parametrize("count", [1, 3, 5, 20])
def test_users_start_from_different_preferences(count):
    """And from different subdimensions, of which each dimension has at least five."""
    for number in range(40):
        users = starting_points(HIERARCHY, count, [0, number])
        assert len(users) == count
        for dimension in DIMENSIONS:
            points = [user[dimension] for user in users]
            assert len({point["preference"] for point in points}) == count
            kinds = [point["subdimension"] for point in points]
            most = -(-count // len(HIERARCHY[dimension]))
            assert max(map(kinds.count, kinds)) <= most
            for point in points:
                seed = {key: point[key] for key in ("preference", "description")}
                assert seed in HIERARCHY[dimension][point["subdimension"]]
        assert all(list(user) == list(DIMENSIONS) for user in users)


def test_starting_points_are_a_function_of_the_seed_and_reach_everything():
    drawn = [starting_points(HIERARCHY, 3, [1, number]) for number in range(400)]
    assert drawn[5] == starting_points(HIERARCHY, 3, [1, 5])
    assert all(a != b for a, b in combinations(drawn[:40], 2))
    assert drawn[0] != starting_points(HIERARCHY, 3, [2, 0])
    for place in range(3):
        for dimension in DIMENSIONS:
            found = {users[place][dimension]["preference"] for users in drawn}
            wanted = {s["preference"] for seeds in HIERARCHY[dimension].values() for s in seeds}
            assert found == wanted


def test_small_subdimensions_give_way_and_only_too_few_seeds_repeat():
    seeds = {"few": [leaf("a")], "many": [leaf(name) for name in "bcde"]}
    for number in range(20):
        users = starting_points(dict.fromkeys(DIMENSIONS, seeds), 5, [number])
        for dimension in DIMENSIONS:
            assert sorted(user[dimension]["preference"] for user in users) == list("abcde")
    assert len(starting_points(dict.fromkeys(DIMENSIONS, seeds), 8, [0])) == 8
