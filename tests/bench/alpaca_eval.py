"""AlpacaEval's win rates beside the published ones and beside the official code.

python -m tests.bench.alpaca_eval FOLDER

FOLDER has, from the repository tatsu-lab/alpaca_eval or derived from what is published there:

    leaderboard.csv         of weighted_alpaca_eval_gpt4_turbo
    baked_weights.csv       the weights of its models
    instruction_difficulty_recovered.csv, df_gamed_surrogate.csv
    NAME/annotations.json   the judgments of each of MODELS

What is installed of scikit-learn and the package alpaca_eval (0.6.6, which needs numpy 1.26, pandas
2.2 and scikit-learn 1.4) is compared with. The package reads FOLDER's files and downloads nothing.
"""

import csv
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from janus_min.alpaca_eval import Options, read_annotations, rescore
from janus_min.errors import UserError
from janus_min.length_control import (
    FOLDS,
    GAMED_WEIGHT,
    ROWS,
    STRENGTHS,
    Gamed,
    Weights,
    difficulty_of,
    fit,
    folds_of,
    held_out_losses,
    read_difficulty,
    read_gamed,
    read_weights,
    refit,
    win_rate,
)
from janus_min.win_rates import as_preference, first_preferred, is_switched, preference_of

MODELS = ("alpaca-7b", "FuseChat-Gemma-2-9B-Instruct")
STALE = ("NullModel", "dbrx-instruct")  # the leaderboard's rows are of other weights than published
DIFFICULTY, SURROGATE = "instruction_difficulty_recovered.csv", "df_gamed_surrogate.csv"
QUESTIONS = 805
ROUNDS = 7


class Published(NamedTuple):
    """What FOLDER has of all models."""

    leaderboard: dict[str, dict[str, str]]
    weights: dict[str, Weights]
    difficulty: np.ndarray
    gamed: Gamed


def read_published(folder: Path) -> Published:
    """Reads it. Raises UserError that names what FOLDER lacks."""
    names = ("leaderboard.csv", "baked_weights.csv", DIFFICULTY, SURROGATE)
    for name in (*names, *(f"{model}/annotations.json" for model in MODELS)):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; the head of this file says what is needed")
    with (folder / names[0]).open(encoding="utf-8", newline="") as file:
        leaderboard = {row[""]: row for row in csv.DictReader(file)}
    return Published(
        leaderboard,
        read_weights(folder / names[1]),
        read_difficulty(folder / DIFFICULTY),
        read_gamed(folder / SURROGATE),
    )


def from_weights(published: Published, folder: Path) -> dict[str, tuple[float, float, int]]:
    """How far win rate and standard error are from the leaderboard's, and over how many rows, for
    each model that has weights. The error counts as right where the leaderboard has none.

    Some models without all judgments were scored over the rows that have one, with the
    difficulties of the first rows, and some over all: the better of the two counts.
    """
    found = {}
    for name, row in published.leaderboard.items():
        if name not in published.weights:
            continue
        off = []
        for count in {int(row["n_total"]), QUESTIONS}:
            path = folder / DIFFICULTY
            d = difficulty_of(list(range(count)), published.difficulty, path, by=ROWS)
            rate, error = win_rate(published.weights[name], d)
            known = float(row["lc_standard_error"] or error)
            off.append((abs(rate - wanted(published, name)), abs(error - known), count))
        found[name] = min(off)
    return found


def wanted(published: Published, name: str) -> float:
    """The length-controlled win rate on the leaderboard."""
    return float(published.leaderboard[name]["length_controlled_winrate"])


