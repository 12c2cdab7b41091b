"""AlpacaEval's length-controlled win rate (arXiv 2404.04475): what if answers were equally long?

A judge likes long answers. For row i, let l_i be the length of the baseline's output less that of
the model's, in Unicode code points, and s_i = l_i / std(l). The probability that the model wins is
taken to be

    σ(w_1 tanh(s_i) + w_2 d_i + w_3)

where d_i, the difficulty of the instruction, is the same for all models. w is fitted to the judge's
preferences; the win rate is the mean of σ(w_2 d_i + w_3), where the length's term is left out.

The fit is held by the rows of two "gamed" models: the baseline told to be verbose or to be concise.
They weigh 0.1 each, the model's own rows 1, and lack the term w_3:

    minimise  |w_1| + |w_2| + |w_3| + C Σ_i a_i (log(1 + exp(z_i)) - y_i z_i),    z = X w

y_i from 0 (the baseline wins) to 1 is the target as it is, which is the same as two rows, one with
the target 1 and weight a_i y_i, one with 0 and a_i (1 - y_i). C is found by cross-validation.

    Note: the official code finds d_i by the number of the row in the table of judgments, so that a
    model that lacks rows gets the difficulties of other questions. Published numbers of such models
    need ROWS; by QUESTIONS is right.
"""

import math
from collections.abc import Iterator
from operator import mul
from pathlib import Path
from typing import NamedTuple

import numpy as np

from janus_min.errors import UserError
from janus_min.intervals import deviation
from janus_min.sources import read_records

QUESTIONS, ROWS = "questions", "rows"  # how a row of a model finds its difficulty
NAME, INDEX = ("", "Unnamed: 0"), ("index", "", "Unnamed: 0")  # a column of pandas without a name
DIFFICULTY = "instruction_difficulty"
WEIGHTS = ("np.tanh(std_delta_len)", DIFFICULTY, "not_gamed_baseline.astype(float)")
GAMED = ("preference", "index", "std_delta_len", DIFFICULTY, "not_gamed_baseline", "model")
GAMED_WEIGHT = 0.1  # of a row: λ = 0.2, for two gamed models
FOLDS = 5
STRENGTHS = tuple(10.0 ** (-4 + 8 * k / 9) for k in range(10))  # C, from 1e-4 to 1e4
NEAR = 1e-6  # to the minimum: a step so short has only rounding behind it if it does not shrink

Array = np.ndarray
Weights = tuple[float, float, float]  # of length, difficulty and of 1


class Gamed(NamedTuple):
    """The rows of the gamed models, float64."""

    preference: Array  # 0 to 1
    length: Array  # s, the difference over its deviation
    difficulty: Array


class Fit(NamedTuple):
    """What `refit` found."""

    weights: Weights
    C: float
    losses: tuple[float, ...] | None  # held-out loss of each of STRENGTHS; None if C was given


# Files


def read_difficulty(path: Path) -> Array:
    """Difficulties, float64, by the number of the question: a CSV file of values, in order or with
    a column of numbers; or df_gamed.csv, whose first one of a question counts, as officially.

    Raises UserError that names the line.
    """
    found, seen = {}, {}
    for row, (where, record) in enumerate(_records(path)):
        key = next((key for key in INDEX if key in record), None)
        values = [DIFFICULTY] if DIFFICULTY in record else [c for c in record if c != key]
        if len(values) != 1:
            needed = f"{DIFFICULTY!r} and, if the rows are not in order, 'index'"
            raise UserError(f"{where}: needed are {needed}; found {sorted(record)}")
        index = row if key is None else _index(record[key], where)
        _once(f"question {index} {record.get('model', '')}".strip(), where, seen)
        found.setdefault(index, _number(record, values[0], where))
    for index in range(len(found)):
        if index not in found:
            has = f"{path} has difficulties of {len(found):,} questions"
            raise UserError(f"{has}, but not of question {index:,}; all from 0 on are needed")
    return np.array([found[index] for index in range(len(found))])


def read_gamed(path: Path) -> Gamed:
    """The rows of df_gamed.csv that have a preference. Raises UserError that names the line."""
    rows, seen = [], {}
    for where, record in _records(path):
        if missing := [column for column in GAMED if column not in record]:
            raise UserError(f"{where}: column {missing[0]!r} is needed, found {sorted(record)}")
        if (own := record["not_gamed_baseline"]).lower() not in ("false", "0", "0.0"):
            raise UserError(f"{where}: 'not_gamed_baseline' must be False, found {own!r}")
        _once(f"question {_index(record['index'], where)} {record['model']}", where, seen)
        if record["preference"].strip().lower() in ("", "nan"):
            continue
        preference = _number(record, "preference", where)
        if not 0 <= preference <= 1:
            raise UserError(f"{where}: 'preference' must be from 0 to 1, found {preference}")
        rows.append((preference, *(_number(record, name, where) for name in GAMED[2:4])))
    if not rows:
        raise UserError(f"{path}: no row has a preference")
    return Gamed(*map(np.array, zip(*rows)))


