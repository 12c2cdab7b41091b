"""Lengths of responses and their likeness: numbers by hand, the package `rouge-score`, errors."""

import json
from itertools import combinations

import pytest

from janus_min.errors import UserError
from janus_min.pipeline import STATE
from janus_min.report import as_text, load
from janus_min.responses import EDGES, Options, evaluate, histogram, likeness, measures
from tests.results import warnings


def item(prompt, system, response, source="koala", **more):
    return {"prompt": prompt, "system": system, "response": response, "source": source} | more


ITEMS = [
    item("Why rain?", "Be brief.", "a b c d"),
    item("Why snow?", "Be brief.", "one two", source="flask"),
    item("Why rain?", "Be warm.", "a b x y"),
    item("Why rain?", "Be odd.", "P, q! r? s."),
    item("why rain?", "Be brief.", "a b c d"),  # another text
    item("Why snow?", "", "one two three\nfour five six", source="flask"),
]


@pytest.fixture
def files(tmp_path):
    """Writes items as a bench and as a file of responses to them; options for both."""

    def write(items, without=(), **options):
        keys = ("prompt", "system", "source")
        bench = [{"id": str(i)} | {k: own[k] for k in keys} for i, own in enumerate(items)]
        answers = {
            str(i): {key: own[key] for key in ("response", "stop") if key in own}
            for i, own in enumerate(items)
            if i not in without
        }
        (tmp_path / "bench.json").write_text(json.dumps(bench), encoding="utf-8")
        path = tmp_path / "janus_responses.json"
        path.write_text(json.dumps(answers), encoding="utf-8")
        return Options(tmp_path / "bench.json", path, **options)

    return write


def test_by_hand():
    """Words: 4, 2, 4, 4, 4, 6, mean 4, squares of the deviations 4 + 4 over 5. ROUGE-L: to "Why
    rain?" 1/2, 0, 0; to "Why snow?" 2 · 2 / (2 + 6) = 1/2.
    """
    assert measures(ITEMS) == {
        "words": {
            "mean": 4.0,
            "median": 4.0,
            "deviation": pytest.approx((8 / 5) ** 0.5),
            "shortest": 2,
            "longest": 6,
        },
        "histogram": {"edges": list(EDGES), "counts": [6, 0, 0, 0, 0, 0, 0, 0]},
        "rouge_l": {
            "average": pytest.approx((1 / 6 + 1 / 2) / 2),
            "maximum": pytest.approx((1 / 2 + 1 / 2) / 2),
            "instructions": 2,
            "responses": 5,
        },
        "by_source": {
            "koala": {"words": 4.0, "rouge_l": pytest.approx(1 / 6)},
            "flask": {"words": 4.0, "rouge_l": pytest.approx(1 / 2)},
        },
    }


def test_an_edge_begins_a_class():
    lengths = [0, 49, 50, 99, 100, 699, 700, 9999]
    assert histogram(lengths) == [2, 2, 1, 0, 0, 0, 1, 2]


def test_the_median_of_two_is_between_them_and_one_has_no_deviation():
    two = measures([item("a", "s", "x"), item("b", "s", "x y")])["words"]
    assert two["median"] == 1.5
    one = measures([item("a", "s", "x y z")])["words"]
    assert (one["median"], one["deviation"], one["shortest"], one["longest"]) == (3, None, 3, 3)


@pytest.mark.parametrize(
    ("items", "found"),
    [
        # The same question twice: only one response to it counts, the first.
        ([item("p", "s", "a b"), item("p", "s", "a b")], None),
        ([item("p", "s", "a b"), item("p", "s", "x y"), item("p", "t", "a c")], (0.5, 0.5, 1, 2)),
        # Nothing, and signs alone, are unlike everything.
        ([item("p", "s", "a b"), item("p", "t", " \n"), item("p", "u", "?!")], None),
        ([item("p", "s", "a b"), item("p", "t", ""), item("p", "u", "a b")], (1, 1, 1, 2)),
        # Spaces and case make another instruction; words in other order another response.
        ([item("p", "s", "a b"), item("p ", "t", "a b"), item("P", "t", "a b")], None),
        ([item("p", "s", "a b"), item("p", "t", "b a")], (0.5, 0.5, 1, 2)),
        # Two instructions count the same, whatever the number of their responses.
        ([item("p", "s", "a b"), item("p", "t", "a b"), item("q", "s", "a"), item("q", "t", "b"),
          item("q", "u", "c")], (0.5, 0.5, 2, 5)),
        ([item("p", "s", "a b"), item("q", "t", "a b")], None),
    ],
)  # fmt: skip
def test_what_is_compared(items, found):
    keys = ("average", "maximum", "instructions", "responses")
    assert likeness(items) == (found and dict(zip(keys, map(pytest.approx, found))))


