"""From a judge's probabilities to preferences, and from preferences to AlpacaEval's rates."""

import math
import random

import numpy as np
import pytest

from janus_min.errors import UserError
from janus_min.length_control import read_gamed, refit, win_rate
from janus_min.replies import ReplyError
from janus_min.win_rates import (
    Control,
    Row,
    as_preference,
    first_preferred,
    is_switched,
    length_controlled,
    preference_of,
    scores,
)


def reply_of(**logprobs: float) -> dict:
    """What is kept of a reply whose likeliest first tokens are these."""
    tokens = [{"token": name, "logprob": value} for name, value in logprobs.items()]
    return {"text": "m", "logprobs": {"content": [{"token": "m", "top_logprobs": tokens}]}}


@pytest.mark.parametrize(
    ("logprobs", "p"),
    [
        ({"m": math.log(0.6), "M": math.log(0.2)}, 0.75),
        ({"M": math.log(0.5), "m": math.log(0.5)}, 0.5),
        ({"m": -3.0, "The": -0.1}, 1.0),  # a token that is not there has probability 0
        ({"M": -3.0, "The": -0.1}, 0.0),
        ({"m": -1.0, "M": -9999.0}, 1.0),  # as some servers write 0
        ({"m": -0.5, " m": -0.1, "M": -0.5}, 0.5),  # another token than m
        ({"m": 800.0, "M": 0.0}, 0.5),  # no probability is above 1
    ],
)
def test_the_probability_of_what_was_shown_first(logprobs, p):
    assert first_preferred(reply_of(**logprobs)) == pytest.approx(p, abs=1e-15)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (reply_of(The=-0.1, Both=-3), "neither 'm' nor 'M' is likely; likely are 'The', 'Both'"),
        (reply_of(m=-9999.0), "neither 'm' nor 'M' is likely; likely are 'm'"),
        ({"text": "m"}, "the reply has no log-probabilities; the server must know 'logprobs'"),
        ({"text": "m", "logprobs": {"content": []}}, "the reply has no log-probabilities"),
        ({"text": "m", "logprobs": {"content": None}}, "the reply has no log-probabilities"),
        ({"text": "m", "logprobs": {"tokens": ["m"]}}, "the reply has no log-probabilities"),
        (reply_of(m=None), "the reply has no log-probabilities"),
        ("m", "the reply has no log-probabilities"),  # a failure, as it is kept
    ],
)
def test_replies_that_do_not_tell(reply, reason):
    with pytest.raises(ReplyError, match=f"^{reason}"):
        first_preferred(reply)


def test_which_output_is_shown_first_is_upstreams_coin():
    """By hand from its rule: a text that ends in the seed 0 seeds Python's own generator."""
    for instruction in ("What is rain?", "", "Why?", "Wer?", "日本", "a\nb"):
        coin = random.Random("is_switched_outputs" + instruction + "0").random()
        assert is_switched(instruction) == (coin >= 0.5), instruction
    switched = sum(is_switched(f"instruction {n}") for n in range(1000))
    assert 450 < switched < 550
    # p is of what was shown first: the baseline (x near 1), or, if switched, the model (x near 2).
    assert preference_of(0.9, False) == pytest.approx(1.1)
    assert preference_of(0.9, True) == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("value", "x"),
    [
        (1, 1.0), (2.0, 2.0), (1.25, 1.25), ("1.7328323962", 1.7328323962), (0, 1.5), ("0", 1.5),
        (0.0, 1.5), (0.99, None), (2.01, None), (-1, None), (math.nan, None), ("nan", None),
        (None, None), ("", None), ("win", None), ([1.5], None), (math.inf, None),
    ],
)  # fmt: skip
def test_what_a_recorded_preference_is(value, x):
    assert as_preference(value) == x


def rows_of(*preferences: float | None) -> list[Row]:
    return [Row(n, (20, 10 + n), x) for n, x in enumerate(preferences)]


def test_rates_by_hand():
    """y = 1, 0.5, 0.1, 0.6, and one that failed: mean 0.55; squares of the differences 0.2025,
    0.0025, 0.2025, 0.0025, over 3 is 0.41/3, so the error is 100 √(0.41/12) = 18.4842."""
    found = scores(rows_of(2, 1.5, 1.1, 1.6, None))
    assert found["win_rate"] == pytest.approx(55)
    assert found["standard_error"] == pytest.approx(100 * math.sqrt(0.41 / 12), rel=1e-12)
    assert found["interval"] == pytest.approx([55 - 36.2284, 55 + 36.2284], abs=1e-3)
    assert (found["wins"], found["draws"], found["losses"]) == (2, 1, 1)
    assert found["discrete"] == 62.5


def test_rates_of_few():
    one = scores(rows_of(1.2))
    assert one["win_rate"] == pytest.approx(20) and one["discrete"] == 0
    assert one["standard_error"] is one["interval"] is None
    none = scores(rows_of(None))
    assert none["win_rate"] is none["discrete"] is none["standard_error"] is None
    assert scores(rows_of(2, 2, 1.9))["interval"][1] == 100
    assert scores(rows_of(1, 1, 1.1))["interval"][0] == 0


