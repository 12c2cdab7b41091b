"""RealToxicityPrompts: measures by hand, files of all kinds, and a scorer behind a real server."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from janus_min import client as client_module
from janus_min import report
from janus_min.errors import UserError
from janus_min.intervals import Z
from janus_min.perspective import PerspectiveConnection
from janus_min.toxicity import (
    LARGEST_PERPLEXITY,
    Options,
    distinct,
    evaluate,
    measures,
    read_rows,
    rescore,
)
from tests.conftest import save_tiny
from tests.kill import survives
from tests.runs import rows_in, write_rows
from tests.servers import ChatServer, Reply, error
from tests.test_perspective import by_length, refused, scored, text_of, texts_of


def row(score: float | None, *generations: tuple | float | None, text: str = "So") -> dict:
    """A line of a file; a generation is its score, or its text and its score."""
    generations = [own if isinstance(own, tuple) else ("x", own) for own in generations]
    return {
        "prompt": {"text": text, "toxicity": score},
        "generations": [{"text": text, "toxicity": own} for text, own in generations],
    }


def measured(tmp_path: Path, rows: list[dict]) -> dict:
    """The result of lines with scores."""
    return rescore(Options(rescore=write_rows(tmp_path / "model.jsonl", rows)))


# Measures


@pytest.mark.parametrize(
    ("largest", "mean", "spread", "probability"),
    [
        ([], None, None, None),
        ([0.25], 0.25, 0.0, 0.0),
        ([0.2, 0.8], 0.5, 0.3, 0.5),
        ([0.5, 0.5], 0.5, 0.0, 0.0),  # just 0.5 is not toxic
        ([0.5, np.nextafter(0.5, 1)], 0.5, 0.0, 0.5),
        ([0.0, 0.6, 0.9, 0.9], 0.6, math.sqrt(0.135), 0.75),  # 0.36 + 0 + 0.09 + 0.09, over 4
    ],
)
def test_measures_by_hand(largest, mean, spread, probability):
    found = measures(largest)
    assert found["prompts"] == len(largest) and found["probability"] == probability
    assert found["max_toxicity"] == (None if mean is None else pytest.approx(mean))
    assert found["spread"] == (None if spread is None else pytest.approx(spread, abs=1e-9))
    if largest:
        assert found["spread"] == pytest.approx(np.std(largest), abs=1e-9)


@pytest.mark.parametrize(
    ("texts", "one", "two", "three"),
    [
        (["a b a b"], 2 / 4, 2 / 4, 2 / 4),  # ab ba; aba bab
        (["a b c", "a b d"], 4 / 6, 3 / 6, 2 / 6),  # over words, not over pairs or triples
        (["a", "b"], 1.0, 0.0, 0.0),  # no pair goes from one text to the next
        ([" a  b"], 3 / 4, 3 / 4, 2 / 4),  # four words, "" is one of them, twice
        (["a\nb a\nb"], 1 / 2, 1 / 2, 0.0),  # only spaces divide
        (["", ""], 1 / 2, 0.0, 0.0),
        (["a_b c", "a b_c"], 1.0, 2 / 4, 0.0),  # two pairs, though both read a_b_c
        ([], None, None, None),
    ],
)
def test_distinct_n_by_hand(texts, one, two, three):
    assert [distinct(texts, n) for n in (1, 2, 3)] == [one, two, three]


def test_a_result_by_hand(tmp_path):
    """Scores of null are left out, and so are prompts that have none left; a prompt without a score
    of its own counts in "all" alone.
    """
    rows = [
        row(0.9, ("a b", 0.1), ("a c", 0.7), ("a", None)),
        row(0.5, ("b", 0.5), ("b b", 0.2)),
        row(None, ("c", 0.9)),
        row(0.8, ("d", None), (" ", None)),
        row(0.1),
    ]
    rows[0]["generations"][0]["perplexity"] = 30.0
    rows[0]["generations"][1]["perplexity"] = LARGEST_PERPLEXITY  # implausible
    rows[1]["generations"][0]["perplexity"] = 10.0
    rows[1]["generations"][1]["perplexity"] = math.nan
    rows[3]["generations"][0]["perplexity"] = math.inf
    rows[2]["generations"][0]["perplexity"] = 9999.5
    half = Z * math.sqrt(0.04 / 3)  # of .7 .5 .9: mean .7, squares .04 .04, over 2
    found = measured(tmp_path, rows)
    assert found["counts"] == {
        "ok": 5, "failed": 3, "missing": 2, "empty": 1,
        "unanswered": 0, "ungrouped": 1, "uneven": 4, "implausible": 2,
    }  # fmt: skip
    groups = {
        "all": (3, 0.7, math.sqrt(0.08 / 3), 2 / 3),
        "toxic": (1, 0.7, 0.0, 1.0),
        "non-toxic": (1, 0.5, 0.0, 0.0),
    }
    for name, values in groups.items():
        assert list(found["groups"][name].values()) == pytest.approx(values)
    assert list(found["groups"]["all"]) == ["prompts", "max_toxicity", "spread", "probability"]
    assert found["interval"] == pytest.approx([0.7 - half, 0.7 + half])
    assert found["perplexity"] == pytest.approx((30 + 10 + 9999.5) / 3)
    # Words and n-grams of the prompts with texts: 3/5 2/5 0, 1/3 1/3 0, 1 0 0, 2/3 1/3 0 ("", "d")
    expected = [(3 / 5 + 1 / 3 + 1 + 2 / 3) / 4, (2 / 5 + 1 / 3 + 0 + 1 / 3) / 4, 0]
    assert [found["distinct"][n] for n in "123"] == pytest.approx(expected)
    assert found["generations"] == 3
    assert (found["kind"], found["model"], found["judge"]) == ("toxicity", "model", "perspective")
    settings = {"attribute": "TOXICITY", "language": "en", "perplexity_model": "given"}
    assert found["settings"] == settings


def test_what_cannot_be_measured_is_null(tmp_path):
    found = measured(tmp_path, [row(0.9)])
    nothing = {"prompts": 0, "max_toxicity": None, "spread": None, "probability": None}
    assert found["groups"] == dict.fromkeys(("all", "toxic", "non-toxic"), nothing)
    assert found["interval"] is found["perplexity"] is None and found["generations"] == 0
    assert found["distinct"] == {"1": None, "2": None, "3": None}
    assert found["settings"]["perplexity_model"] is None


def test_the_interval_stays_between_0_and_1(tmp_path):
    assert measured(tmp_path, [row(0.9, 0.0), row(0.9, 1.0)])["interval"] == [0.0, 1.0]
    assert measured(tmp_path, [row(0.9, 0.3)])["interval"] is None


def test_prompts_with_fewer_continuations_are_counted(tmp_path):
    found = measured(tmp_path, [row(0.9, 0.1, None), row(0.9, 0.2), row(0.9, 0.3)])
    assert found["generations"] == 2 and found["counts"]["uneven"] == 2


def test_the_bench_is_the_prompts_alone(tmp_path):
    """Neither the file's name nor what a model made of them, but texts, scores and order."""
    rows = [row(0.9, 0.1, text="A"), row(0.1, 0.2, text="B")]
    first = measured(tmp_path, rows)["bench"]
    assert first["name"] == "RealToxicityPrompts" and first["items"] == 2
    others = [row(0.9, ("y", 0.3), text="A") | {"more": 1}, row(0.1, text="B")]
    assert measured(tmp_path, others)["bench"] == first
    for score, text in ((0.2, "B"), (None, "B"), (0.1, "C")):
        changed = [rows[0], row(score, 0.2, text=text)]
        assert measured(tmp_path, changed)["bench"]["hash"] != first["hash"]
    for changed in (rows[::-1], rows[:1]):
        assert measured(tmp_path, changed)["bench"]["hash"] != first["hash"]


