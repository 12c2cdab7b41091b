"""Statistics of a collection: numbers worked out by hand, samples, planted repetitions, errors."""

import json
import sys

import numpy as np
import pytest

from janus_min import stats
from janus_min.errors import UserError
from janus_min.stats import Sample, as_text, collect, histogram, repeats

NAMES = ("dimension", "subdimension", "preference", "description")


def preference(*values):
    return dict(zip(NAMES, values))


def row(system, prompt, output, *preferences, source="sharegpt"):
    columns = {"main_source": source, "original_source": "x", "preference_set": list(preferences)}
    return columns | {"system": system, "prompt": prompt, "output": output}


def write(tmp_path, *records):
    path = tmp_path / "collection.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


ROWS = [
    row("Tell them: why, RAIN!", "Why snow?", "one",
        preference("style", "format", "bullets", "c d e f"), source="alpaca"),
    row("You are brief.", "Why rain?", "a b c d",
        preference("style", "tone", "short", "w x y z"),
        preference("harmlessness", "safety", "careful", "one two")),
    row("You are kind.\n- Be warm.", "Why rain?", "a b x y",
        preference("style", "tone", "warm", "w x a b"),
        preference("harmlessness", "safety", "careful", "one two")),
    row("Always ask: why, RAIN!", "Why rain?", "p q r s",
        preference("style", "tone", "short", "w x y z")),
    row("You are brief.", "Why\nsnow?", "one two"),
    {"text": "Rain is water."},
    row("", "Why snow?", "one two three"),
    {"text": "Snow is water."},
]  # fmt: skip


def test_counts_by_hand(tmp_path):
    found = collect(write(tmp_path, *ROWS), None, pairs=100, seed=0)
    assert (found["rows"], found["plain_texts"]) == (6, 2)
    assert found["instructions"] == 3
    assert found["instructions_with_rows"] == {"1": 1, "2": 1, "3": 1, "more": 0}
    assert found["system_messages"] == 5  # "You are brief." stands twice
    assert list(found["main_source"].items()) == [("sharegpt", 5), ("alpaca", 1)]
    assert found["unique"] == {
        "dimensions": 2,
        "subdimensions": 3,  # tone, format, safety
        "preferences": 4,  # short, warm, bullets, careful
        "descriptions": 4,
    }
    # One repeats "why rain", one has a list on its second line.
    assert found["system_shares"] == pytest.approx(
        {"repeat_instruction": 1 / 6, "one_paragraph": 5 / 6, "with_list": 1 / 6}
    )


def test_rouge_by_hand(tmp_path):
    """style: c d e f, w x y z, w x a b, w x y z make the six pairs 0, 0, 0, 1/2, 1, 1/2, of which
    the 95th percentile is 3/4 of the way from 1/2 to 1. Responses: to "Why rain?" a b c d, a b x y
    and p q r s make the pairs 1/2, 0, 0, to "Why snow?" 2·1/(1 + 3) = 1/2.
    """
    found = collect(write(tmp_path, *ROWS), None, pairs=100, seed=0)
    style, harmlessness = (found["dimensions"][name] for name in ("style", "harmlessness"))
    assert list(found["dimensions"]) == ["style", "harmlessness"]  # the most frequent first
    assert (style["preferences"], style["subdimensions"]) == (4, 2)
    assert style["most_frequent"] == [["tone", 3], ["format", 1]]
    assert (style["pairs"], style["rouge_l_mean"]) == (6, pytest.approx(2 / 6))
    assert style["rouge_l_p95"] == pytest.approx(0.875)
    assert (harmlessness["pairs"], harmlessness["rouge_l_mean"]) == (1, 1.0)
    assert found["responses"] == {
        "instructions": 2,
        "rouge_l_mean": pytest.approx((1 / 6 + 1 / 2) / 2),
        "rouge_l_max": pytest.approx((1 / 2 + 1 / 2) / 2),
    }


def test_lengths_by_hand(tmp_path, monkeypatch):
    """Responses of 1, 4, 4, 4, 2, 3 words, so 1 2 3 4 4 4: mean 3, median 3.5, and the 5th
    percentile, at place 0.25 of 0 to 5, is 1.25. Tokens here are letters.
    """
    monkeypatch.setattr(stats, "BATCH", 4)  # six rows are a batch and a part of one
    path = write(tmp_path, *ROWS)
    found = collect(path, lambda texts: [len(text) for text in texts], pairs=1, seed=0)
    assert found["lengths"]["output"]["words"] == {
        "mean": 3.0, "median": 3.5, "p5": 1.25, "p95": 4.0, "max": 4
    }  # fmt: skip
    assert found["length_counts"]["output"]["words"] == [[1, 1], [2, 1], [3, 1], [4, 3]]
    assert found["length_counts"]["prompt"] == {"words": [[2, 6]], "tokens": [[9, 6]]}
    assert found["lengths"]["system"]["tokens"]["max"] == len("You are kind.\n- Be warm.")
    only_words = collect(path, None, pairs=1, seed=0)["lengths"]
    assert all(list(units) == ["words"] for units in only_words.values())


