"""Results side by side: tables by hand, what may not be compared, warnings, pictures, errors."""

import json
import re
import sys

import numpy as np
import pytest

from janus_min.chart import draw
from janus_min.errors import UserError
from janus_min.kinds import KINDS
from janus_min.report import as_text, load
from janus_min.tables import shown
from tests.results import (
    BENCH,
    COUNTS,
    EVERY,
    NO_RATES,
    arena_hard,
    pairwise,
    people,
    rubric,
    warnings,
    write_and_load,
)


@pytest.fixture
def loaded(tmp_path):
    return lambda *results: write_and_load(tmp_path, *results)


# Tables


def beside(left, right):
    """The halves of a table that is wider than a line may be."""
    return "\n".join(a + b for a, b in zip(left.splitlines(), right.splitlines()))


GRADES = [
    rubric("janus-7b", 4.43, {"mf-FLASK": 4.5, "mf-Koala": 4.1}),
    rubric("mistral", 3.5, {"mf-Koala": 3, "mf-New": None}, runs=[3.5] * 3, spread=None),
    rubric("silent", None, {}, counts={"ok": 0, "failed": 0}, runs=[]),
]


def test_grades_as_a_table(loaded):
    """A source comes in the place where it first appears; a dash is what a model has no grade in.
    4.43 ± 0.04 is 4.39 to 4.47.
    """
    expected = """\
Mean grades, 1 to 5

judge: gpt-4, which does not see the system message
bench: bench.jsonl, 921 items
runs: 3

model         mf-FLASK      mf-Koala   mf-New       average   95 % interval         failed
janus-7b   4.50 ± 0.01   4.10 ± 0.01        —   4.43 ± 0.01    4.39 to 4.47   12 of 11,052
mistral              —   3.00 ± 0.01        —          3.50    3.46 to 3.54   12 of 11,052
silent               —             —        —      no score               —         0 of 0

±: standard deviation over runs
95 % interval: of the average, over items"""
    assert as_text(loaded(*GRADES)) == expected


def test_grades_in_markdown(loaded):
    expected = """\
### Mean grades, 1 to 5

- judge: gpt-4, which does not see the system message
- bench: bench.jsonl, 921 items
- runs: 3

| model | mf-FLASK | mf-Koala | mf-New | average | 95 % interval | failed |
|---|---:|---:|---:|---:|---:|---:|
| janus-7b | 4.50 ± 0.01 | 4.10 ± 0.01 | — | 4.43 ± 0.01 | 4.39 to 4.47 | 12 of 11,052 |
| mistral | — | 3.00 ± 0.01 | — | 3.50 | 3.46 to 3.54 | 12 of 11,052 |

- ±: standard deviation over runs
- 95 % interval: of the average, over items"""
    assert as_text(loaded(*GRADES[:2]), markdown=True) == expected


def test_more_than_eight_sources_are_rows(loaded):
    nine = {f"s{i}": 1 + i / 4 for i in range(9)}
    text = as_text(loaded(rubric("a", 2, nine), rubric("model-b", 3, {"s8": 5})))
    assert text.split("\n\n")[2:4] == [
        """\
model         average   95 % interval         failed
a         2.00 ± 0.01    1.96 to 2.04   12 of 11,052
model-b   3.00 ± 0.01    2.96 to 3.04   12 of 11,052""",
        """\
source             a       model-b
s0       1.00 ± 0.01             —
s1       1.25 ± 0.01             —
s2       1.50 ± 0.01             —
s3       1.75 ± 0.01             —
s4       2.00 ± 0.01             —
s5       2.25 ± 0.01             —
s6       2.50 ± 0.01             —
s7       2.75 ± 0.01             —
s8       3.00 ± 0.01   5.00 ± 0.01""",
    ]
    del nine["s8"]
    header = as_text(loaded(rubric("a", 2, nine))).split("\n\n")[2].splitlines()[0]
    assert header.split()[:9] == ["model", *nine]


