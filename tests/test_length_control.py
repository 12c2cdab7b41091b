"""Length-controlled win rates: minima and win rates worked out by hand, and broken files."""

import math
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from janus_min.errors import UserError
from janus_min.length_control import (
    FOLDS,
    ROWS,
    STRENGTHS,
    WEIGHTS,
    Gamed,
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

HEADER = "preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model"


def slope(w, X, y, a, C):
    """The gradient of C Σ a (log(1 + exp(z)) - y z), row by row."""
    chances = [1 / (1 + math.exp(-z)) for z in (X @ w).tolist()]
    rows = [a_i * (p - y_i) * x for a_i, p, y_i, x in zip(a, chances, y, X)]
    return C * np.array([math.fsum(column) for column in zip(*rows)])


def assert_minimum(w, X, y, a, C, within=1e-10):
    """A number w_j other than 0 has the slope -sign(w_j), and 0 one from -1 to 1."""
    for weight, own in zip(w, slope(w, X, y, a, C)):
        if weight:
            assert own == pytest.approx(-np.sign(weight), abs=within * (1 + C * a.sum()))
        else:
            assert abs(own) <= 1


def rows_of(seed, n=60):
    """Rows as they occur: length, difficulty, 1 or 0; soft targets; weights."""
    random = np.random.default_rng(seed)
    own = np.arange(n) >= n // 3
    X = np.stack([np.tanh(random.normal(size=n)), 2 * random.normal(size=n), own], axis=1)
    y = 1 / (1 + np.exp(-X @ [-1.5, 0.8, -1.0] - random.normal(size=n)))
    return X, y, np.where(own, 1.0, 0.1)


def gamed_rows(n=6):
    y, s = np.linspace(0.1, 0.9, n), np.linspace(-2, 1.5, n)
    return Gamed(y, s, np.cos(np.arange(n)))


# The minimum


@pytest.mark.parametrize(
    ("wins", "C", "w"),
    [
        # Of 4 rows with x = 1, 3 are won: for w > 0 the slope 1 + C (4 σ(w) - 3) is 0 at
        # σ(w) = (3 - 1/C) / 4, unless that is not above ½.
        (3, 0.5, 0.0),
        (3, 1.0, 0.0),
        (3, 2.0, math.log(5 / 3)),  # σ = 0.625
        (3, 4.0, math.log(11 / 5)),  # σ = 0.6875
        (1, 2.0, -math.log(5 / 3)),
        (2, 1e4, 0.0),
        (4, 4.0, math.log(15)),  # σ = 1 - 1/16: all won, and yet there is a minimum
        (4, 1e4, math.log(4e4 - 1)),
    ],
)
def test_the_minimum_by_hand(wins, C, w):
    y = np.array([1.0] * wins + [0.0] * (4 - wins))
    found = fit(np.ones((4, 1)), y, np.ones(4), C)
    assert found.tolist() == [pytest.approx(w, abs=1e-11)]
    assert found[0] or math.copysign(1, found[0]) == 1  # no -0.0
    # Two columns that share no row do not meet.
    X = np.kron(np.eye(2), np.ones((4, 1)))
    both = fit(X, np.r_[y, 1 - y], np.ones(8), C)
    assert both.tolist() == [pytest.approx(w, abs=1e-11), pytest.approx(-w, abs=1e-11)]


def test_a_weight_that_one_more_row_takes_off_zero():
    """Slopes at 0: C/2 (lost - won) of each column; 1 is needed."""
    X, y = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 1]]), np.array([1.0, 1, 1, 1, 0])
    w = fit(X, y, np.ones(5), 1.5)
    assert w[0] > 0 and w[1] == 0  # 1.5 and 0.75
    assert fit(X, y, np.ones(5), 2.5)[1] > 0


@pytest.mark.parametrize("C", [*STRENGTHS, 0.02])
@pytest.mark.parametrize("seed", range(4))
def test_slopes_at_the_minimum(seed, C):
    X, y, a = rows_of(seed)
    w = fit(X, y, a, C)
    assert_minimum(w, X, y, a, C)
    assert fit(X, y, a, C, start=np.array([50.0, -50, 20])) == pytest.approx(w, abs=1e-10)


