"""The preferences of a collection as one page: a sunburst of dimension → subdimension → preference.

The tree is counted from the rows of a collection, which name more preferences than a picture can
show, or read from the seed hierarchy. The page is `sunburst.html` with the tree inside it: one file
that opens without a server and asks the network for nothing.
"""

import json
import re
from collections import Counter
from html import escape
from pathlib import Path
from typing import TypedDict

import numpy as np

from janus_min.errors import UserError
from janus_min.files import read_json, replace_file
from janus_min.formats import read_jsonl, text_field, unicode_text

TEMPLATE = Path(__file__).with_suffix(".html")
LEVELS = ("dimension", "subdimension", "preference")
LIST = f"a list of objects with {', '.join(map(repr, LEVELS[:2]))} and {LEVELS[2]!r}"
EXAMPLES = 3  # how many of the names that are not shown stand in a description


class Node(TypedDict, total=False):
    """One arc. The count of a node is the sum of its children's."""

    name: str
    count: int
    description: str
    children: list["Node"]  # absent in a preference, and in what stands for others


# The tree of a collection


def tree_of_rows(path: Path, subdimensions: int = 8, preferences: int = 6, seed: int = 0) -> Node:
    """How often the rows of a collection name each preference; rows that name none do not count.

    Of each dimension the most frequent `subdimensions` are kept, and of each of these the most
    frequent `preferences`; those equally frequent are drawn by `seed`. The rest is gathered in one
    node "N others", so that all counts stay true. A preference keeps its first description.
    Raises UserError for sizes below 1, for a preference set of another form, and for no set at all.
    """
    for flag, size in (("subdimensions", subdimensions), ("preferences", preferences)):
        if size < 1:
            raise UserError(f"--{flag} is {size}, must be at least 1")
    rows, counts, descriptions = _count(path)
    random, dimensions = np.random.default_rng(seed), []
    for dimension, parts in counts.items():
        totals = Counter({name: leaves.total() for name, leaves in parts.items()})
        kept, others = _most_frequent(totals, subdimensions, random)
        nodes = []
        for subdimension in kept:
            leaves = parts[subdimension]
            shown, hidden = _most_frequent(leaves, preferences, random)
            texts = [descriptions[dimension, subdimension, name] for name in shown]
            named = [_leaf(name, leaves[name], text) for name, text in zip(shown, texts)]
            nodes.append(_parent(subdimension, named + _others(hidden, leaves)))
        dimensions.append(_parent(dimension, nodes + _others(others, totals)))
    root = _parent("all preferences", dimensions)
    sizes = _sizes([[len(leaves) for leaves in parts.values()] for parts in counts.values()])
    root["description"] = f"{root['count']:,} mentions in {rows:,} rows: {sizes}."
    return root