def test_what_differs_stands_in_the_first_of_two_tables(loaded):
    nine = {f"s{i}": 1 for i in range(9)}
    results = loaded(rubric("a", 2, nine), rubric("b", 2, nine, judge="x"))
    heads = [table.splitlines()[0] for table in as_text(results, mixed=True).split("\n\n")[2:4]]
    assert heads[0].endswith("   failed   judge") and heads[1].endswith("   b")


def test_choices_of_a_judge_as_a_table(loaded):
    results = loaded(
        pairwise("janus-7b", "mistral", 0.5, 0.2, 0.3),
        pairwise("janus-7b", "gpt-4", 0.05, 0.2, 0.75),
        pairwise("silent", "gpt-4", 0, 0, 0, **NO_RATES),
    )
    left = """\
model vs opponent        win      tie     lose    tie+win
janus-7b vs mistral   50.0 %   20.0 %   30.0 %     70.0 %
janus-7b vs gpt-4      5.0 %   20.0 %   75.0 %     25.0 %
silent vs gpt-4            —        —        —   no score"""
    right = """\
    95 % interval   consistent    first      failed
   60.0 to 80.0 %       90.0 %   52.0 %   21 of 921
   15.0 to 35.0 %       90.0 %   52.0 %   21 of 921
                —            —        —   21 of 921"""
    expected = f"""\
Choices of a judge between two responses, shown in both orders

judge: gpt-4, which sees the system message
bench: bench.jsonl, 921 items

{beside(left, right)}

95 % interval: of tie+win, over items
consistent: share of pairs in which both orders agree
first: share of verdicts for the response shown first; far from 50 %: position bias"""
    assert as_text(results) == expected


def test_choices_of_people_as_a_table(loaded):
    """The rates of the paper's abstract: 36.8 + 38.4 = 75.2."""
    nobody_twice = {"observed": None, "alpha": None, "items": 0}
    results = loaded(
        people("janus-7b", "mistral", 0.368, 0.384, 0.1, 0.148),
        people("janus-7b", "tulu", 0.2, 0.1, 0.3, 0.4, agreement=nobody_twice),
    )
    left = """\
model vs opponent        win   both good   both bad     lose   tie+win    95 % interval
janus-7b vs mistral   36.8 %      38.4 %     10.0 %   14.8 %    75.2 %   70.0 to 80.0 %
janus-7b vs tulu      20.0 %      10.0 %     30.0 %   40.0 %    30.0 %   70.0 to 80.0 %"""
    right = """\
            agreement   alpha   annotators   judgments
   62.5 % on 80 items    0.46            2       1,300
                    —       —            2       1,300"""
    expected = f"""\
Choices of people between two responses; they see the system message, too

judge: people
bench: bench.jsonl, 921 items

{beside(left, right)}

tie+win: win and both good
95 % interval: of tie+win, over items
agreement: share of pairs of judgments of an item with the same outcome
alpha: Krippendorff's: 1 is full agreement, 0 is that of chance"""
    assert as_text(results) == expected


def test_each_kind_has_a_table_of_its_own(loaded):
    results = [people("a", "b", 0.4, 0.3, 0.2, 0.1), rubric("a", 4), rubric("b", 3)]
    texts = [as_text(loaded(*own)) for own in (results[:1], results[1:])]
    assert as_text(loaded(results[1], results[0], results[2])) == f"{texts[1]}\n\n{texts[0]}"


def test_a_result_that_is_not_yet_in_a_file(loaded):
    [result] = loaded(rubric("a", 4))
    assert as_text([result | {"path": None}]) == as_text([result])


def test_one_run_has_no_spread_and_no_word_about_it(loaded):
    text = as_text(loaded(rubric("a", 4, {"s": 4}, runs=[4], spread=None, by_source={})))
    assert "±" not in text and "runs: 1\n" in text


# What may be compared