# Length control


@pytest.fixture
def files(tmp_path):
    """Weights of two models, difficulties of four questions, and gamed rows."""
    weights = tmp_path / "weights.csv"
    weights.write_text(
        ",np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)\n"
        "janus,-0.7,2.0,0.5\nother,1,1,1\n"
    )
    difficulty = tmp_path / "difficulty.csv"
    difficulty.write_text("index,instruction_difficulty\n0,0.0\n1,-0.25\n2,1.0\n3,5.0\n")
    gamed = tmp_path / "gamed.csv"
    lines = ["preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model"]
    for model, sign in (("verbose", -1), ("concise", 1)):
        for n, d in enumerate((0.0, -0.25, 1.0, 5.0)):
            lines.append(f"{0.5 - 0.3 * sign},{n},{sign * (1 + n / 10)},{d},False,{model}")
    gamed.write_text("\n".join(lines) + "\n")
    return weights, difficulty, gamed


def test_published_weights_by_hand(files):
    """Without length: σ(0.5 + 2d) of d = 0, -0.25, 1, 5. Upstream counts the failed one, too."""
    weights, difficulty, _ = files
    chances = [1 / (1 + math.exp(-z)) for z in (0.5, 0.0, 2.5, 10.5)]
    mean = sum(chances) / 4
    error = math.sqrt(sum((c - mean) ** 2 for c in chances) / 3 / 4)
    rows = rows_of(1.1, 1.2, 1.3, None)
    found = length_controlled(Control(weights, None, difficulty), rows, "janus", False)
    assert found["length_controlled"] == pytest.approx(100 * mean, rel=1e-12)
    assert found["lc_error"] == pytest.approx(100 * error, rel=1e-12)
    assert found["length_control"] == "published weights"


def test_a_row_has_the_difficulty_of_its_question_or_upstreams(files):
    """The first question is missing: by rows, the others get the difficulties before theirs."""
    weights, difficulty, _ = files
    rows = rows_of(1.1, 1.2, 1.3)[1:]
    for by, z in (("questions", (0.0, 2.5)), ("rows", (0.5, 0.0))):
        control = Control(weights, None, difficulty, by)
        found = length_controlled(control, rows, "janus", False)["length_controlled"]
        assert found == pytest.approx(100 * sum(1 / (1 + math.exp(-v)) for v in z) / 2), by


def test_new_weights_take_length_out(files):
    """A model that wins just where it is longer wins less at equal length."""
    gamed = files[2]
    rows = [Row(n % 4, (100, 40 + 12 * (n % 11)), 1.1 + 0.08 * (n % 11)) for n in range(40)]
    found = length_controlled(Control(gamed=gamed), rows, "janus", False)
    assert found["length_control"] == "new weights"
    assert 0 < found["length_controlled"] < 100 and found["lc_error"] >= 0
    given = length_controlled(Control(gamed=gamed, difficulty=files[1]), rows, "janus", False)
    assert given == found  # the gamed rows have the same difficulties
    failed = [*rows, Row(3, (100, 900), None)]  # counts in the deviation of lengths
    assert length_controlled(Control(gamed=gamed), failed, "janus", False) != found
    y = np.array([row.preference - 1 for row in rows] + [np.nan])
    lengths = np.array([row.lengths[0] - row.lengths[1] for row in failed])
    d = np.array([(0.0, -0.25, 1.0, 5.0)[row.question] for row in failed])
    rate, error = win_rate(refit(y, lengths, d, read_gamed(gamed)).weights, d)
    again = length_controlled(Control(gamed=gamed), failed, "janus", False)
    assert (again["length_controlled"], again["lc_error"]) == (rate, error)
    longer = [row._replace(lengths=(100, 200 - row.lengths[1])) for row in rows]
    assert length_controlled(Control(gamed=gamed), longer, "janus", False) != found


def test_the_baseline_against_itself_is_half(files):
    weights, difficulty, gamed = files
    for control in (Control(weights, None, difficulty), Control(gamed=gamed)):
        found = length_controlled(control, rows_of(1.5, 1.5, 1.5), "gpt4", True)
        assert found["length_controlled"] == 50 and found["lc_error"] == 0


def test_without_files_or_rows_there_is_none(files):
    weights, difficulty, _ = files
    nothing = dict.fromkeys(("length_controlled", "lc_error", "length_control"))
    assert length_controlled(Control(), rows_of(1.1), "janus", False) == nothing
    control = Control(weights, None, difficulty)
    assert length_controlled(control, rows_of(None), "janus", False) == nothing


def test_weights_of_another_model_and_too_few_difficulties(files):
    weights, difficulty, _ = files
    control = Control(weights, None, difficulty)
    with pytest.raises(UserError, match=r"weights.csv has no weights of 'rival' \(see --name\)"):
        length_controlled(control, rows_of(1.1), "rival", False)
    with pytest.raises(UserError, match="has 4 difficulties; 5 are needed"):
        length_controlled(control, rows_of(*[1.1] * 5), "janus", False)