def read_weights(path: Path) -> dict[str, Weights]:
    """Published weights by the name of the model. Raises UserError that names the line."""
    found, seen = {}, {}
    for where, record in _records(path):
        name = next((key for key in NAME if key in record), None)
        if name is None or any(column not in record for column in WEIGHTS):
            needed = f"a column without a name, {', '.join(map(repr, WEIGHTS))}"
            raise UserError(f"{where}: needed are {needed}; found {sorted(record)}")
        _once(record[name], where, seen)
        found[record[name]] = tuple(_number(record, column, where) for column in WEIGHTS)
    return found


def difficulty_of(indices: list[int], difficulty: Array, path: Path, by: str = QUESTIONS) -> Array:
    """Difficulties of the rows of a model. `indices` are the numbers of their questions, `path` is
    the file that has `difficulty`; by ROWS, questions do not matter.

    Raises UserError if the file has too few.
    """
    wanted = range(len(indices)) if by == ROWS else indices
    if (needed := max(wanted, default=-1) + 1) > len(difficulty):
        raise UserError(
            f"{path} has {len(difficulty):,} difficulties; {needed:,} are needed, "
            f"one for each {'row' if by == ROWS else 'question'} from 0 to {needed - 1:,}"
        )
    return difficulty[list(wanted)]


# Win rates


def win_rate(weights: Weights, difficulty: Array) -> tuple[float, float | None]:
    """Length-controlled win rate and its standard error, both of 100, over rows with these
    difficulties; the error is None for one row.

    With the difference of the weights of two models, one model's win rate against the other.
    """
    if len(difficulty) == 0:
        raise UserError("a length-controlled win rate needs at least one row")
    chances = np.exp(-np.logaddexp(0.0, -(weights[1] * difficulty + weights[2])))
    spread = deviation((100 * chances).tolist())
    error = None if spread is None else spread / math.sqrt(len(chances))
    return 100 * float(chances.mean()), error


def refit(
    preferences: Array, lengths: Array, difficulty: Array, gamed: Gamed, C: float | None = None
) -> Fit:
    """The weights of a model. For each of its rows: preference y from 0 to 1, difference of lengths
    l, and d. Without C, cross-validation chooses it from STRENGTHS.

    A row whose y is NaN counts for std(l) and no more. If all l are equal there is no deviation to
    divide by: s is 0, and the gamed rows alone decide w_1. Raises UserError for fewer than two rows
    with a preference, or numbers that cannot be.
    """
    y, d = np.asarray(preferences, dtype=float), np.asarray(difficulty, dtype=float)
    judged = ~np.isnan(y)
    if judged.sum() < 2:
        raise UserError(f"length control needs at least 2 judged rows, found {judged.sum()}")
    if (wrong := judged & ~((0 <= y) & (y <= 1))).any():
        row = int(np.argmax(wrong))
        raise UserError(f"row {row}: a preference must be from 0 to 1, found {y[row]}")
    if C is not None and not 0 < C < math.inf:
        raise UserError(f"C is {C}, must be a number above 0")
    own = _columns(_standard(lengths), d, 1.0)[judged]
    # Gamed rows first, as officially: the order decides which rows share a fold.
    X = np.concatenate([_columns(gamed.length, gamed.difficulty, 0.0), own])
    y = np.concatenate([gamed.preference, y[judged]])
    a = np.where(X[:, 2] == 1, 1.0, GAMED_WEIGHT)
    losses = held_out_losses(X, y, a, folds_of(len(X))) if C is None else None
    # Of equal losses the first, that of the smallest C, as scikit-learn does.
    C = STRENGTHS[int(np.argmin(losses))] if losses else C
    return Fit(tuple(fit(X, y, a, C).tolist()), C, losses)


# Cross-validation


def folds_of(rows: int) -> Array:
    """The fold of each row: they are dealt in turn, from the last row to the first.

    So deals scikit-learn's GroupKFold groups of one size, if a stable sort puts them in order. Its
    own sort is not stable: with another version or processor, other rows may share a fold.
    """
    if rows < FOLDS:
        raise UserError(f"cross-validation needs at least {FOLDS} rows, found {rows}")
    return np.arange(rows)[::-1] % FOLDS