def changed(**settings):
    return {"settings": {"temperature": 1.0, "show_system": False} | settings}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"judge": "gpt-4o"}, "judge: 'gpt-4' and 'gpt-4o'"),
        ({"judge": None}, "judge: 'gpt-4' and None"),
        ({"bench": BENCH | {"hash": "f"}},
         "bench: 'bench.jsonl (0123456789abcdef)' and 'bench.jsonl (f)'"),
        (changed(temperature=0.0), "temperature: 1.0 and 0.0"),
        (changed(show_system=True, prompt="ab"), "show_system: False and True; prompt: None and "
         "'ab'"),
        ({"settings": {}}, "temperature: 1.0 and None; show_system: False and None"),
    ],
)  # fmt: skip
def test_what_differs_is_refused(tmp_path, loaded, change, found):
    results = loaded(rubric("a", 4), rubric("b", 4), rubric("c", 3, **change))
    with pytest.raises(UserError) as error:
        as_text(results)
    files = [tmp_path / number / "result.json" for number in "02"]
    assert str(error.value) == (
        f"{files[0]} and {files[1]} differ in {found} "
        "(--mixed puts them into one table nevertheless)"
    )


def test_what_differs_has_columns_if_the_caller_insists(loaded):
    other = BENCH | {"name": "own.json", "hash": "ff", "items": 1000}
    results = loaded(
        rubric("a", 4, **changed(prompt="x|y")),
        rubric("b", 3, judge=None, bench=other, **changed(show_system=True)),
    )
    text = as_text(results, markdown=True, mixed=True)
    lines = text.splitlines()
    assert lines[2:4] == [
        "- judge: gpt-4 and not known",
        "- bench: bench.jsonl, 921 items and own.json, 1,000 items",
    ]
    assert [line.split("12 of 11,052 ")[-1] for line in lines if line.startswith("| ")] == [
        "| model | average | 95 % interval | failed | bench | judge | show\\_system | prompt |",
        r"| bench.jsonl (0123456789abcdef) | gpt-4 | False | x\|y |",
        "| own.json (ff) | — | True | — |",
    ]
    assert warnings(text) == [
        r"the rows cannot be compared, they differ in bench, judge, show\_system, prompt"
    ]


def test_what_may_differ(loaded):
    """A bench may have another name; results of people have a sheet each; kinds are apart."""
    results = loaded(
        rubric("a", 4),
        rubric("b", 4, bench=BENCH | {"name": "copy.jsonl"}),
        people("a", "b", 0.4, 0.3, 0.2, 0.1),
        people("a", "c", 0.4, 0.3, 0.2, 0.1),
    )
    assert warnings(as_text(results)) == []


@pytest.mark.parametrize(
    ("one", "other", "shares"),
    [
        # Both differences are a little more than 2 and 10 points among floats.
        ((97, 3, 0), (95, 5, 0), None),
        ((70, 30, 0), (60, 40, 0), "30.0 % of a, 40.0 % of b"),
        ((979, 21, 0), (1000, 0, 0), "0.0 % of b, 2.1 % of a"),
        ((98, 2, 1), (95, 5, 5), "2.0 % of a, 5.0 % of b"),
        ((0, 0, 0), (80, 20, 0), None),  # without judgments there is no share
        ((0, 0, 0), (0, 0, 0), None),
        ((0, 1, 0), (5, 95, 0), "95.0 % of b, 100.0 % of a"),
        ((0, 1, 1), (5, 95, 0), "95.0 % of b, 100.0 % of a"),
    ],
)
def test_shares_of_failed_judgments_that_are_tolerated(loaded, one, other, shares):
    names = ("ok", "failed", "unanswered")
    results = [rubric(m, 4, counts=zip(names, counts)) for m, counts in (("a", one), ("b", other))]
    found = [line for line in warnings(as_text(loaded(*results))) if "share" in line]
    text = f"failed judgments are left out, and their share differs: {shares}"
    assert found == ([text] if shares else [])