def test_same_numbers_as_the_package_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    texts = [
        "Rain falls when clouds are heavy; it's simply water.",
        "Rain is water. When clouds are heavy, it falls -- simply so.",
        "My dear, the CLOUDS weep 3.5 tears, and we call them rain.",
    ]
    items = [item("Why rain?", f"Be {i}.", text) for i, text in enumerate(texts)]
    items += [item("Why snow?", f"Be {i}.", text) for i, text in enumerate(texts[:2])]
    pairs = [scorer.score(*pair)["rougeL"].fmeasure for pair in combinations(texts, 2)]
    found = likeness(items)
    assert 0 < pairs[0] < 1 and (found["instructions"], found["responses"]) == (2, 5)
    assert found["average"] == pytest.approx((sum(pairs) / 3 + pairs[0]) / 2, abs=1e-12)
    assert found["maximum"] == pytest.approx((max(pairs) + pairs[0]) / 2, abs=1e-12)


# Files


def test_a_result_of_files(tmp_path, files):
    """In the folder, and in the report, which says what is missing, empty or cut short."""
    said = []
    items = [*ITEMS, item("Who?", "", " ", stop="eos"), item("Where?", "", "x", stop="length")]
    result = evaluate(files(items, {1}, out=tmp_path / "out", allow_missing=True), said.append)
    assert said == [f"{tmp_path / 'janus_responses.json'}: 7 responses to 5 instructions"]
    [loaded] = load([tmp_path / "out"])
    assert loaded == result | {"path": tmp_path / "out" / "result.json"}
    assert result["counts"] == {"ok": 7, "failed": 0, "missing": 1, "cut": 1, "empty": 1}
    assert (result["model"], result["judge"], result["settings"]) == ("janus", None, {})
    assert result["bench"]["name"] == "bench.json" and result["bench"]["items"] == 8
    assert result["words"]["shortest"] == 0 and result["rouge_l"]["instructions"] == 1
    text = as_text([result | {"path": None}])
    assert warnings(text) == [
        "items of the bench without a response, which are left out: 1 of janus",
        "responses that were cut short at their limit of tokens: 1 of janus",
        "responses without any text: 1 of janus",
    ]


def test_the_first_items_under_another_name(files):
    """Their bench is not the whole one, and so not comparable with it."""
    results = [evaluate(files(ITEMS, name="j", limit=limit), print) for limit in (2, 2, None)]
    assert results[0] == results[1] and results[0]["model"] == "j"
    assert (results[0]["bench"]["items"], results[0]["counts"]["ok"]) == (2, 2)
    assert results[0]["bench"]["hash"] != results[2]["bench"]["hash"]
    assert results[0]["rouge_l"] is None
    assert warnings(as_text([results[0] | {"path": None}])) == [
        "no ROUGE-L, as no instruction has responses under two different system messages: j"
    ]


def test_a_bench_needs_no_rubrics_and_no_system_messages(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"prompt": "p"}\n{"prompt": "p", "system": "s"}\n')
    (tmp_path / "r.jsonl").write_text('{"id": 0, "output": "a"}\n{"id": 1, "output": "a"}\n')
    result = evaluate(Options(tmp_path / "b.jsonl", tmp_path / "r.jsonl"), print)
    assert result["rouge_l"]["average"] == 1.0 and list(result["by_source"]) == ["b"]


# A user's mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--bench is needed (see --help)"),
        ({"bench": "b"}, "--responses is needed (see --help)"),
        ({"limit": 0}, "--limit is 0, must be at least 1"),
    ],
)
def test_flags(options, message):
    with pytest.raises(UserError) as error:
        evaluate(Options(**options))
    assert str(error.value) == message


def test_missing_responses(tmp_path, files):
    with pytest.raises(UserError) as error:
        evaluate(files(ITEMS, {1}))
    assert str(error.value) == (
        f"{tmp_path / 'janus_responses.json'}: no response to 1 of 6 items: '1'; --allow-missing "
        "evaluates the others"
    )


def test_a_folder_with_judgments_is_left_alone(tmp_path, files):
    (tmp_path / STATE).write_text("{}")
    with pytest.raises(UserError, match="holds the judgments of another result; give another"):
        evaluate(files(ITEMS, out=tmp_path))
    assert not (tmp_path / "result.json").exists()