def test_the_slopes_tell_a_wrong_minimum():
    X, y, a = rows_of(0)
    w = fit(X, y, a, 10.0)
    for wrong in (w * (1 + 1e-7), w + [0, 1e-7, 0]):
        with pytest.raises(AssertionError):
            assert_minimum(wrong, X, y, a, 10.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda X, y: (X, (y > 0.5) * 1.0),  # targets 0 and 1
        lambda X, y: (X, (X[:, 0] > 0) * 1.0),  # the length says all
        lambda X, y: (X * [30, 1000, 1], y),
        lambda X, y: (X * [1e-4, 1, 1], y),
        lambda X, y: (X * [0, 1, 1], y),  # lengths are equal
        lambda X, y: (X * [1, 0, 1] + [0, 2, 0], y),  # difficulties are
        lambda X, y: (np.stack([X[:, 0], X[:, 0], X[:, 2]], axis=1), y),  # one column twice
    ],
)
@pytest.mark.parametrize("C", [0.05, 3.0, 1e4])
def test_columns_and_targets_that_are_hard_to_fit(change, C):
    X, y, a = rows_of(5)
    X, y = change(X, y)
    assert_minimum(fit(X, y, a, C), X, y, a, C)


def test_a_soft_target_is_two_weighted_rows():
    X, y, a = rows_of(7)
    twice = np.concatenate([X, X]), np.repeat([1.0, 0.0], len(y)), np.r_[a * y, a * (1 - y)]
    for C in (0.1, 20.0):
        assert fit(*twice, C) == pytest.approx(fit(X, y, a, C), abs=1e-11)