def test_shares_of_failed_judgments_that_are_not(tmp_path, loaded):
    results = loaded(
        rubric("a", 4, counts={"ok": 899, "failed": 101, "unanswered": 1}),
        rubric("b", 4, counts={"ok": 950, "failed": 50}),
        rubric("c", 4, counts={"ok": 1000, "failed": 0}),
    )
    with pytest.raises(UserError) as error:
        as_text(results)
    assert str(error.value) == (
        f"{tmp_path / '2/result.json'} and {tmp_path / '0/result.json'} differ in the share of "
        "failed judgments, which are left out: 0.0 % and 10.1 % "
        "(--mixed puts them into one table nevertheless)"
    )
    text = as_text(results, mixed=True)
    assert warnings(text) == [
        "failed judgments are left out, and their share differs: 0.0 % of c, 10.1 % of a",
        "judgments without an answer, for which the same command asks again: 1 of a",
    ]
    assert "101 of 1,000\n" in text


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"counts": {"missing": 3}},
         "items of the bench without a response, which are left out: 3 of b"),
        ({"counts": {"unanswered": 5}},
         "judgments without an answer, for which the same command asks again: 5 of b"),
        ({"counts": {"marked": 1234}},
         "responses that contain a judge's own mark such as [RESULT]; read them: 1,234 of b"),
        ({"counts": {"cut": 2}}, "responses that were cut short at their limit of tokens: 2 of b"),
        ({"runs": [4]}, "the number of runs differs: 3 of a, 1 of b, 3 of c"),
    ],
)  # fmt: skip
def test_warnings(loaded, change, warning):
    results = loaded(rubric("a", 4), rubric("b", 3, **change), rubric("c", 3))
    text = as_text(results)
    assert warnings(text) == [warning]
    assert ("runs: 1 and 3\n" in text) == ("runs" in change)


def test_warnings_name_all_whom_they_concern(loaded):
    results = loaded(*(rubric(m, 4, counts={"missing": n}) for m, n in zip("abc", (1, 0, 2))))
    assert warnings(as_text(results)) == [
        "items of the bench without a response, which are left out: 1 of a, 2 of c"
    ]


def test_differences_are_taken_item_by_item(loaded):
    """Gaps of 1 and 2 have the mean 1.5 and the deviation √0.5; half is 1.96 · √(0.5 / 2)."""
    first = rubric("a", 2, means={"x": 1.0, "y": 3.0, "z": 2.0})
    other = rubric("b", 3.5, means={"y": 4.0, "x": 3.0, "w": 1.0})
    same = rubric("c", 2, means={"x": 1.0, "y": 3.0})
    lone = rubric("d", 2, means={"x": 1.0})
    text = as_text(loaded(first, other, same, lone))
    cells = [
        re.split(" {2,}", line)[-2]
        for line in text.splitlines()
        if line[:2] in ("mo", *(f"{m} " for m in "abcd"))
    ]
    assert cells == ["difference", "—", "+1.50 (+0.52 to +2.48)", "+0.00 (+0.00 to +0.00)", "—"]
    assert "difference: from the first row, item by item, with its 95 % interval\n" in text + "\n"
    elsewhere = other | {"bench": {"name": "other", "hash": "f" * 16, "items": 3}}
    assert "difference" not in as_text(loaded(first, elsewhere), mixed=True)
    assert "difference" not in as_text(loaded(first))


def test_models_that_the_server_names_are_compared(loaded):
    """Behind one name there may be another model from one day to the next."""
    one, other, none = (rubric(m, 4) for m in "abc")
    one, other = one | {"answered_by": ["j-1"]}, other | {"answered_by": ["j-1", "j-2"]}
    assert warnings(as_text(loaded(one, other, none))) == [
        "judged by different models: j-1; j-1, j-2"
    ]
    assert warnings(as_text(loaded(one, none))) == []


def test_a_judge_that_looks_at_the_place_is_named(loaded):
    one, other = (
        pairwise(m, "x", 0.2, 0.7, 0.1, consistent=c) for m, c in (("a", 0.3), ("b", 0.5))
    )
    assert warnings(as_text(loaded(one, other))) == [
        "in only 30.0 % of the pairs both orders agree, others are ties: a vs x"
    ]


