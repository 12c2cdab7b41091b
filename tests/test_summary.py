"""Several benchmarks in one table: by hand, ablations, what a column may hold, errors."""

import re

import pytest

from janus_min.errors import UserError
from janus_min.summary import as_summary
from tests.results import (
    BENCH,
    NO_RATES,
    alpaca_eval,
    arena_hard,
    mt_bench,
    pairwise,
    people,
    responses,
    reward,
    rubric,
    toxicity,
    warnings,
    write_and_load,
)

WITHOUT = BENCH | {"name": "no-system.jsonl", "hash": "f" * 16}


@pytest.fixture
def loaded(tmp_path):
    return lambda *results: write_and_load(tmp_path, *results)


def cells(text):
    """Those of the table, line by line."""
    return [re.split(" {2,}", line) for line in text.split("\n\n")[2].splitlines()]


# Tables

MAIN = [
    rubric("janus-7b", 4.43, {"mf-Koala": 4}),
    alpaca_eval("mistral", 17.1, 14.7, counts={"ok": 805, "failed": 0, "missing": 0, "same": 3}),
    mt_bench("janus-7b", 8, 7.4, 7.7),
    alpaca_eval("janus-7b", None, 27.8, lc_error=None),
    arena_hard("mistral", 10.8),
    rubric("llama", 3.5, judge="gpt-4"),
]


def test_the_main_table(loaded):
    """Rows and columns come in the order of the results. A dash is what was not tested."""
    expected = """\
Models side by side, a column for each benchmark

Multifaceted Bench: judge: gpt-4, which does not see the system message; bench: bench.jsonl, \
921 items; runs: 3
AlpacaEval: judge: gpt-4; bench: bench.jsonl, 921 items; opponent: gpt-4-turbo
MT-Bench: judge: gpt-4; bench: bench.jsonl, 921 items
Arena-Hard: judge: gpt-4; bench: bench.jsonl, 921 items; opponent: gpt-4-0314

model      Multifaceted Bench   AlpacaEval LC   AlpacaEval WR   MT-Bench   Arena-Hard
janus-7b                 4.43               —          27.8 %       7.70            —
mistral                     —          17.1 %          14.7 %          —       10.8 %
llama                    3.50               —               —          —            —

warning: AlpacaEval: responses that are the opponent's own, which are draws: 3 of mistral"""
    assert as_summary(loaded(*MAIN)) == expected


def test_in_markdown(loaded):
    results = loaded(arena_hard("a_b", 20.9), toxicity("c|d", 0.4, 0.25, judge="own_scorer"))
    assert (
        as_summary(results, markdown=True)
        == r"""### Models side by side, a column for each benchmark

- Arena-Hard: judge: gpt-4; bench: bench.jsonl, 921 items; opponent: gpt-4-0314
- toxicity: scorer: own\_scorer; bench: bench.jsonl, 921 items; generations: 25

| model | Arena-Hard | toxicity max. | toxicity prob. |
|---|---:|---:|---:|
| a\_b | 20.9 % | — | — |
| c\|d | — | 0.400 | 0.250 |"""
    )


def test_several_benches_of_a_kind_are_columns(loaded):
    """Trained with one, two and three system messages, tested with and without one."""
    results = loaded(
        *(rubric(f"sets-{n}", 3 + n / 4) for n in (1, 2, 3)),
        *(rubric(f"sets-{n}", 3 + n / 8, bench=WITHOUT) for n in (1, 3)),
        mt_bench("sets-1", 8, 7, 7.5),
    )
    text = as_summary(results)
    heads = ["Multifaceted Bench (bench.jsonl)", "Multifaceted Bench (no-system.jsonl)", "MT-Bench"]
    assert cells(text) == [
        ["model", *heads],
        ["sets-1", "3.25", "3.12", "7.50"],
        ["sets-2", "3.50", "—", "—"],
        ["sets-3", "3.75", "3.38", "—"],
    ]
    assert [line.split(": ")[0] for line in text.split("\n\n")[1].splitlines()] == heads
    two = loaded(alpaca_eval("a", 1, 2), alpaca_eval("a", 3, 4, bench=WITHOUT))
    assert cells(as_summary(two)) == [
        ["model", *(f"AlpacaEval {label} ({place})" for place in ("bench.jsonl", "no-system.jsonl")
                    for label in ("LC", "WR"))],
        ["a", "1.0 %", "2.0 %", "3.0 %", "4.0 %"],
    ]  # fmt: skip