def held_out_losses(X: Array, y: Array, a: Array, folds: Array) -> tuple[float, ...]:
    """For each of STRENGTHS the mean, over folds, of the mean weighted loss of the rows of a fold
    under a fit to the other folds. X (rows, 3), the rest (rows,).
    """
    losses = np.zeros((FOLDS, len(STRENGTHS)))
    for fold in range(FOLDS):
        out, w = folds == fold, np.zeros(X.shape[1])
        for k, C in enumerate(STRENGTHS):
            w = fit(X[~out], y[~out], a[~out], C, start=w)
            z = X[out] @ w
            losses[fold, k] = np.mean(a[out] * (np.logaddexp(0.0, z) - y[out] * z))
    return tuple(losses.mean(0).tolist())


# The minimum


def fit(
    X: Array, y: Array, a: Array, C: float, start: Array | None = None, steps: int = 200
) -> Array:
    """Minimises ‖w‖₁ + C Σ a (log(1 + exp(z)) - y z), z = X w, to rounding. X (rows, n), w (n,).

    Newton's method in its form for a sum with ‖w‖₁ (arXiv 1206.1623). With gradient g and Hessian H
    of the rest, the step s minimises g·s + ½ s·Hs + ‖w + s‖₁, hence g·s + ‖w + s‖₁ - ‖w‖₁ <= -s·Hs.
    The third derivative of log(1 + exp(z)) is nowhere larger than the second. So, if R is the
    largest |X s|, going t s changes the objective by at most

        s·Hs (-t + (exp(tR) - 1 - tR) / R²)

    which is least, and below 0, at t = log(1 + R) / R (arXiv 1703.04599). Near the minimum t is
    almost 1 and each step squares the error, until rounding keeps the steps from getting shorter.
    """
    w, last = np.zeros(X.shape[1]) if start is None else start, math.inf
    for _ in range(steps):
        z = X @ w
        with np.errstate(over="ignore"):
            tail = 1 / (1 + np.exp(np.abs(z)))  # σ(-|z|): unlike σ(|z|), it does not round to 1
        gradient = C * (X.T @ (a * np.where(z > 0, 1 - y - tail, tail - y)))
        hessian = C * (X.T * (a * tail * (1 - tail))) @ X
        step = _step(w, gradient, hessian)
        length, R = np.abs(step).max(), np.abs(X @ step).max()
        if NEAR >= length >= last / 2:
            return w + step
        w, last = w + (math.log1p(R) / R if R > 0 else 1.0) * step, length
    raise UserError(f"the fit of a length-controlled win rate has not ended after {steps} steps")


def _step(w: Array, gradient: Array, hessian: Array) -> Array:
    """Minimises g·s + ½ s·Hs + ‖w + s‖₁, one coordinate after the other, until none moves.

    With u = w_j + s_j and h = H_jj, the best u while the others stay is u - (g + Hs)_j / h, drawn
    towards 0 by 1/h.
    """
    now, step = w.tolist(), [0.0] * len(w)
    rows = list(zip(gradient.tolist(), hessian.tolist()))
    for _ in range(1000):
        moved = 0.0
        for j, (slope, row) in enumerate(rows):
            h = max(row[j], 1e-12)  # 0 for a column of zeros
            target = now[j] - (slope + sum(map(mul, row, step))) / h
            new = math.copysign(max(abs(target) - 1 / h, 0.0), target)
            moved = max(moved, abs(new - now[j]))
            now[j], step[j] = new, new - float(w[j])
        if moved <= 1e-15 * (1 + max(map(abs, now))):
            break
    return np.array(step)


# Columns and values


def _standard(lengths: Array) -> Array:
    lengths = np.asarray(lengths, dtype=float)
    equal = (lengths == lengths[0]).all()
    return np.zeros(len(lengths)) if equal else lengths / lengths.std(ddof=1)


def _columns(s: Array, difficulty: Array, own: float) -> Array:
    return np.stack([np.tanh(s), difficulty, np.full(len(s), own)], axis=1)


def _records(path: Path) -> Iterator[tuple[str, dict]]:
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path}: a .csv file is needed")
    yield from read_records(path)


def _number(record: dict, column: str, where: str) -> float:
    try:
        value = float(record[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {column!r} must be a number, found {record[column]!r}")
    return value


def _index(text: str, where: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{where}: 'index' must be the number of a question, found {text!r}")
    return int(text)


def _once(name: str, where: str, seen: dict[str, str]) -> None:
    if name in seen:
        raise UserError(f"{where}: {name} is also in {seen[name]}")
    seen[name] = where