def test_warnings_about_people(loaded):
    counts = {"ok": 1300, "failed": 0, "missing": 7}
    results = loaded(
        people("a", "b", 0.4, 0.3, 0.2, 0.1),
        people("a", "c", 0.4, 0.3, 0.2, 0.1, counts=counts, annotators={"Ann": 1300}),
    )
    assert warnings(as_text(results)) == [
        "the annotators differ",
        "judgments that were not made, which are left out: 7 of a vs c",
    ]


# Names


def first_column(text):
    return [line.split("   ")[0] for line in text.split("\n\n")[2].splitlines()[1:]]


def test_names_of_sources_are_short_lines_too(loaded):
    name, line = "a\nb" + "x" * 40, "a b" + "x" * 16 + "…" + "x" * 20
    for count in (1, 9):  # as columns, as rows
        sources = {f"{name}{'' if i == 0 else i}": 4 for i in range(count)}
        lines = as_text(loaded(rubric("a", 4, sources))).splitlines()
        assert any(f"{line} " in each for each in lines)


def test_one_model_twice_has_its_folder_in_its_name(loaded):
    results = loaded(rubric("a", 4), rubric("b", 3), rubric("a", 3, counts={"missing": 1}))
    text = as_text(results)
    assert first_column(text) == ["a (0)", "b", "a (2)"]
    assert "left out: 1 of a (2)" in text


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    files = [tmp_path / name / "run" / "result.json" for name in ("one", "two")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(rubric("a", 4)))
    assert first_column(as_text(load(files))) == [f"a ({file})" for file in files]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a\nb\t c ", "a b c"),
        ("\x1b[31mred\u202e", "[31mred"),
        ("half \ud800 a pair", "half a pair"),
        (" \n", "—"),
        ("x" * 40, "x" * 40),
        ("/models/" + "x" * 30 + "/checkpoint-1", "/models/xxxxxxxxxxx…xxxxxxx/checkpoint-1"),
    ],
)
def test_names_are_one_short_line(name, line):
    assert shown(name) == line and len(line) <= 40


def test_wide_letters_and_accents_are_aligned(loaded):
    """Korean letters take two columns each, an accent of its own none."""
    results = loaded(rubric("쉬운 말", 4), rubric("e\u0301te\u0301", 4), rubric("model", 4))
    lines = as_text(results).split("\n\n")[2].splitlines()
    assert [line.split("4.00")[0] for line in lines[1:]] == [
        "쉬운 말   ",
        "e\u0301te\u0301       ",
        "model     ",
    ]


@pytest.mark.parametrize("letter", list("\\`*_{}[]<>|$~&#"))
def test_markdown_shows_names_as_they_are(loaded, letter):
    name, escaped = f"a{letter}b{letter}", f"a\\{letter}b\\{letter}"
    results = loaded(rubric(name, 4, {name: 3}, judge=name, counts={"missing": 1}))
    lines = as_text(results, markdown=True).splitlines()
    assert f"- judge: {escaped}, which does not see the system message" in lines
    assert f"| model | {escaped} | average | 95 % interval | failed |" in lines
    assert any(line.startswith(f"| {escaped} | 3.00") for line in lines)
    assert lines[-1].endswith(f": 1 of {escaped}")
    assert name in as_text(results)