def _count(
    path: Path,
) -> tuple[int, dict[str, dict[str, Counter[str]]], dict[tuple[str, ...], str]]:
    """Reads a collection once: rows that name preferences, how often each one, its description."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    descriptions: dict[tuple[str, ...], str] = {}
    rows, columns = 0, set()
    for number, record in read_jsonl(path):
        columns |= record.keys()
        entries = record.get("preference_set") or []
        where = f"{path}:{number}: 'preference_set'"
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{where} must be {LIST}")
        rows += bool(entries)
        for entry in entries:
            names = tuple(text_field(entry, (level,), where) for level in LEVELS)
            dimension, subdimension, preference = names
            counts.setdefault(dimension, {}).setdefault(subdimension, Counter())[preference] += 1
            text = text_field(entry, ("description",), where, optional=True)
            descriptions.setdefault(names, text)
    if not rows:
        raise UserError(
            f"{path}: no row has 'preference_set', found {sorted(columns)}; needed is {LIST}, as "
            "in the collection that datagen.py makes"
        )
    return rows, counts, descriptions


def _most_frequent(
    counts: Counter[str], keep: int, random: np.random.Generator
) -> tuple[list[str], list[str]]:
    """The names to keep and the others, both from the most frequent down."""
    # Sorted first: the draw among equals must not depend on the order of the rows.
    names = sorted(counts)
    drawn = [names[i] for i in random.permutation(len(names))]
    drawn.sort(key=lambda name: -counts[name])
    return drawn[:keep], drawn[keep:]


def _others(names: list[str], counts: Counter[str]) -> list[Node]:
    """The node that stands for all these names, if there are any."""
    if not names:
        return []
    name = f"{len(names):,} other{'s' if len(names) > 1 else ''}"
    text = f"Not shown one by one: {'; '.join(names[:EXAMPLES])}{'; …' * (len(names) > EXAMPLES)}"
    return [_leaf(name, sum(counts[name] for name in names), text)]


# The tree of the seeds


def tree_of_hierarchy(path: Path) -> Node:
    """The seeds, {dimension: {subdimension: [{"preference", "description"}, …]}}, one of each.

    Raises UserError for a file of another form.
    """
    if not path.is_file():
        raise UserError(f"{path} not found: a JSON file of seed preferences is needed")
    hierarchy, dimensions = read_json(path), []
    for dimension, parts in hierarchy.items():
        if not isinstance(parts, dict):
            raise UserError(f"{path}: {dimension!r} must be an object of subdimensions")
        nodes = [
            _parent(
                unicode_text(name, str(path)), _seeds(seeds, f"{path}: {dimension!r}, {name!r}")
            )
            for name, seeds in parts.items()
        ]
        dimensions.append(_parent(unicode_text(dimension, str(path)), nodes))
    root = _parent("all preferences", dimensions)
    if not root["count"]:
        raise UserError(f"{path} has no preference: each subdimension needs a list of them")
    sizes = _sizes([[part["count"] for part in node["children"]] for node in dimensions])
    root["description"] = f"The seeds: {sizes}."
    return root


def _seeds(seeds: object, where: str) -> list[Node]:
    """The preferences of one subdimension."""
    if not isinstance(seeds, list) or not all(isinstance(seed, dict) for seed in seeds):
        raise UserError(f"{where} must be a list of objects with 'preference' and 'description'")
    names = [text_field(seed, ("preference",), where) for seed in seeds]
    texts = [text_field(seed, ("description",), where) for seed in seeds]
    return [_leaf(name, 1, text) for name, text in zip(names, texts)]


# Nodes


def _leaf(name: str, count: int, description: str) -> Node:
    return {"name": name, "count": count, "description": description}


def _parent(name: str, children: list[Node]) -> Node:
    count = sum(child["count"] for child in children)
    return {"name": name, "count": count, "description": "", "children": children}


def _sizes(preferences: list[list[int]]) -> str:
    """How many names there are at each level; given is the last one, by dimension and part."""
    parts = [count for counts in preferences for count in counts]
    sizes = zip(LEVELS, (len(preferences), len(parts), sum(parts)))
    return ", ".join(f"{count:,} {name}{'s' * (count != 1)}" for name, count in sizes)


# The page


def page(tree: Node, title: str) -> str:
    """The page of a tree, whole: style, script and data are inside it."""
    values = {
        "TITLE": escape(unicode_text(title, "--title")),
        "SUMMARY": escape(tree["description"]),
        "TREE": _script_safe(json.dumps(tree, ensure_ascii=False)),
    }
    # In one pass: what a name holds is never taken for a mark of the template.
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub("@@(TITLE|SUMMARY|TREE)@@", lambda mark: values[mark[1]], template)


def _script_safe(text: str) -> str:
    """JSON without what ends a script element or, in older JavaScript, a line."""
    return re.sub("[<>&\u2028\u2029]", lambda letter: f"\\u{ord(letter[0]):04x}", text)


def write_page(tree: Node, title: str, out: Path) -> None:
    """Writes the page of a tree; who has an older one open keeps it until they load it again."""
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a directory: --out is the file to write, in one")
    replace_file(out, page(tree, title).encode("utf-8"))
