"""People compare two models: a page that asks them, blind, and what their answers add up to.

As in the paper's human evaluation, of two responses to an instruction one is better, or both are
good, or both are bad. The page is `sheet.html` with the items inside it: one file that opens
without a server and asks the network for nothing. Which response stands on which side is in a key
file, which stays with whoever reads the answers.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from janus_min.errors import UserError
from janus_min.files import read_json, replace_file, text_hash, write_json
from janus_min.formats import text_field, unicode_text
from janus_min.intervals import share_interval

TEMPLATE = Path(__file__).with_name("sheet.html")
KEY = ("sheet", "models", "bench", "items")  # of a key file
EXPORT = ("sheet", "annotator", "judgments")  # of what the page exports
CHOICES = ("left", "both good", "both bad", "right")  # as the page names them
OUTCOMES = ("win", "both good", "both bad", "lose")  # of the first model


# The page


def write_sheet(
    items: list[dict], models: tuple[str, str], bench: dict, out: Path, seed: int
) -> Path:
    """Writes the page that asks about these items, and its key file. Returns the key's path.

    An item has "id" (no two the same), "source", "system", "prompt" and "responses", one of each
    model. `seed` draws on which side each model stands: on the left as often as on the right, or
    once more. Raises UserError if there is nothing to ask, if a text or the page cannot be written,
    or if judgments of another sheet would lose their key.
    """
    if out.suffix != ".html" or not out.parent.is_dir():
        raise UserError(f"{out}: needed is a name that ends in .html, in a directory that exists")
    if not items:
        raise UserError(f"{out}: there is no item to judge")
    shown, sides = _blind(items, np.random.default_rng(seed))
    about = {"models": list(models), "bench": bench, "items": sides}
    unicode_text(
        json.dumps(about, ensure_ascii=False), f"{out}: the name of a model, bench or source"
    )
    sheet = text_hash(json.dumps([shown, about]))
    key = out.with_suffix(".key.json")
    if key.exists() and (other := read_json(key).get("sheet")) != sheet:
        raise UserError(
            f"{key} is the key of another sheet, {other}, whose judgments are lost without it: "
            f"give the new one, {sheet}, another name, or remove that file"
        )
    # JSON inside a script element: only a tag could end it.
    data = json.dumps({"sheet": sheet, "items": shown}, ensure_ascii=False).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("@@SHEET@@", data)
    write_json(key, {"sheet": sheet, **about})
    replace_file(out, page.encode("utf-8"))
    return key


def _blind(items: list[dict], random: np.random.Generator) -> tuple[list[dict], list[dict]]:
    """The items as the page has them, and for the key whose response is on the left."""
    shown, sides = [], []
    # Of an odd number of items, chance says who is on the left once more.
    swaps = random.permutation((np.arange(len(items)) + random.integers(2)) % 2)
    for item, swap in zip(items, swaps):
        left, right = item["responses"][::-1] if swap else item["responses"]
        texts = {"id": item["id"], "system": item["system"], "prompt": item["prompt"]}
        shown.append(texts | {"left": left, "right": right})
        unicode_text("".join(shown[-1].values()), f"item {item['id']!r}")
        left = "theirs" if swap else "ours"
        sides.append({"id": item["id"], "source": item["source"], "left": left})
    return shown, sides


# What people answered


def read_sheets(key: Path, files: list[Path]) -> dict:
    """What the exports of a sheet add up to, unblinded; the rates are fractions of judgments.

    "tie_win" is win + both good, and "interval" is its 95 % interval: several judgments of an item
    count there as one, for they are not independent. Several files of one annotator are joined.
    Raises UserError that names the file that is no key or no export of this sheet, or the two files
    in which an annotator judges an item differently.
    """
    about = _read_key(key)
    left = {item["id"]: item["left"] for item in about["items"]}
    judged: dict[str, dict[str, tuple[str, Path]]] = {}  # by annotator and item
    for path in files:
        annotator, judgments = _read_export(path, about["sheet"], left.keys())
        own = judged.setdefault(annotator, {})
        for item, choice in judgments.items():
            before, other = own.setdefault(item, (choice, path))
            if before != choice:
                raise UserError(
                    f"{path}: {annotator} judges item {item!r} {choice!r}, but {before!r} in "
                    f"{other}: leave out the file that does not hold"
                )
    if not judged:
        raise UserError(f"{key}: no export of this sheet is given, needed is at least one")
    counts: dict[str, Counter[str]] = {item: Counter() for item in left}
    for own in judged.values():
        for item, (choice, _) in own.items():
            counts[item][_outcome(choice, left[item])] += 1
    return _result(about, counts, {name: len(own) for name, own in judged.items()})


def _read(path: Path, keys: tuple[str, ...], kind: str) -> dict:
    if not path.is_file():
        raise UserError(f"{path} not found: needed is {kind}")
    found = read_json(path)
    if not found.keys() >= {*keys}:
        raise UserError(f"{path}: needed are the keys {list(keys)} of {kind}, found {list(found)}")
    return found


def _read_key(path: Path) -> dict:
    about = _read(path, KEY, "a key file, which is written beside the sheet")
    names = ("id", "source", "left")
    for item in about["items"]:
        if not isinstance(item, dict) or not item.keys() >= {*names}:
            raise UserError(f"{path}: 'items' must be objects with {list(names)}, found {item!r}")
    return about


def _read_export(path: Path, sheet: str, items: set[str]) -> tuple[str, dict[str, str]]:
    """The annotator of a file, and their choices by item."""
    found = _read(path, EXPORT, "an export of the sheet's page")
    if found["sheet"] != sheet:
        raise UserError(f"{path} is of sheet {found['sheet']!r}, needed is one of sheet {sheet!r}")
    annotator = " ".join(text_field(found, ("annotator",), str(path)).split())
    if not annotator:
        raise UserError(f"{path}: 'annotator' is empty, needed is a name")
    judgments = found["judgments"]
    if not isinstance(judgments, dict):
        kind = type(judgments).__name__
        raise UserError(f"{path}: 'judgments' must be an object of choices by item, found {kind}")
    if not judgments:
        raise UserError(f"{path}: no item is judged in it")
    for item, choice in judgments.items():
        if item not in items:
            raise UserError(f"{path}: item {item!r} is not one of the sheet's")
        if choice not in CHOICES:
            raise UserError(
                f"{path}: the judgment of item {item!r} is {choice!r}, must be one of "
                f"{list(CHOICES)}"
            )
    return annotator, judgments


def _outcome(choice: str, left: str) -> str:
    """A choice as the first model sees it."""
    if choice not in ("left", "right"):
        return choice
    return "win" if (choice == "left") == (left == "ours") else "lose"


def _result(about: dict, counts: dict[str, Counter[str]], annotators: dict[str, int]) -> dict:
    total = sum(annotators.values())
    judged = [count for count in counts.values() if count]
    by_source: dict[str, list[Counter[str]]] = {}
    for item in about["items"]:
        if count := counts[item["id"]]:
            by_source.setdefault(item["source"], []).append(count)
    whole = _rates(judged)
    return {
        "kind": "people",
        "model": about["models"][0],
        "opponent": about["models"][1],
        "judge": "people",
        "bench": about["bench"],
        "settings": {"sheet": about["sheet"]},
        "counts": {"ok": total, "failed": 0, "missing": len(counts) * len(annotators) - total},
        "annotators": annotators,
        **whole,
        "interval": share_interval(whole["tie_win"], len(judged)),
        "agreement": agreement(judged),
        "by_source": {
            source: {"items": len(own), **_rates(own)} for source, own in by_source.items()
        },
    }


def _rates(items: list[Counter[str]]) -> dict:
    counts = sum(items, Counter())
    total = counts.total()
    return {
        "rates": {outcome: counts[outcome] / total for outcome in OUTCOMES},
        "tie_win": (counts["win"] + counts["both good"]) / total,
    }


def agreement(items: list[Counter[str]]) -> dict:
    """How far annotators agree, from how often each outcome was chosen for each item.

    With n_uc choices of outcome c for item u, m_u choices for it in all, and only items of two or
    more: n = Σ_u m_u, n_c = Σ_u n_uc, and

        observed  Σ_u Σ_c n_uc (n_uc − 1) / Σ_u m_u (m_u − 1)        pairs of choices that are alike
        alpha     1 − D_o / D_e                              0: as alike as by chance, 1: all alike
        D_o       1 − Σ_u Σ_c n_uc (n_uc − 1) / (m_u − 1) / n
        D_e       1 − Σ_c n_c (n_c − 1) / (n (n − 1))

    Alpha is Krippendorff's for nominal data with missing values (Computing Krippendorff's
    Alpha-Reliability, 2011). What is undefined is None: both if no item was judged twice, and alpha
    if all choices are the same.
    """
    shared = [item for item in items if item.total() > 1]
    if not shared:
        return {"observed": None, "alpha": None, "items": 0}
    sizes = [item.total() for item in shared]
    alike = [_ordered_pairs(item) for item in shared]
    n, outcomes = sum(sizes), sum(shared, Counter())
    observed = sum(alike) / sum(size * (size - 1) for size in sizes)
    alpha = None
    if len(outcomes) > 1:
        unlike = 1 - sum(pairs / (size - 1) for pairs, size in zip(alike, sizes)) / n
        alpha = 1 - unlike / (1 - _ordered_pairs(outcomes) / (n * (n - 1)))
    return {"observed": observed, "alpha": alpha, "items": len(shared)}


def _ordered_pairs(counts: Counter[str]) -> int:
    """Of choices that are alike."""
    return sum(count * (count - 1) for count in counts.values())