# Pictures


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws results, and returns the panels of the picture as matplotlib has them."""
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    figures, save = [], figure_class.savefig
    monkeypatch.setattr(figure_class, "savefig", lambda f, out: (figures.append(f), save(f, out)))

    def panels(results, name="picture.png"):
        draw(results, tmp_path / name)
        return [panel.axes[0] for panel in figures[-1].subfigs]

    return panels


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def bars_of(axes):
    """Row, left end and length of each bar that has one."""
    boxes = [(bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) for bar in
             axes.patches]  # fmt: skip
    return [tuple(round(number, 6) for number in box) for box in boxes if box[2]]


def test_grades_as_a_picture(loaded, drawn):
    """Grades begin at 1, so that the bar of 4.5 is 3.5 long; heads of groups take a row each."""
    [axes] = drawn(loaded(rubric("a", 4, {"x": 4.5, "y": 3}), rubric("b", None, {"y": 2})))
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    assert ticks == ["x", "a", "b", "y", "a", "b", "average", "a", "b"]
    weights = [label.get_fontweight() for label in axes.get_yticklabels()]
    assert [row for row, weight in enumerate(weights) if weight == "bold"] == [0, 3, 6]
    assert bars_of(axes) == [(1, 1, 3.5), (4, 1, 2), (5, 1, 1), (7, 1, 3)]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert lines == [(pytest.approx([g - 0.04, g + 0.04]), [row, row]) for row, g in
                     ((1, 4.5), (4, 3), (5, 2), (7, 4))]  # fmt: skip
    assert texts_of(axes) == [
        *("4.50 ± 0.01", "no score"),
        *("3.00 ± 0.01", "2.00 ± 0.01"),
        *("4.00 ± 0.01", "no score"),
    ]
    assert axes.get_xlim() == (1, 5) and axes.yaxis_inverted()
    assert axes.figure.get_suptitle().splitlines() == [
        "Mean grades, 1 to 5",
        "judge: gpt-4, which does not see the system message",
        "bench: bench.jsonl, 921 items",
        "runs: 3",
    ]


def test_choices_as_a_picture(loaded, drawn):
    one = pairwise("a", "b", 0.5, 0.04, 0.46)
    choices = drawn(
        loaded(pairwise("c", "b", 0, 0, 0, **NO_RATES), one, people("a", "b", 0.4, 0.3, 0.2, 0.1))
    )
    judge, persons = choices
    assert bars_of(judge) == [(1, 0, 50), (1, 50, 4), (1, 54, 46)]
    assert bars_of(persons) == [(0, 0, 40), (0, 40, 30), (0, 70, 20), (0, 90, 10)]
    shares = ["", "50 %", "", "", "", "46 %"]  # 4 % have no room
    assert texts_of(judge) == [*shares, "no score", "tie+win 54.0 %"]
    [interval] = judge.lines
    assert interval.get_xdata() == pytest.approx([44, 64])
    assert 1 < interval.get_ydata()[0] < 1.4  # in the bar, below its numbers
    names = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in choices]
    assert names == [["win", "tie", "lose"], ["win", "both good", "both bad", "lose"]]


def test_numbers_as_a_picture(loaded, drawn):
    """One at the start of the axis has no bar to be seen, but its interval and its text."""
    low = arena_hard("b", 0, interval=[0, 1.5])
    none = arena_hard("c", 0) | {"score": None, "interval": None}
    [axes] = drawn(loaded(arena_hard("a", 20), low, none))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["score", "a", "b", "c"]
    assert bars_of(axes) == [(1, 0, 20)] and axes.get_xlim() == (0, 100)
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert lines == [([18.5, 21.5], [1, 1]), ([0, 1.5], [2, 2])]
    assert texts_of(axes) == ["20.0 %", "0.0 %", "no score"]
    assert "opponent: gpt-4-0314" in axes.figure.get_suptitle().splitlines()


def test_shades_differ_in_grey_and_bear_black_letters(loaded, drawn):
    """Lightness as ITU-R BT.601 weighs the colours; WCAG's contrast with black is 5 or more."""
    [grades] = drawn(loaded(*(rubric(name, 4, {}) for name in "abcde")))
    [choices] = drawn(loaded(people("a", "b", 0.4, 0.3, 0.2, 0.1)))
    for axes in (grades, choices):
        colours = [bar.get_facecolor()[:3] for bar in axes.patches]
        grey = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in colours]
        assert np.diff(grey).max() < -0.06, grey
        linear = [[((c + 0.055) / 1.055) ** 2.4 for c in colour] for colour in colours]
        luminance = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear]
        assert (min(luminance) + 0.05) / 0.05 >= 5