def test_benches_of_one_name_are_told_apart(loaded):
    """A bench is what its hash says: under another name it is the same."""
    others = [BENCH | {"hash": "f" * 16}, BENCH | {"name": "copy.jsonl"}]
    results = loaded(rubric("a", 4), *(rubric(m, 3, bench=b) for m, b in zip("ab", others)))
    assert cells(as_summary(results)) == [
        ["model", *(f"Multifaceted Bench (bench.jsonl {h})" for h in ("01234567", "f" * 8))],
        ["a", "4.00", "3.00"],
        ["b", "3.00", "—"],
    ]


def test_each_opponent_of_a_pair_is_a_column(loaded):
    results = loaded(
        pairwise("janus", "mistral", 0.5, 0.2, 0.3),
        pairwise("janus", "gpt-4", 0, 0, 0, **NO_RATES),
        people("tulu", "gpt-4", 0.3, 0.3, 0.2, 0.2),
    )
    assert cells(as_summary(results)) == [
        ["model", "pairwise tie+win vs mistral", "pairwise tie+win vs gpt-4",
         "people tie+win vs gpt-4"],
        ["janus", "70.0 %", "no score", "—"],
        ["tulu", "—", "—", "60.0 %"],
    ]  # fmt: skip


def test_numbers_that_no_result_has_are_no_columns(loaded):
    alone = [reward("rm", 70, score=None, sections={}), responses("janus", 90, None)]
    assert cells(as_summary(loaded(*alone)))[0] == ["model", "reward accuracy", "responses words"]
    more = [*alone, reward("b", 60), responses("b", 80, 0.25)]
    assert cells(as_summary(loaded(*more))) == [
        ["model", "reward score", "reward accuracy", "responses words", "responses ROUGE-L"],
        ["rm", "—", "70.0 %", "—", "—"],
        ["janus", "—", "—", "90.0", "—"],
        ["b", "71.2 %", "60.0 %", "80.0", "0.250"],
    ]


def test_long_names_that_differ_in_their_middle_are_rows_of_their_own(loaded):
    names = [f"/models/{'x' * 20}{letter}{'x' * 20}/checkpoint-1" for letter in "ab"]
    results = loaded(rubric(names[0], 4), mt_bench(names[1], 8, 7, 7.5))
    assert [row[0] for row in cells(as_summary(results))] == ["model", *map(repr, names)]
    [row] = cells(as_summary(results[:1]))[1:]
    assert row[0] == "/models/xxxxxxxxxxx…xxxxxxx/checkpoint-1"


# What a column may hold


def test_a_model_that_was_tested_twice_is_an_error(tmp_path, loaded):
    results = loaded(rubric("a", 4), mt_bench("a", 8, 7, 7), rubric("b", 4), rubric("a", 3))
    files = [tmp_path / number / "result.json" for number in "03"]
    for mixed in (False, True):
        with pytest.raises(UserError) as error:
            as_summary(results, mixed=mixed)
        assert str(error.value) == (
            f"{files[0]} and {files[1]} are both of 'a' on one bench; a cell of a summary has room "
            "for one of them (--name names the model of an evaluation)"
        )


def test_a_column_is_of_what_can_be_compared(tmp_path, loaded):
    """Between columns, anything may differ."""
    results = loaded(
        rubric("a", 4),
        mt_bench("a", 8, 7, 7, judge="other"),
        mt_bench("b", 8, 7, 7, judge="third"),
        mt_bench("b", 8, 7, 7, bench=WITHOUT),
    )
    with pytest.raises(UserError) as error:
        as_summary(results)
    assert str(error.value) == (
        f"{tmp_path / '1/result.json'} and {tmp_path / '2/result.json'} differ in judge: 'other' "
        "and 'third' (--mixed puts them into one table nevertheless)"
    )
    text = as_summary(results, mixed=True)
    assert "MT-Bench (bench.jsonl): judge: other and third; bench: bench.jsonl, 921 items" in text
    assert warnings(text) == [
        "MT-Bench (bench.jsonl): the rows cannot be compared, they differ in judge"
    ]
    assert warnings(as_summary(results[:2] + results[3:])) == []


def test_shares_of_failed_judgments_are_compared_in_a_column(loaded):
    counts = {"ok": 80, "failed": 20, "missing": 0}
    one, other = mt_bench("a", 8, 7, 7), mt_bench("b", 8, 7, 7, counts=counts)
    with pytest.raises(UserError, match="share of failed judgments"):
        as_summary(loaded(one, other))
    as_summary(loaded(one, other | {"bench": WITHOUT}))