def judged_rows(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Preferences from 0 to 1 and differences of lengths; all questions are there, in order."""
    records = list(read_annotations(path))
    y = np.array([as_preference(record["preference"]) - 1 for record in records])
    lengths = [len(record["output_1"]) - len(record["output_2"]) for record in records]
    return y, np.array(lengths)


COLUMNS = {  # of the leaderboard -> ours
    "win_rate": "win_rate",
    "standard_error": "standard_error",
    "n_wins": "wins",
    "n_wins_base": "losses",
    "n_draws": "draws",
    "discrete_win_rate": "discrete",
    "avg_length": "length",
    "length_controlled_winrate": "length_controlled",
    "lc_standard_error": "lc_error",
}


def off_the_leaderboard(published: Published, folder: Path, name: str) -> dict[str, float]:
    """How far the result of `evaluate.py alpaca-eval --annotations` is from each column that the
    model's row has.
    """
    files = {"weights": folder / "baked_weights.csv", "difficulty": folder / DIFFICULTY}
    result = rescore(Options(annotations=folder / name / "annotations.json", **files))
    row = published.leaderboard[name]
    there = {column: own for column, own in COLUMNS.items() if row[column]}
    off = {column: abs(result[own] - float(row[column])) for column, own in there.items()}
    return off | {"n_total": abs(result["counts"]["ok"] - float(row["n_total"]))}


def off_the_preferences(path: Path) -> tuple[int, float]:
    """Of how many judgments the log-probabilities are recorded, and how far the preference that
    follows from them is from the recorded one, at most.
    """
    off = []
    for record in read_annotations(path):
        if raw := record.get("raw_completion"):
            p = first_preferred({"logprobs": raw["logprobs"]})
            own = preference_of(p, is_switched(record["instruction"]))
            off.append(abs(own - as_preference(record["preference"])))
    return len(off), max(off, default=0.0)


def columns(y: np.ndarray, lengths: np.ndarray, d: np.ndarray, gamed: Gamed) -> tuple:
    """X, targets and weights of the rows of a fit, worked out without our module's code."""
    own = np.stack([np.tanh(lengths / lengths.std(ddof=1)), d, np.ones(len(d))], axis=1)
    zeros = np.zeros(len(gamed.length))
    theirs = np.stack([np.tanh(gamed.length), gamed.difficulty, zeros], axis=1)
    weights = np.r_[np.full(len(theirs), GAMED_WEIGHT), np.ones(len(own))]
    return np.concatenate([theirs, own]), np.r_[gamed.preference, y], weights


def strength_behind(weights: Weights, X: np.ndarray, y: np.ndarray, a: np.ndarray) -> float:
    """C of a published fit: of its minimum, the third column's sum of a (σ - y) x is ∓1/C. Only the
    model's own rows have that column, so the gamed ones need not be known.
    """
    residuals = a * (1 / (1 + np.exp(-X @ weights)) - y)
    exact = -np.sign(weights[2]) / (residuals @ X[:, 2])
    return min(STRENGTHS, key=lambda C: abs(np.log(C) - np.log(exact)))


# What is compared with


def scikit_learn(X: np.ndarray, y: np.ndarray, a: np.ndarray) -> dict[str, Callable]:
    """The official calls: with cross-validation, with a given C, and the folds of the first."""
    import sklearn
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import GroupKFold

    sklearn.set_config(enable_metadata_routing=True)
    common = dict(penalty="l1", solver="liblinear", dual=False, fit_intercept=False)
    twice, hard = np.concatenate([X, X]), np.r_[np.ones(len(y)), np.zeros(len(y))]
    share, weights, groups = np.r_[y, 1 - y], np.r_[a, a], np.tile(np.arange(len(y)), 2)

    def soft_loss(true: np.ndarray, p: np.ndarray, share: np.ndarray, of: np.ndarray) -> float:
        """`share` is that of the class `true`, `of` the weight."""
        target, p = np.where(true == 1, share, 1 - share), np.clip(p, 1e-15, 1 - 1e-15)
        return -np.mean(of * (target * np.log(p) + (1 - target) * np.log(1 - p)))

    scorer = make_scorer(soft_loss, response_method="predict_proba", greater_is_better=False)
    scorer = scorer.set_score_request(share=True, of=True)

    def chosen() -> LogisticRegressionCV:
        """C by cross-validation."""
        model = LogisticRegressionCV(
            cv=GroupKFold(FOLDS), scoring=scorer, random_state=123, **common
        ).set_fit_request(sample_weight=True)
        more = dict(groups=groups, share=share, of=weights)
        return model.fit(twice, hard, sample_weight=share * weights, **more)

    def given(C: float, tol: float = 1e-4) -> Weights:
        """The weights at C."""
        model = LogisticRegression(C=C, tol=tol, max_iter=10**4, random_state=123, **common)
        return tuple(model.fit(twice, hard, sample_weight=share * weights).coef_[0].tolist())

    def folds() -> np.ndarray:
        """The fold of each row."""
        found = np.empty(len(y), dtype=int)
        for number, (_, out) in enumerate(GroupKFold(FOLDS).split(twice, hard, groups)):
            found[groups[out]] = number
        return found

    return {"chosen": chosen, "given": given, "folds": folds}


def package(folder: Path, name: str) -> Callable[[], tuple[float, float, float]]:
    """The official function on a table of judgments: win rate, its error, and the C it chose."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import pandas
    from alpaca_eval.metrics import glm_winrate

    table = pandas.read_json(folder / name / "annotations.json", dtype={"preference": float})
    files = {"df_gamed.csv": SURROGATE, "instruction_difficulty.csv": DIFFICULTY}
    glm_winrate.hf_hub_download = lambda filename, **_: str(folder / files[filename])
    original, models = glm_winrate.fit_LogisticRegressionCV, []

    def remembering(*arguments: object, **more: object) -> object:
        models.append(original(*arguments, **more))
        return models[-1]

    def call() -> tuple[float, float, float]:
        glm_winrate.fit_LogisticRegressionCV = remembering
        found = glm_winrate.get_length_controlled_winrate(table.copy(), save_weights_dir=None)
        glm_winrate.fit_LogisticRegressionCV = original
        C = float(models[-1].C_[0])
        return found["length_controlled_winrate"], found.get("lc_standard_error"), C

    return call


def in_turn(sides: dict[str, Callable[[], object]]) -> None:
    """Prints the median seconds of sides that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name, call in sides.items():
            started = time.perf_counter()
            call()
            if number:  # the first is warm-up
                seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        print(f"    {name:14}{median(times):7.3f} s, {min(times):.3f} to {max(times):.3f}")


# The script


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.bench.alpaca_eval FOLDER")
    folder = Path(sys.argv[1])
    try:
        published = read_published(folder)
    except UserError as error:
        sys.exit(f"error: {error}")
    print_leaderboard(published, folder)
    for name in MODELS:
        off = off_the_leaderboard(published, folder, name)
        print(f"{name}: its columns of the leaderboard are at most {max(off.values()):.1e} off")
        count, most = off_the_preferences(folder / name / "annotations.json")
        print(f"  {count} preferences from log-probabilities, at most {most:.1e} off")
        print_refit(published, folder, name)


def print_leaderboard(published: Published, folder: Path) -> None:
    """Published weights, published win rates."""
    found = from_weights(published, folder)
    right = {name: off for name, off in found.items() if max(off[:2]) <= 1e-6}
    worst = max(off[0] for off in right.values())
    print(f"{len(right)} of {len(found)} rows with weights are right, largest error {worst:.1e}")
    for name in (name for name in found if name not in right):
        kind = "stale" if name in STALE else "WRONG"
        print(f"  {kind}: {name} is {found[name][0]:.4f} off")
    for name, (_, _, count) in right.items():
        total = int(published.leaderboard[name]["n_total"])
        if total < QUESTIONS:
            print(f"  {name}: {total} judgments, scored over {count} rows")


def print_refit(published: Published, folder: Path, name: str) -> None:
    """A model's weights from its judgments, ours and theirs."""
    y, lengths = judged_rows(folder / name / "annotations.json")
    d = difficulty_of(list(range(len(y))), published.difficulty, folder / DIFFICULTY)
    X, targets, a = columns(y, lengths, d, published.gamed)
    C = strength_behind(published.weights[name], X, targets, a)
    ours, at_C = (refit(y, lengths, d, published.gamed, given) for given in (None, C))
    rate, error = win_rate(ours.weights, d)
    print(f"{name}: published {wanted(published, name):.4f}, of C {C:.5g}")
    print(f"  ours, of C {ours.C:.5g}: {rate:.4f} ± {error:.4f}")
    print(f"  ours, of the published C: {win_rate(at_C.weights, d)[0]:.4f}")
    sides = {"ours": lambda: refit(y, lengths, d, published.gamed)}
    try:
        theirs = scikit_learn(X, targets, a)
    except ImportError as missing:
        print(f"  not compared with scikit-learn: {missing}")
    else:
        print_scikit_learn(theirs, (X, targets, a), d)
        sides["scikit-learn"] = theirs["chosen"]
    try:
        official = package(folder, name)
    except ImportError as missing:
        print(f"  not compared with alpaca_eval: {missing}")
    else:
        rate, error, C = official()
        own = win_rate(refit(y, lengths, d, published.gamed, C).weights, d)
        theirs = f"{rate:.4f} ± {error:.4f}" if error is not None else f"{rate:.4f}"
        print(f"  alpaca_eval, of C {C:.5g}: {theirs}; ours at this C is {own[0] - rate:+.1e} off")
        sides["alpaca_eval"] = official
    in_turn(sides)


def print_scikit_learn(
    theirs: dict[str, Callable], rows: tuple[np.ndarray, np.ndarray, np.ndarray], d: np.ndarray
) -> None:
    """Its cross-validation, and how far its win rates are from ours at every C."""
    model, folds = theirs["chosen"](), theirs["folds"]()
    chosen = float(model.C_[0])
    same = "the same as" if (folds == folds_of(len(folds))).all() else "other than"
    own = STRENGTHS[int(np.argmin(held_out_losses(*rows, folds)))]
    print(f"  scikit-learn, of C {chosen:.5g}: {win_rate(model.coef_[0], d)[0]:.4f}")
    print(f"    its folds are {same} ours; with its folds our C is {own:.5g}")
    for tol in (1e-4, 1e-8):
        off = [
            abs(win_rate(theirs["given"](C, tol), d)[0] - win_rate(fit(*rows, C), d)[0])
            for C in STRENGTHS
        ]
        at = STRENGTHS[int(np.argmax(off))]
        print(f"    at most {max(off):.1e} from ours if its tolerance is {tol:g} (C {at:.3g})")


if __name__ == "__main__":
    main()