def test_a_picture_says_what_cannot_be_compared(loaded, drawn):
    [axes] = drawn(loaded(rubric("a", 4), rubric("b", 4, judge="x", **changed(temperature=0.5))))
    assert axes.figure.get_suptitle().splitlines()[-1] == (
        "Not comparable: these results differ in judge, temperature"
    )


@pytest.mark.parametrize(
    ("name", "start"), [("hostile.png", b"\x89PNG"), ("hostile.SVG", b"<?xml")]
)
def test_hostile_names_in_a_picture(tmp_path, loaded, drawn, name, start):
    """What would be a formula is text; names are whole, and within the picture."""
    long = "$x_1$ " + "m" * 40
    names = [r"$\frac{$", "_hidden", "a|b\nc", "$x^2$", "m" * 50]
    results = [rubric(n, 4, {"$s$": 4, "_s": 3}, judge=rf"$\sqrt{{$ of {n}") for n in names]
    pairs = [pairwise(n, long, 0.5, 0.2, 0.3, judge="m" * 80) for n in names]
    grades, choices = drawn(loaded(*results, *pairs), name)
    assert (tmp_path / name).read_bytes().startswith(start)
    ticks = [label.get_text() for label in grades.get_yticklabels()]
    assert ticks[:5] == [r"\$s\$", r"\$\frac{\$", "_hidden", "a|b c", r"\$x^2\$"]
    picture = grades.get_figure(root=True).bbox
    labels = [label for axes in (grades, choices) for label in axes.get_yticklabels()]
    others = [choices.get_legend(), *(axes.figure._suptitle for axes in (grades, choices))]
    for label in (*labels, *others, *grades.texts, *choices.texts):
        box = label.get_window_extent()
        assert picture.x0 <= box.x0 and box.x1 <= picture.x1, label
        assert picture.y0 <= box.y0 and box.y1 <= picture.y1, label


def test_every_kind_has_a_picture(loaded, drawn):
    """Within its edges, and with a bar for each number."""
    assert [result["kind"] for result in EVERY] == list(KINDS)
    for axes, result in zip(drawn(loaded(*EVERY)), EVERY):
        assert bars_of(axes), result["kind"]
        picture = axes.get_figure(root=True).bbox
        for label in (*axes.get_yticklabels(), *axes.texts, axes.xaxis.label):
            box = label.get_window_extent()
            assert picture.x0 <= box.x0 and box.x1 <= picture.x1, label


def test_a_picture_without_matplotlib(tmp_path, monkeypatch, loaded):
    results = loaded(rubric("a", 4))
    for name in ("matplotlib", "matplotlib.figure"):  # other tests have loaded it
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"^a picture needs matplotlib: pip install matplotlib$"):
        draw(results, tmp_path / "chart.png")
    with pytest.raises(UserError, match=r"chart.pdf: a picture is a .png or .svg file"):
        draw(results, tmp_path / "chart.pdf")


# A user's mistakes


def test_files_that_are_not_there(tmp_path, loaded):
    loaded(rubric("a", 4))
    with pytest.raises(UserError, match=r"^no results given: needed are result.json files, or"):
        load([])
    for path, file in ((tmp_path, tmp_path / "result.json"), (tmp_path / "x", tmp_path / "x")):
        with pytest.raises(UserError) as error:
            load([path])
        assert str(error.value) == (
            f"{file} not found: a result.json, or a folder that holds one, is needed"
        )
    twice = [tmp_path / "0", tmp_path / "0" / ".." / "0" / "result.json"]
    with pytest.raises(UserError, match=r"0/../0/result.json is given twice$"):
        load(twice)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", " is damaged: Expecting property name"),
        (b"\xff", " is damaged: 'utf-8' codec can't decode"),
        (b"[]", " is damaged: a JSON object is needed"),
        (b'{"b": 1, "a": 2}', ": not a result: found are the keys ['a', 'b'], needed are "
         "['kind', 'model', 'judge', 'bench', 'settings', 'counts']"),
    ],
)  # fmt: skip
def test_files_that_are_no_results(tmp_path, content, message):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load([path])
    assert str(error.value).startswith(f"{path}{message}")
    assert "results are in files called" not in str(error.value)