def test_an_instruction_of_a_thousand_rows_costs_no_more_than_one_of_three(tmp_path):
    rows = [row("s", "Why?", f"same {i}") for i in range(3)] + [row("s", "Why?", "other")] * 997
    found = collect(write(tmp_path, *rows), None, pairs=5, seed=0)
    assert found["instructions_with_rows"] == {"1": 0, "2": 0, "3": 0, "more": 1}
    assert found["responses"] == {"instructions": 1, "rouge_l_mean": 0.5, "rouge_l_max": 0.5}


def test_pairs_are_a_seeded_choice(tmp_path):
    """Row i is described by words i to i + 9 of a long list, so that nearly every pair differs."""
    texts = [" ".join(str(word) for word in range(i, i + 10)) for i in range(60)]
    rows = [
        row("s", f"Why {i // 3}?", text, preference("style", "tone", "p", text))
        for i, text in enumerate(texts)
    ]
    path = write(tmp_path, *rows)
    one, same, other = (collect(path, None, pairs=8, seed=seed) for seed in (1, 1, 2))
    assert one == same
    for found in (one, other):
        assert found["dimensions"]["style"]["pairs"] == 8
        assert found["responses"]["instructions"] == 8
        # Rows 3k, 3k + 1, 3k + 2 share 9, 8 and 9 of ten words.
        assert found["responses"]["rouge_l_mean"] == pytest.approx(2.6 / 3)
        assert found["responses"]["rouge_l_max"] == pytest.approx(0.9)
    assert one["dimensions"] != other["dimensions"]
    assert collect(path, None, pairs=1, seed=0)["dimensions"]["style"]["pairs"] == 1


def test_a_sample_is_fair_and_has_all_items_of_its_names():
    """Each of 20 names is drawn 5 times in 20: 1,000 seeds ± 5 standard deviations of 13.7."""
    drawn = np.zeros(20)
    for seed in range(1000):
        sample = Sample(5, seed)
        for item in range(3):
            for name in range(20):
                sample.add(str(name), (name, item))
        groups = sample.groups()
        assert len(groups) == 5
        for group in groups:
            assert group == [(group[0][0], item) for item in range(3)]
            drawn[group[0][0]] += 1
    assert np.abs(drawn - 250).max() < 68


def test_the_order_of_rows_does_not_change_which_names_are_drawn():
    forward, backward = Sample(5, 0), Sample(5, 0)
    for name in range(100):
        forward.add(str(name), name)
        backward.add(str(99 - name), 99 - name)
    assert forward.groups() == backward.groups()


LONG = "Please write one two three four five six seven eight words about rain."


@pytest.mark.parametrize(
    ("system", "prompt", "repeated"),
    [
        ("You know. When asked “what is  RAIN”, you smile.", "What is\nrain?", True),
        ("You know what it is: rain.", "What is rain?", False),
        ("You are a highland guide.", "Hi", False),  # not a word of its own
        ("Say one, two, three: four five six seven eight!", LONG, True),
        ("Say one two three four five six seven, then eight nine.", LONG, False),
        ("Say one two three four five six seven eighty.", LONG, False),
        ("Say eight seven six five four three two one about rain.", LONG, False),  # another order
        ("Rain: one two three four five six seven eight", LONG, True),
        ("one two three four five six seven eight",
         "Everyone two three four five six seven eight is not one", False),
        ("You are brief.", "?!", False),
        ("", "Why?", False),
    ],
)  # fmt: skip
def test_planted_repetitions_are_found(system, prompt, repeated):
    assert repeats(system, prompt) == repeated


@pytest.mark.parametrize(
    ("system", "paragraph", "listed"),
    [
        ("You are brief. 1. is a number, and - is a dash.\n", 1, 0),
        ("You are brief.\nYou are kind.", 0, 0),
        ("You:\n  1) are brief", 0, 1),
        ("You:\n\n* are brief", 0, 1),
        ("You:\n12. are brief", 0, 1),
        ("In\n2.5 words,\n-brief", 0, 0),
    ],
)
def test_paragraphs_and_lists(tmp_path, system, paragraph, listed):
    shares = collect(write(tmp_path, row(system, "a", "b")), None, 1, 0)["system_shares"]
    assert (shares["one_paragraph"], shares["with_list"]) == (paragraph, listed)


# What a person reads