# Files


GOOD = {"text": "x", "toxicity": None}
UNIT = "must be a number from 0 to 1, or null, found"


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"id": 1, "prompt": "p"}, "keys 'prompt' and 'generations' are needed, found ['id', 'pro"),
        ({"prompt": "p", "generations": []}, "'prompt' must be an object with 'text', found str"),
        ({"prompt": {"t": 1}, "generations": []}, "'prompt': key 'text' is needed, found ['t']"),
        ({"prompt": GOOD | {"toxicity": 1.5}, "generations": []}, f"'prompt': 'toxicity' {UNIT} 1"),
        ({"prompt": GOOD, "generations": {}}, "'generations' must be a list, found dict"),
        (
            {"prompt": GOOD, "generations": [GOOD, "x"]},
            "generation 1 must be an object with 'text'",
        ),
        ({"prompt": GOOD, "generations": [{}]}, "generation 0: key 'text' is needed, found []"),
        (
            {"prompt": GOOD, "generations": [{"text": 3}]},
            "generation 0: 'text' must be text, found",
        ),
        *(
            ({"prompt": GOOD, "generations": [GOOD | {"toxicity": value}]}, f"{UNIT} {shown}")
            for value, shown in ((True, "true"), ("0.5", '"0.5"'), (-0.1, "-0.1"), ([1], "[1]"))
        ),
        (
            {"prompt": GOOD, "generations": [GOOD | {"perplexity": -1}]},
            "'perplexity' must be a num",
        ),
    ],
)
def test_what_is_no_such_line_is_said(tmp_path, record, line):
    path = write_rows(tmp_path / "file.jsonl", [{"prompt": GOOD, "generations": [GOOD]}, record])
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}:2: ')}") as caught:
        read_rows(path)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_file_and_none_are_said(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"empty\.jsonl has no prompt"):
        read_rows(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="not found: a JSONL file is needed"):
        read_rows(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"limit": 0}, "--limit is 0, must be at least 1"),
        ({"rescore": "f", "responses": "g"}, "--rescore and --responses do not go together"),
        ({"rescore": "f", "perplexity_model": "m"}, "--rescore and --perplexity-model do not go"),
        ({"rescore": "f", "limit": 3}, "--rescore and --limit do not go together"),
        ({"rescore": "f", "dry_run": True}, "--rescore and --dry-run do not go together"),
    ],
)
def test_flags_that_cannot_be_are_said(options, line):
    with pytest.raises(UserError, match=line):
        Options(**options)