def test_a_file_of_judgments_is_no_result(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text("[]")
    with pytest.raises(UserError) as error:
        load([path])
    assert str(error.value) == (
        f"{path} is damaged: a JSON object is needed; results are in files called result.json"
    )


WHOLE = rubric("a", 4, {"s": 4})


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (WHOLE | {"kind": "chess"},
         "kind 'chess' is unknown, known are ['rubric', 'pairwise', 'people', 'alpaca-eval', "
         "'mt-bench', 'arena-hard', 'toxicity', 'reward', 'responses']"),
        (WHOLE | {"kind": ["rubric"]}, "'kind' must be text, found ['rubric']"),
        (WHOLE | {"model": 3}, "'model' must be text, found 3"),
        (WHOLE | {"judge": 3}, "'judge' must be text or null, found 3"),
        (WHOLE | {"bench": "b"}, "'bench' must be an object, found 'b'"),
        (WHOLE | {"bench": {"name": "b"}},
         "'bench' has the keys ['name'], needed are ['name', 'hash', 'items']"),
        (WHOLE | {"bench": BENCH | {"items": True}},
         "'bench.items' must be a whole number, found True"),
        (WHOLE | {"settings": None}, "'settings' must be an object, found None"),
        (WHOLE | {"counts": COUNTS | {"failed": -1}},
         "'counts.failed' must be a whole number, found -1"),
        (WHOLE | {"counts": COUNTS | {"marked": 0.5}},
         "'counts.marked' must be a whole number, found 0.5"),
        (WHOLE | {"score": "4" * 60}, f"'score' must be a number or null, found '{'4' * 39}"),
        (WHOLE | {"score": float("nan")}, "'score' must be a number or null, found nan"),
        (WHOLE | {"interval": [1]}, "'interval' must be two numbers or null, found [1]"),
        (WHOLE | {"interval": [1, "x"]}, "'interval' must be two numbers or null, found [1, 'x']"),
        (WHOLE | {"interval": 12}, "'interval' must be two numbers or null, found 12"),
        (WHOLE | {"runs": 3}, "'runs' must be a list, found 3"),
        (WHOLE | {"by_source": {"s": {"score": 1}}},
         "'by_source.s' has the keys ['score'], needed are ['score', 'spread', 'interval']"),
        (WHOLE | {"answered_by": "j"}, "'answered_by' must be a list of texts, found 'j'"),
        (WHOLE | {"answered_by": [3]}, "'answered_by' must be a list of texts, found [3]"),
        (WHOLE | {"annotators": 3}, "'annotators' must be an object, found 3"),
        ({key: WHOLE[key] for key in WHOLE if key != "spread"},
         f"not a result: found are the keys {sorted(WHOLE.keys() - {'spread'})}, needed are "
         "['score', 'spread', 'interval', 'runs', 'by_source', 'means']"),
        (pairwise("a", "b", 1, 0, 0, rates={"win": "x", "tie": 0, "lose": 0}),
         "'rates.win' must be a number or null, found 'x'"),
        (pairwise("a", "b", 1, 0, 0, rates=1), "'rates' must be an object or null, found 1"),
        (people("a", "b", 1, 0, 0, 0, annotators={"Ann": "x"}),
         "'annotators.Ann' must be a whole number, found 'x'"),
    ],
)  # fmt: skip
def test_broken_results_say_where_and_what(tmp_path, loaded, result, message):
    with pytest.raises(UserError) as error:
        loaded(result)
    assert str(error.value) == f"{tmp_path / '0/result.json'}: {message}"