def test_the_report_is_short_aligned_and_survives_json(tmp_path):
    found = collect(write(tmp_path, *ROWS), lambda texts: [len(t) for t in texts], 100, 0)
    report = as_text(found)
    assert report == as_text(json.loads(json.dumps(found)))
    lines = report.splitlines()
    assert "rows                               6   and 2 plain texts" in lines
    assert "  repeat instruction           16.7%" in lines
    assert "  style                            4               2    0.333 0.875  6" in lines
    assert "      tone 3, format 1" in lines
    assert "  output  words          3.0       3.5       1.2       4.0         4" in lines


def test_a_report_of_a_wild_collection_is_no_longer(tmp_path):
    long = "a name\nof two lines " * 10
    sets = [
        [preference(f"{long}{d}", f"{long}{i}", "p", "d") for d in range(40)] for i in range(40)
    ]
    rows = [row("s", "p", "o", *p, source=f"{long}{i}") for i, p in enumerate(sets)]
    report = as_text(collect(write(tmp_path, *rows), None, 5, 0))
    assert len(report.splitlines()) < 60
    assert max(map(len, report.splitlines())) <= 100


def test_a_collection_without_pairs_says_so(tmp_path):
    found = collect(write(tmp_path, row("s", "a", "b", preference(*"abcd"))), None, 5, 0)
    assert found["responses"] == {"instructions": 0, "rouge_l_mean": None, "rouge_l_max": None}
    assert found["dimensions"]["a"]["rouge_l_mean"] is None
    assert as_text(found).count("  —     —    0") == 2
    json.dumps(found, allow_nan=False)


def test_a_picture_without_matplotlib(tmp_path, monkeypatch):
    found = collect(write(tmp_path, *ROWS), None, 5, 0)
    for name in ("matplotlib", "matplotlib.figure"):  # other tests have loaded it
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"^a picture needs matplotlib: pip install matplotlib$"):
        histogram(found, tmp_path / "lengths.png")
    with pytest.raises(UserError, match=r"lengths.pdf: a picture is a .png or .svg file"):
        histogram(found, tmp_path / "lengths.pdf")


@pytest.mark.parametrize(
    ("name", "start", "unit"), [("l.png", b"\x89PNG", "words"), ("l.SVG", b"<?xml", "tokens")]
)
def test_a_picture_with_matplotlib(tmp_path, monkeypatch, name, start, unit):
    """Responses of 1 to 100 words, twice each, and one of 9,000: whole bars of two lengths, and a
    last one that holds the longest too. Instructions all have one word.
    """
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    drawn, save = [], figure_class.savefig
    monkeypatch.setattr(figure_class, "savefig", lambda f, out: (drawn.append(f), save(f, out)))
    rows = [row("s", "Why?", "word " * (i % 100 + 1)) for i in range(200)]
    path = write(tmp_path, *rows, row("s", "Why?", "word " * 9000))
    tokens = (lambda texts: [len(text.split()) for text in texts]) if unit == "tokens" else None
    found = collect(path, tokens, 5, 0)
    histogram(json.loads(json.dumps(found)), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    heights = [[bar.get_height() for bar in axes.patches] for axes in drawn[0].axes]
    assert heights == [[201], [201], [4] * 49 + [5]]
    assert [axes.get_xlabel() for axes in drawn[0].axes] == [unit] * 3


# A user's mistakes


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "output": "b"}, r"found are the columns \['output', 'prompt'\], needed are"
         r" \['main_source', 'preference_set', 'system', 'prompt', 'output'\]: statistics are"),
        ({"preference_set": [], "text": "a"}, r"found are the columns \['preference_set', 'text'"),
        (ROWS[0] | {"preference_set": {}}, "'preference_set' must be a list of objects with"),
        (ROWS[0] | {"preference_set": ["style"]}, "'preference_set' must be a list of objects"),
        (ROWS[0] | {"preference_set": [{"dimension": "style"}]},
         "'preference_set': key 'subdimension' is needed, found"),
        (ROWS[0] | {"system": None}, "'system' must be text, found NoneType"),
        (ROWS[0] | {"main_source": 3}, "'main_source' must be text, found int"),
    ],
)  # fmt: skip
def test_broken_rows_say_where_and_what(tmp_path, record, message):
    with pytest.raises(UserError, match=f"collection.jsonl:2: {message}"):
        collect(write(tmp_path, ROWS[0], record), None, 5, 0)


def test_files_without_rows(tmp_path):
    with pytest.raises(
        UserError, match=r"collection.jsonl: empty file, needed are rows with \['ma"
    ):
        collect(write(tmp_path), None, 5, 0)
    with pytest.raises(UserError, match=r"collection.jsonl: 1 plain texts, needed are rows with"):
        collect(write(tmp_path, {"text": "Rain."}), None, 5, 0)
    with pytest.raises(UserError, match="--pairs is 0, must be 1 or more"):
        collect(write(tmp_path, *ROWS), None, 0, 0)
