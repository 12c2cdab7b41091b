"""The hierarchy of preferences that data generation starts from: dimension → subdimension →
preference. `hierarchy.json` holds seeds of our own; the paper's are not known.
"""

from pathlib import Path

import numpy as np

from janus_min.errors import UserError
from janus_min.files import read_json

DIMENSIONS = ("style", "background_knowledge", "informativeness", "harmlessness")  # the paper's
HIERARCHY = Path(__file__).with_suffix(".json")

# dimension -> subdimension -> seeds {preference, description}
Hierarchy = dict[str, dict[str, list[dict]]]


def read_hierarchy(path: Path = HIERARCHY) -> Hierarchy:
    """The seeds of a file like `hierarchy.json`. Raises UserError if it is none."""
    if not path.is_file():
        raise UserError(f"{path} not found: a file like janus_min/hierarchy.json is needed")
    found = read_json(path)
    if sorted(found) != sorted(DIMENSIONS):
        raise UserError(f"{path}: needed are the keys {list(DIMENSIONS)}, found {sorted(found)}")
    for dimension, subdimensions in found.items():
        lists = list(subdimensions.values()) if isinstance(subdimensions, dict) else []
        if not lists or not all(isinstance(seeds, list) and seeds for seeds in lists):
            raise UserError(f"{path}: {dimension!r} must map subdimensions to lists of seeds")
        for seed in (seed for seeds in lists for seed in seeds):
            own = seed if isinstance(seed, dict) else {}
            texts = [own.get(key) for key in ("preference", "description")]
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise UserError(
                    f"{path}: a seed of {dimension!r} must have 'preference' and 'description', "
                    f"found {seed!r}"
                )
    return {dimension: found[dimension] for dimension in DIMENSIONS}


def starting_points(hierarchy: Hierarchy, count: int, seed: list[int]) -> list[dict]:
    """Seeds for `count` users: one of each dimension, no two with the same preference, and of
    different subdimensions, as far as there are so many.
    """
    random = np.random.default_rng(seed)
    users: list[dict] = [{} for _ in range(count)]
    for dimension, subdimensions in hierarchy.items():
        names = list(subdimensions)
        order = random.permutation(len(names))
        used: set[str] = set()
        for number, user in enumerate(users):
            turns = [names[i] for i in np.roll(order, -number)]
            fresh = {n: [s for s in subdimensions[n] if s["preference"] not in used] for n in turns}
            name = next((n for n in turns if fresh[n]), turns[0])
            free = fresh[name] or subdimensions[name]
            entry = free[random.integers(len(free))]
            used.add(entry["preference"])
            user[dimension] = {"subdimension": name, **entry}
    return users