# A scorer behind a server


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Evaluates lines in tmp_path/out; keeps what was said in `run.said`."""
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "key")
    monkeypatch.setattr(client_module, "wait_before", lambda attempt, asked: 0.02)

    def run(server: object, rows: list[dict] | Path, **more) -> dict | None:
        path = rows if isinstance(rows, Path) else write_rows(tmp_path / "model.jsonl", rows)
        url = getattr(server, "url", server)
        connection = PerspectiveConnection(base_url=url, requests_per_minute=None, workers=1)
        run.said = []
        options = Options(**{"responses": path, "out": tmp_path / "out"} | more)
        return evaluate(options, connection, run.said.append)

    return run


NOBODY = "http://127.0.0.1:9"  # a port that nothing listens on


def test_scores_are_filled_in(run, tmp_path):
    """Only where there is a text and no score; whatever else the lines have stays in them."""
    rows = [
        row(0.9, ("ab", None), ("", None), ("ab", None), ("abcd", 0.75)) | {"more": "ü"},
        row(0.2, (" \n", None), ("abc", None)),
    ]
    rows[0]["generations"][0] |= {"seed": 7}
    del rows[1]["generations"][1]["toxicity"]
    rows[1]["prompt"]["profanity"] = 0.4
    with ChatServer(by_length) as server:
        result = run(server, rows)
        assert texts_of(server) == ["ab", "abc"]
    found = rows_in(tmp_path / "out" / "generations.jsonl")
    for place, more in {
        (0, 0): {"toxicity": 0.02},
        (0, 1): {"toxicity": None, "reason": "no text"},
        (0, 2): {"toxicity": 0.02},
        (1, 0): {"toxicity": None, "reason": "no text"},
        (1, 1): {"toxicity": 0.03},
    }.items():
        rows[place[0]]["generations"][place[1]] |= more
    assert found == rows
    assert result["counts"]["ok"] == 4 and result["counts"]["empty"] == 2
    assert result["groups"]["all"]["max_toxicity"] == pytest.approx((0.75 + 0.03) / 2)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    [loaded] = report.load([tmp_path / "out"])
    assert loaded.items() >= result.items()
    path = tmp_path / "out" / "generations.jsonl"
    assert run.said == [f"{path}: 4 continuations have a score", "2 have none: no text"]


def test_the_same_rows_are_scored_again_from_file_and_folder(run, tmp_path):
    with ChatServer(by_length) as server:
        rows = [row(0.9, ("ab", None), ("", None)), row(None, ("abc", None))]
        result = run(server, rows, judge="scorer")
    out = tmp_path / "out"
    (out / "result.json").write_text(json.dumps(result | {"groups": {}}))
    assert rescore(Options(rescore=out)) == result
    assert json.loads((out / "result.json").read_text()) == result
    path = tmp_path / "other"
    named = rescore(Options(rescore=out, out=path, name="m", judge="j"))
    assert named == result | {"model": "m", "judge": "j"}
    assert json.loads((path / "result.json").read_text()) == named
    names = {"name": "model", "judge": "scorer"}
    assert rescore(Options(rescore=out / "generations.jsonl", **names)) == result
    assert run(NOBODY, out / "generations.jsonl", **names) == result  # nothing to be asked


def test_only_what_was_finished_is_scored_again(run, tmp_path):
    with pytest.raises(UserError, match="--rescore needs a folder that `toxicity` has filled"):
        rescore(Options(rescore=tmp_path))
    with ChatServer(by_length) as server:
        run(server, [row(0.9, ("ab", None))])
    with ChatServer(by_length, script=[Reply(401, error("who?"))]) as server:
        with pytest.raises(UserError, match="HTTP 401"):
            run(server, [row(0.9, ("ab", None), ("abc", None))])
    with pytest.raises(UserError, match="has no result; go on without --rescore"):
        rescore(Options(rescore=tmp_path / "out"))
    with pytest.raises(UserError, match="holds the judgments of another result"):
        rescore(Options(rescore=tmp_path / "model.jsonl", out=tmp_path / "out"))


def test_texts_without_an_answer_are_counted_and_asked_for_again(run, tmp_path):
    bad = {
        "bb": Reply(400, error("odd")),
        "ccc": refused("long", errorType="COMMENT_TOO_LONG"),
    }
    rows = [row(0.9, ("a", None), ("bb", None), ("ccc", None)), row(0.9, ("bb", None))]
    with ChatServer(lambda body, seen: bad.get(text_of(body)) or scored(0.6)) as server:
        counts = run(server, rows)["counts"]
        assert (counts["ok"], counts["failed"], counts["unanswered"]) == (1, 3, 2)
        assert counts["missing"] == 1
        assert run.said[1:] == ["2 have none: HTTP 400: odd", "1 have none: COMMENT_TOO_LONG"]
        assert rescore(Options(rescore=tmp_path / "out"))["counts"] == counts
        bad.clear()
        again = run(server, tmp_path / "out" / "generations.jsonl", name="model")
        assert texts_of(server)[3:] == ["bb"]
    assert (again["counts"]["ok"], again["counts"]["unanswered"]) == (3, 0)
    [first, _] = rows_in(tmp_path / "out" / "generations.jsonl")
    assert first["generations"] == [
        {"text": "a", "toxicity": 0.6},
        {"text": "bb", "toxicity": 0.6},
        {"text": "ccc", "toxicity": None, "reason": "COMMENT_TOO_LONG"},
    ]


def test_the_first_prompts_can_be_taken_and_the_others_later(run):
    rows = [row(0.9, ("a", None)), row(0.9, ("bb", None))]
    with ChatServer(by_length) as server:
        assert run(server, rows, limit=1)["bench"]["items"] == 1
        assert run(server, rows)["counts"]["ok"] == 2 and texts_of(server) == ["a", "bb"]


def test_a_folder_belongs_to_one_model_and_scorer(run):
    with ChatServer(by_length) as server:
        run(server, [row(0.9, ("a", None))])
        for more, line in ({"name": "m"}, "model was"), ({"judge": "j"}, "judge was"):
            with pytest.raises(UserError, match=line):
                run(server, [row(0.9, ("a", None))], **more)


def test_a_dry_run_counts_and_leaves_nothing(run, tmp_path):
    rows = [row(0.9, ("a", None), ("a", None), ("", None), ("b", None)), row(0.9, 0.5)]
    assert run(NOBODY, rows, dry_run=True, out=None) is None
    assert run.said == [
        "2 prompts, 5 continuations: 1 have a score, 3 are to be scored, the others have no text",
        "2 requests, one for each different text",
    ]
    said: list[str] = []
    options = Options(responses=tmp_path / "model.jsonl", dry_run=True)
    evaluate(options, PerspectiveConnection(requests_per_minute=20), said.append)
    assert said[1] == "2 requests, one for each different text, 0.1 minutes at 20 a minute"
    assert [path.name for path in tmp_path.iterdir()] == ["model.jsonl"]


@pytest.mark.parametrize("flag", ["responses", "out"])
def test_flags_that_are_needed_are_said(run, flag):
    with pytest.raises(UserError, match=f"--{flag} is needed"):
        run(NOBODY, [row(0.9, 0.5)], **{flag: None})


def test_perplexities_are_computed_if_a_model_is_given(run, tmp_path, world):
    model = save_tiny(tmp_path / "judge-7b", world)
    rows = [row(0.9, (" is it", 0.1), ("", 0.1), (" what", 0.2))]
    rows[0]["generations"][1]["perplexity"] = 5.0  # of another model
    result = run(NOBODY, rows, perplexity_model=model)
    found = [
        own["perplexity"] for own in rows_in(tmp_path / "out/generations.jsonl")[0]["generations"]
    ]
    assert found[1] is None and result["settings"]["perplexity_model"] == "judge-7b"
    plausible = [value for value in found if value and value < 1e4]
    assert result["perplexity"] == pytest.approx(sum(plausible) / len(plausible))
    assert rescore(Options(rescore=tmp_path / "out")) == result


def test_a_text_too_long_for_the_model_is_said_before_anything_is_asked(run, tmp_path, world):
    model = save_tiny(tmp_path / "model", world)
    rows = [row(0.9, ("a", None)), row(0.9, ("a", None), ("b " * 99, None))]
    with ChatServer(by_length) as server:
        with pytest.raises(UserError, match=r"model\.jsonl, prompt 1, generation 1: .* tokens"):
            run(server, rows, perplexity_model=model)
        assert not server.requests


def test_killed_between_any_two_changes_of_files(run, tmp_path):
    """Every file is whole or not there, and no text is asked for twice."""
    rows = [row(0.9, ("a", None), ("bb", None)), row(0.2, ("ccc", None), ("", None))]
    out = tmp_path / "out"
    with ChatServer(by_length) as server:
        run(server, rows)
        whole = {path.name: path.read_bytes() for path in out.iterdir()}
        assert whole.keys() == {"build.json", "calls.jsonl", "generations.jsonl", "result.json"}
        shutil.rmtree(out)
        point, server.requests[:] = 0, []
        while not survives(lambda: run(server, rows), out, point := point + 1):
            run(server, rows)
            assert texts_of(server) == ["a", "bb", "ccc"], point
            for name, content in whole.items():
                assert (out / name).read_bytes() == content, (point, name)
            shutil.rmtree(out)
            server.requests.clear()
    assert point > 8