def test_a_start_where_exp_overflows():
    y = np.array([1.0, 1.0, 1.0, 0.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit(np.ones((4, 1)), y, np.ones(4), 2.0, start=np.array([1000.0]))
    assert found.tolist() == [pytest.approx(math.log(5 / 3), abs=1e-11)]


def test_a_fit_that_does_not_end_says_so():
    with pytest.raises(UserError, match="has not ended after 2 steps"):
        fit(*rows_of(0), 10.0, steps=2)


# Cross-validation


def test_rows_are_dealt_to_folds_from_the_last_one():
    assert folds_of(7).tolist() == [1, 0, 4, 3, 2, 1, 0]
    with pytest.raises(UserError, match="at least 5 rows, found 4"):
        folds_of(4)


def test_held_out_losses_by_hand():
    """One column of ones; each fold has a row with the target 1 and one with 0.5.

    A fit to the other 8 rows has σ(w) = (6 - 1/C) / 8 if C > 1/2, else w = 0.
    """
    X, y, folds = np.ones((10, 1)), np.array([1.0, 0.5] * 5), np.arange(10) // 2
    wanted = []
    for C in STRENGTHS:
        p = (6 - 1 / C) / 8 if C > 0.5 else 0.5
        wanted.append((-math.log(p) - 0.5 * math.log(p) - 0.5 * math.log(1 - p)) / 2)
    assert held_out_losses(X, y, np.ones(10), folds) == pytest.approx(wanted, abs=1e-12)
    # Weights count in the fit, where twice the weight is twice C, and in the loss.
    double = held_out_losses(X, y, np.full(10, 2.0), folds)[5]
    p = (6 - 1 / (2 * STRENGTHS[5])) / 8
    assert double == pytest.approx(-1.5 * math.log(p) - 0.5 * math.log(1 - p), abs=1e-12)


def test_the_mean_over_folds_is_not_the_mean_over_rows():
    """No C moves w off 0 (targets are ½ on average), so the loss of a row is a log 2."""
    a = np.array([1.0, 1, 1, 1, 1, 4])  # folds 0, 1, 2, 3, 4, 4
    losses = held_out_losses(np.ones((6, 1)), np.full(6, 0.5), a, np.array([0, 1, 2, 3, 4, 4]))
    assert losses == pytest.approx([(4 * 1 + 2.5) / 5 * math.log(2)] * 10, abs=1e-12)


def test_of_equal_losses_the_smallest_strength():
    n = 8
    gamed = Gamed(np.full(4, 0.5), np.ones(4), np.ones(4))
    found = refit(np.full(n, 0.5), np.arange(n), np.ones(n), gamed)
    assert found.C == STRENGTHS[0] and found.weights == (0.0, 0.0, 0.0)
    assert len(set(found.losses)) == 1


def test_strengths():
    assert STRENGTHS == pytest.approx(np.logspace(-4, 4, 10), rel=1e-14)


@pytest.mark.filterwarnings("ignore:.*penalty")
@pytest.mark.parametrize("seed", range(3))
def test_scikit_learn_finds_the_same(seed):
    """With a tolerance that is finer than the official one, and our folds."""
    X, y, a = rows_of(seed, n=120)
    twice, hard = np.concatenate([X, X]), np.repeat([1, 0], len(y))
    weights = np.r_[a * y, a * (1 - y)]
    losses = np.zeros(len(STRENGTHS))
    common = dict(penalty="l1", solver="liblinear", fit_intercept=False, tol=1e-12, max_iter=10**5)
    for k, C in enumerate(STRENGTHS):
        model = LogisticRegression(C=C, **common)
        theirs = model.fit(twice, hard, sample_weight=weights).coef_[0]
        assert fit(X, y, a, C) == pytest.approx(theirs, abs=1e-8)
        for fold in range(FOLDS):
            out = folds_of(len(y)) == fold
            both = np.r_[~out, ~out]
            model.fit(twice[both], hard[both], sample_weight=weights[both])
            p = model.predict_proba(X[out])[:, 1]
            soft = y[out] * np.log(p) + (1 - y[out]) * np.log(1 - p)
            losses[k] -= np.mean(a[out] * soft) / FOLDS
    ours = held_out_losses(X, y, a, folds_of(len(y)))
    assert ours == pytest.approx(losses, abs=1e-9) and np.argmin(ours) == np.argmin(losses)


# A model's weights


def test_what_a_refit_minimises():
    """Two rows: lengths 0 and 2 have the deviation √2 (1 + 1 over n - 1), so that s = 0, √2."""
    gamed, y, d = gamed_rows(), np.array([0.25, 1.0]), np.array([1.0, -2.0])
    found = refit(y, np.array([0, 2]), d, gamed, C=3.0)
    own = [[0.0, 1.0, 1.0], [math.tanh(math.sqrt(2)), -2.0, 1.0]]
    theirs = [[math.tanh(s), d, 0.0] for s, d in zip(gamed.length, gamed.difficulty)]
    X, targets = np.array(own + theirs), np.r_[y, gamed.preference]
    assert (found.C, found.losses) == (3.0, None)
    assert_minimum(found.weights, X, targets, np.array([1.0] * 2 + [0.1] * 6), 3.0)


def test_a_refit_chooses_its_strength_and_the_gamed_rows_come_first():
    random = np.random.default_rng(3)
    y, lengths, d = random.random(30) ** 3, random.integers(-900, 900, 30), random.normal(size=30)
    gamed = gamed_rows(16)
    found = refit(y, lengths, d, gamed)
    s = np.r_[gamed.length, lengths / np.std(lengths, ddof=1)]
    own = np.repeat([0.0, 1.0], [16, 30])
    X = np.stack([np.tanh(s), np.r_[gamed.difficulty, d], own], axis=1)
    a, targets = np.where(own, 1.0, 0.1), np.r_[gamed.preference, y]
    assert found.losses == pytest.approx(held_out_losses(X, targets, a, folds_of(46)), abs=1e-12)
    assert found.C == STRENGTHS[np.argmin(found.losses)] not in (STRENGTHS[0], STRENGTHS[-1])
    assert found == refit(y, lengths, d, gamed)
    again = refit(y, lengths, d, gamed, found.C)
    assert again == found._replace(losses=None)


def test_equal_lengths_leave_the_length_to_the_gamed_rows():
    gamed, y, d = gamed_rows(), np.array([0.9, 0.8, 0.9]), np.array([0.5, 1.0, 2.0])
    found = refit(y, np.array([7, 7, 7]), d, gamed, C=50.0)
    own, theirs = [[0.0, x, 1.0] for x in d], zip(np.tanh(gamed.length), gamed.difficulty)
    X = np.array(own + [[s, x, 0.0] for s, x in theirs])
    targets, a = np.r_[y, gamed.preference], np.array([1.0] * 3 + [0.1] * 6)
    assert_minimum(found.weights, X, targets, a, 50.0)


def test_a_row_without_a_preference_counts_for_the_deviation_alone():
    gamed, d = gamed_rows(), np.array([0.5, 1.0, 2.0, 9.0])
    lengths = np.array([-1.0, 0.0, 1.0, 6.0])  # deviations √(29/3) of all, 1 of the first three
    found = refit([0.1, 0.3, 0.7, None], lengths, d, gamed, C=5.0)
    stretched = lengths[:3] / math.sqrt(29 / 3)
    X = np.stack([np.tanh(np.r_[stretched, gamed.length]), np.r_[d[:3], gamed.difficulty]])
    X = np.concatenate([X.T, [[1.0]] * 3 + [[0.0]] * 6], axis=1)
    targets, a = np.r_[0.1, 0.3, 0.7, gamed.preference], np.array([1.0] * 3 + [0.1] * 6)
    assert_minimum(found.weights, X, targets, a, 5.0)


@pytest.mark.parametrize(
    ("y", "C", "message"),
    [
        ([0.5], 1.0, "at least 2 judged rows, found 1"),
        ([], 1.0, "at least 2 judged rows, found 0"),
        ([0.5, math.nan], 1.0, "at least 2 judged rows, found 1"),
        ([0.5, 1.5, 2.0], 1.0, r"row 1: a preference must be from 0 to 1, found 1\.5"),
        ([0.5, 0.1, -0.1], 1.0, r"row 2: a preference must be from 0 to 1, found -0\.1"),
        ([0.5, 0.1], 0.0, r"C is 0\.0, must be a number above 0"),
        ([0.5, 0.1], math.inf, "C is inf, must be a number above 0"),
        ([0.5, 0.1], None, "at least 5 rows, found 4"),
    ],
)
def test_a_refit_that_cannot_be(y, C, message):
    n = len(y)
    with pytest.raises(UserError, match=message):
        refit(np.array(y), np.arange(n), np.ones(n), gamed_rows(2), C)


# Win rates


@pytest.mark.parametrize(
    ("weights", "difficulty", "rate", "error"),
    [
        ((0.0, 0.0, 0.0), [3.0, -1.0, 2.0], 50.0, 0.0),  # the baseline against itself
        ((9.0, 0.0, math.log(3)), [1.0, 2.0], 75.0, 0.0),  # the length's weight has no say
        ((9.0, 1.0, 0.0), [0.0, math.log(3)], 62.5, 12.5),  # 50 and 75: 25/√2 over √2
        ((0.0, 1.0, math.log(3)), [-math.log(3)], 50.0, None),
        ((0.0, 1000.0, 0.0), [1.0, -1.0], 50.0, 50.0),
    ],
)
def test_win_rate_by_hand(weights, difficulty, rate, error):
    found = win_rate(weights, np.array(difficulty))
    assert found[0] == pytest.approx(rate, abs=1e-12)
    assert found[1] == (None if error is None else pytest.approx(error, abs=1e-12))


def test_two_models_against_each_other():
    one, other = np.array([1.0, 2.0, 0.5]), np.array([7.0, 2.0, 0.5 + math.log(3)])
    d = np.array([1.0, -2.0])
    assert win_rate(other - one, d)[0] == pytest.approx(75)
    assert win_rate(one - other, d)[0] == pytest.approx(25)


def test_no_rows_have_no_win_rate():
    with pytest.raises(UserError, match="at least one row"):
        win_rate((0.0, 0.0, 0.0), np.array([]))


def test_difficulties_of_a_model_that_lacks_a_row(tmp_path):
    """Question 1 of four has no judgment: by rows, question 3 is taken for 2."""
    path, d = tmp_path / "d.csv", np.array([0.0, 10.0, 20.0, 30.0])
    assert difficulty_of([0, 2, 3], d, path).tolist() == [0, 20, 30]
    assert difficulty_of([3, 0], d, path).tolist() == [30, 0]
    assert difficulty_of([0, 2, 3], d, path, by=ROWS).tolist() == [0, 10, 20]
    assert difficulty_of([7, 8, 9], d, path, by=ROWS).tolist() == [0, 10, 20]
    assert difficulty_of([], d, path).tolist() == []
    for by, indices, message in (
        ("questions", [0, 4], "d.csv has 4 difficulties; 5 are needed, one for each question from"),
        (ROWS, [0, 1, 2, 3, 3], "d.csv has 4 difficulties; 5 are needed, one for each row from 0"),
    ):
        with pytest.raises(UserError, match=message):
            difficulty_of(indices, d, path, by)


# Files


def written(tmp_path, *lines, name="file.csv"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "lines",
    [
        ["index,instruction_difficulty", "0,1.5", "1,-2", "2,3e-1"],
        [",instruction_difficulty", "2,0.3", "0,1.5", "1,-2.0"],
        ["instruction_difficulty", "1.5", "-2", "0.3"],
        ["Unnamed: 0,0", "0,1.5", "1,-2", "2,0.3"],
        [
            HEADER,
            *(f"0.5,{i},9,{d},False,{m}" for m in "vc" for i, d in enumerate("1.5 -2 0.3".split())),
        ],
        [HEADER, ",0,9,1.5,False,v", ",1,9,-2,False,v", ",2,9,0.3,False,v", ",2,9,8,False,c"],
    ],
)
def test_read_difficulty(tmp_path, lines):
    found = read_difficulty(written(tmp_path, *lines))
    assert found.dtype == np.float64 and found.tolist() == [1.5, -2.0, 0.3]


@pytest.mark.parametrize("empty", ["", "nan", "NaN"])
def test_read_gamed(tmp_path, empty):
    lines = ["0.75,0,-1.5,2,False,v", f"{empty},1,1,1,False,v", "1.0,0,0.5,2,0.0,c"]
    gamed = read_gamed(written(tmp_path, HEADER, *lines))
    assert [column.tolist() for column in gamed] == [[0.75, 1.0], [-1.5, 0.5], [2.0, 2.0]]


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_read_weights(tmp_path, name):
    path = written(tmp_path, ",".join((name, *WEIGHTS)), "m-1,-1.5,0.5,2e-1", "소라,0,0,0")
    assert read_weights(path) == {"m-1": (-1.5, 0.5, 0.2), "소라": (0.0, 0.0, 0.0)}


DIFFICULTY_HEADER, WEIGHTS_HEADER = "index,instruction_difficulty", ",".join(("", *WEIGHTS))


@pytest.mark.parametrize(
    ("read", "lines", "message"),
    [
        (read_difficulty, ["index,a,b", "0,1,2"], r"csv:2: needed are 'instruction_difficulty'"),
        (read_difficulty, ["index", "0"], r"csv:2: needed are .*; found \['index'\]"),
        (read_difficulty, [DIFFICULTY_HEADER, "0,1", "1,"], "csv:3: 'instruction_diff.* found ''"),
        (read_difficulty, [DIFFICULTY_HEADER, "0,inf"], "csv:2: .* must be a number, found 'inf'"),
        (read_difficulty, [DIFFICULTY_HEADER, "0,nan"], "csv:2: .* must be a number, found 'nan'"),
        (read_difficulty, [DIFFICULTY_HEADER, "0.0,1"], r"csv:2: 'index' .*, found '0\.0'"),
        (read_difficulty, [DIFFICULTY_HEADER, "-1,1"], "csv:2: 'index' .*, found '-1'"),
        (
            read_difficulty,
            [DIFFICULTY_HEADER, "0,1", "0,1"],
            "csv:3: question 0 is also in .*csv:2",
        ),
        (
            read_difficulty,
            [DIFFICULTY_HEADER, "0,1", "2,1"],
            "of 2 questions, but not of question 1",
        ),
        (read_difficulty, [DIFFICULTY_HEADER], "is empty"),
        (read_gamed, [HEADER.removesuffix(",model"), "1,0,1,1,False"], "csv:2: column 'model'"),
        (read_gamed, [HEADER, "1.5,0,1,1,False,v"], r"csv:2: 'preference' must be .* found 1\.5"),
        (
            read_gamed,
            [HEADER, "x,0,1,1,False,v"],
            "csv:2: 'preference' must be a number, found 'x'",
        ),
        (read_gamed, [HEADER, "1,0,,1,False,v"], "csv:2: 'std_delta_len' must be a number"),
        (read_gamed, [HEADER, "1,0,1,,False,v"], "csv:2: 'instruction_difficulty' must be a num"),
        (read_gamed, [HEADER, "1,0,1,1,True,v"], "csv:2: .* must be False, found 'True'"),
        (read_gamed, [HEADER, "1,a,1,1,False,v"], "csv:2: 'index' .*, found 'a'"),
        (read_gamed, [HEADER, *["1,0,1,1,False,v"] * 2], "csv:3: question 0 v is also in .*csv:2"),
        (read_gamed, [HEADER, ",0,1,1,False,v"], "no row has a preference"),
        (read_weights, [WEIGHTS_HEADER[1:], "1,2,3"], "csv:2: needed are a column without a name"),
        (read_weights, [",w_1,w_2,w_3", "m,1,2,3"], "csv:2: needed are a column without a name"),
        (read_weights, [WEIGHTS_HEADER, "m,1,2,?"], r"csv:2: .* must be a number, found '\?'"),
        (read_weights, [WEIGHTS_HEADER, "m,1,2,3", "m,1,2,3"], "csv:3: m is also in .*csv:2"),
        (read_weights, [WEIGHTS_HEADER, "m,1,2"], "csv:2: 3 values, the header has 4"),
    ],
)
def test_broken_files(tmp_path, read, lines, message):
    with pytest.raises(UserError, match=message):
        read(written(tmp_path, *lines))


@pytest.mark.parametrize("read", [read_difficulty, read_gamed, read_weights])
def test_files_that_are_no_csv(tmp_path, read):
    with pytest.raises(UserError, match=r"d\.json: a \.csv file is needed"):
        read(written(tmp_path, "{}", name="d.json"))
    with pytest.raises(UserError, match=r"d\.csv not found"):
        read(tmp_path / "d.csv")
