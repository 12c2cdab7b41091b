"""Comparisons of two models by a judge: outcomes of both orders, rates, and what the judge saw."""

import json
import random
from collections import Counter
from itertools import product
from pathlib import Path
from statistics import stdev

import pytest

from janus_min import pairwise
from janus_min.errors import UserError
from janus_min.intervals import share_interval
from janus_min.judging import Work
from janus_min.pairwise import Options, Pair, rates, read_pairs, result_of, sample
from tests.runs import rows_in
from tests.servers import ChatServer, Reply, error, question
from tests.test_judging import (
    NOBODY,
    between,
    items_of,
    silent,
    work_of,
    write_case,
    write_responses,
)


def write_match(folder: Path, ours: list[str], theirs: list[str]) -> None:
    """A bench with the responses of two models, item by item."""
    write_case(folder, len(ours))
    for name, texts in (("janus", ours), ("rival", theirs)):
        responses = {f"i{n}": text for n, text in enumerate(texts)}
        write_responses(folder / f"{name}_responses.json", responses)


def compared(folder: Path, server: ChatServer, **changes: object) -> dict:
    """The result of a comparison."""
    return pairwise.evaluate(work_of(folder, server.url, "pairwise", **changes), silent)


def flags(url: str, *more: object) -> tuple:
    """The command line of `compared`, in its folder."""
    files = ("--responses", "janus_responses.json", "--against", "rival_responses.json")
    bench = ("pairwise", "--bench", "bench.jsonl", *files)
    return (*bench, "--judge", "stub", "--out", "out", "--base-url", url, *more)


def longer(body: dict, seen: object) -> str:
    """A judge that prefers what is longer, wherever it stands."""
    first, second = (len(between(question(body), f"response_{side}")) for side in "ab")
    verdict = "A" if first > second else "B" if second > first else "C"
    return f"Comparison: {first} and {second}. Verdict: [[{verdict}]]"


def pairs(*rows: str, source: str = "s") -> list[Pair]:
    """Rows like "a AB": an item and the verdicts of its two games, - for a failure. The same item
    again is its next run.
    """
    found, runs = [], Counter()
    for row in rows:
        key, games = row.split()
        verdicts = tuple(None if verdict == "-" else verdict for verdict in games)
        found.append(Pair(key, source, runs[key], verdicts))
        runs[key] += 1
    return found


# Outcomes and rates


@pytest.mark.parametrize(
    ("games", "outcome"),
    [
        ("AB", "win"), ("BA", "lose"),
        ("AA", "tie"), ("BB", "tie"),  # whoever stands first, or second
        ("CC", "tie"), ("AC", "tie"), ("CB", "tie"), ("BC", "tie"), ("CA", "tie"),
        ("A-", None), ("-B", None), ("--", None), ("C-", None),
    ],
)  # fmt: skip
def test_the_outcome_of_two_games(games, outcome):
    """In the first game ours is A, in the second B."""
    [pair] = pairs(f"a {games}")
    assert pair.outcome() == outcome


def test_outcomes_of_two_models_are_opposites():
    """Who changes sides changes the order of the games, too."""
    opposite = {"win": "lose", "lose": "win", "tie": "tie", None: None}
    for first, second in product(["A", "B", "C", None], repeat=2):
        ours, theirs = Pair("a", "s", 0, (first, second)), Pair("a", "s", 0, (second, first))
        assert theirs.outcome() == opposite[ours.outcome()]


@pytest.mark.parametrize(
    ("rows", "win", "tie", "lose", "items"),
    [
        (["a AB", "b BA", "c CC", "d AA"], 1 / 4, 2 / 4, 1 / 4, 4),
        (["a AB", "b A-", "c BA"], 1 / 2, 0, 1 / 2, 2),
        (["a AB", "b AB", "a BA", "b AA"], 1 / 2, 1 / 4, 1 / 4, 2),  # two runs
        (["a AB", "b AB", "a BA", "b -A"], 1 / 2, 0, 1 / 2, 2),  # a run is a run
        (["a AB", "b BA", "c BA", "a AB", "b --", "c --"], 2 / 3, 0, 1 / 3, 3),
    ],
)
def test_rates_are_means_of_runs(rows, win, tie, lose, items):
    found = rates(pairs(*rows))
    assert found["rates"] == pytest.approx({"win": win, "tie": tie, "lose": lose})
    assert list(found["rates"]) == ["win", "tie", "lose"] and found["items"] == items
    assert found["tie_win"] == pytest.approx(win + tie)
    assert found["interval"] == pytest.approx(share_interval(win + tie, items))
    assert rates(random.Random(2).sample(pairs(*rows), len(rows))) == found


def test_the_spread_is_that_of_runs():
    found = rates(pairs("a AB", "b AB", "a BA", "b AA", "a BA", "b BA"))
    assert found["spread"] == pytest.approx(stdev([1, 1 / 2, 0])) == pytest.approx(0.5)
    assert found["tie_win"] == pytest.approx(0.5)
    assert rates(pairs("a AB", "b BA"))["spread"] is None


def test_without_any_outcome_there_are_no_rates():
    empty = {"items": 0, "rates": None, "tie_win": None, "spread": None, "interval": None}
    assert rates([]) == rates(pairs("a A-", "b --")) == empty
    result = result_of({}, pairs("a A-", "b --"), {"unanswered": 0})
    assert result["consistent"] is result["first"] is result["rates"] is None
    assert result["counts"] == {"ok": 0, "failed": 2, "unanswered": 0}
    assert "NaN" not in json.dumps(result)


def test_position_bias_is_measured():
    """CC agrees with itself; C is no verdict for either place."""
    rows = pairs("a AB", "b BA", "c CC", "d AA", "e AC", "f A-", "g BB")
    result = result_of({}, rows, {})
    assert result["counts"] == {"ok": 6, "failed": 1}
    assert result["consistent"] == pytest.approx(3 / 6)
    assert result["first"] == pytest.approx(5 / 9)  # A twice in d, once in a, b and e; f is out
    assert result_of({}, pairs("a CC"), {})["first"] is None


def test_sources_have_rates_of_their_own():
    rows = pairs("a AB", "b BA") + pairs("c AB", "d A-", source="t") + pairs("e --", source="u")
    result = result_of({"kind": "pairwise"}, rows, {"missing": 1})
    assert list(result["by_source"]) == ["s", "t", "u"]
    assert result["by_source"]["s"] == rates(rows[:2])
    assert result["by_source"]["t"]["tie_win"] == 1.0 and result["by_source"]["t"]["items"] == 1
    assert result["by_source"]["u"]["rates"] is None
    assert result["counts"] == {"ok": 3, "failed": 2, "missing": 1} and "items" not in result


# A judge that is asked


def test_a_judge_that_prefers_the_first_has_no_say(evaluated, tmp_path):
    write_match(tmp_path, ["a", "bb", "c"], ["dd", "e", "f"])
    with ChatServer(lambda body, seen: "[[A]]") as server:
        out = evaluated(*flags(server.url))
        assert len(server.requests) == 6
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["rates"] == {"win": 0.0, "tie": 1.0, "lose": 0.0} and result["tie_win"] == 1.0
    assert result["consistent"] == 0.0 and result["first"] == 1.0
    assert "100.0 %" in out and "janus vs rival" in out and "judgments 6/6" in out


def test_a_judge_that_knows_what_it_wants(tmp_path):
    ours, theirs = ["long text", "b", "same", "longer"], ["a", "long text", "same", "word"]
    write_match(tmp_path, ours, theirs)
    with ChatServer(longer) as server:
        result = compared(tmp_path, server)
        seen = Counter(
            tuple(between(question(s.body), f"response_{side}") for side in "ab")
            for s in server.requests
        )
    games = [order for pair in zip(ours, theirs) for order in (pair, pair[::-1])]
    assert seen == Counter(set(games))  # equal ones are one request in both orders
    assert result["rates"] == {"win": 0.5, "tie": 0.25, "lose": 0.25}
    assert result["consistent"] == 1.0 and result["first"] == 0.5
    assert result["tie_win"] == 0.75
    assert result["interval"] == pytest.approx(share_interval(0.75, 4))
    assert [result[key] for key in ("kind", "model", "opponent", "judge")] == [
        "pairwise", "janus", "rival", "stub"
    ]  # fmt: skip
    by_source = {s: found["rates"] for s, found in result["by_source"].items()}
    assert by_source["first"] == {"win": 0.5, "tie": 0.5, "lose": 0.0}
    assert by_source["second"] == {"win": 0.5, "tie": 0.0, "lose": 0.5}
    records = rows_in(tmp_path / "out" / "judgments.jsonl")
    assert [(r["id"], r["run"], r["game"], r["value"]) for r in records[:4]] == [
        ("i0", 0, 0, "A"), ("i0", 0, 1, "B"), ("i1", 0, 0, "B"), ("i1", 0, 1, "A")
    ]  # fmt: skip


def test_who_changes_sides_gets_the_opposite(tmp_path):
    write_match(tmp_path, ["long text", "b", "more"], ["a", "long text", "x"])
    ours, theirs = (tmp_path / f"{name}_responses.json" for name in ("janus", "rival"))
    with ChatServer(longer) as server:
        first = compared(tmp_path, server)
        second = compared(
            tmp_path, server, responses=theirs, against=ours, out=tmp_path / "swapped"
        )
    assert first["rates"] == {"win": 2 / 3, "tie": 0.0, "lose": 1 / 3}
    assert second["rates"] == {"win": 1 / 3, "tie": 0.0, "lose": 2 / 3}


def test_a_pair_of_which_a_game_failed_is_left_out_and_counted(tmp_path):
    write_match(tmp_path, ["long text", "b", "cc"], ["a", "long text", "d"])

    def answer(body: dict, seen: object) -> str:
        bad = between(question(body), "response_a") == "b"
        return "Both are fine." if bad else longer(body, seen)

    with ChatServer(answer) as server:
        result = compared(tmp_path, server, attempts=2)
        assert len(server.requests) == 7
    assert result["counts"] == {
        "ok": 2, "failed": 1, "unanswered": 0, "missing": 0, "marked": 0, "cut": 0, "empty": 0
    }  # fmt: skip
    assert result["rates"] == {"win": 1.0, "tie": 0.0, "lose": 0.0}
    [failed] = rows_in(tmp_path / "out" / "judgments.failed.jsonl")
    reason = "after 2 attempts: no [[A]], [[B]] or [[C]] in the reply"
    place = {"id": "i1", "run": 0, "game": 0}
    assert failed == place | {"reason": reason, "reply": "Both are fine."}


def test_a_game_without_an_answer_is_asked_again_by_the_same_command(evaluated, tmp_path):
    write_match(tmp_path, ["long text", "b"], ["a", "long text"])
    refuse = True

    def script(seen: object) -> Reply | None:
        asks = refuse and between(question(seen.body), "response_a") == "b"
        return Reply(400, error("no")) if asks else None

    with ChatServer(longer, script=script) as server:
        said = evaluated.fails(*flags(server.url))
        assert said == "error: without an answer: 1; the same command asks for them again\n"
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        assert result["counts"]["ok"] == result["counts"]["unanswered"] == 1
        refuse, seen = False, len(server.requests)
        evaluated(*flags(server.url))
        assert len(server.requests) == seen + 1
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["rates"] == {"win": 0.5, "tie": 0.0, "lose": 0.5}
    assert result["counts"]["unanswered"] == 0


def test_runs_are_judged_apart(tmp_path):
    """The first run of each game says A, the second one B."""
    write_match(tmp_path, ["a"], ["b"])
    times: Counter[str] = Counter()

    def answer(body: dict, seen: object) -> str:
        times[question(body)] += 1
        return "[[A]]" if times[question(body)] == 1 else longer_name(body)

    def longer_name(body: dict) -> str:
        return "[[A]]" if between(question(body), "response_a") == "b" else "[[B]]"

    with ChatServer(answer) as server:
        one = compared(tmp_path, server, workers=1)
        assert len(server.requests) == 2 and one["rates"]["tie"] == 1.0
        two = compared(tmp_path, server, workers=1, runs=2)
        assert len(server.requests) == 4
    assert two["rates"] == {"win": 0.0, "tie": 0.5, "lose": 0.5} and two["counts"]["ok"] == 2
    assert two["spread"] == pytest.approx(stdev([1, 0]))


@pytest.mark.parametrize(("more", "shown"), [((), True), (("--no-show-system",), False)])
def test_the_judge_sees_the_system_message_unless_it_is_told_not_to(
    evaluated, tmp_path, more, shown
):
    write_match(tmp_path, ["a", "b"], ["c", "d"])
    with ChatServer(longer) as server:
        evaluated(*flags(server.url, *more))
        for seen in server.requests:
            text = between(question(seen.body), "instruction")
            number = text[-2]
            asked = f"What is thing {number}?"
            assert text == (f"Be brief for user {number}.\n{asked}" if shown else asked)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["settings"]["show_system"] is shown


def test_the_users_own_prompt_has_both_responses(tmp_path):
    write_match(tmp_path, ["ours"], ["theirs"])
    prompt = tmp_path / "prompt.jsonl"
    rows = [
        {"system_prompt": "no", "prompt_template": "Grade {answer}."},
        {"system_prompt": "S", "prompt_template": "{question} | {answer_a} | {answer_b} [[A]]"},
    ]
    prompt.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ChatServer(lambda body, seen: "[[C]]") as server:
        compared(tmp_path, server, judge_prompt=prompt, workers=1)
    first, second = ([m["content"] for m in seen.body["messages"]] for seen in server.requests)
    instruction = "Be brief for user 0.\nWhat is thing 0?"
    assert first == ["S", f"{instruction} | ours | theirs [[A]]"]
    assert second == ["S", f"{instruction} | theirs | ours [[A]]"]


def test_responses_that_judge_themselves_are_counted(tmp_path):
    write_match(tmp_path, ["[[A]]", "b", "both [[B]]"], ["c", "[RESULT] 5", "[[C]]"])
    with ChatServer(lambda body, seen: "[[C]]") as server:
        result = compared(tmp_path, server)
    assert result["counts"]["marked"] == 3 and result["rates"]["tie"] == 1.0


def test_a_bench_of_comparisons_needs_no_rubrics(tmp_path):
    write_match(tmp_path, ["a"], ["b"])
    item = {key: items_of(1)[0][key] for key in ("id", "prompt")}
    (tmp_path / "bench.jsonl").write_text(json.dumps(item))
    with ChatServer(longer) as server:
        assert compared(tmp_path, server)["counts"]["ok"] == 1
        asked = between(question(server.requests[0].body), "instruction")
    assert asked == "What is thing 0?"  # without a system message


def test_items_that_one_of_them_did_not_answer_are_missing(tmp_path):
    write_match(tmp_path, ["a", "b", "c", "d"], ["e", "f", "g", "h"])
    write_responses(tmp_path / "janus_responses.json", {"i0": "a", "i1": "bb", "i2": "c"})
    write_responses(tmp_path / "rival_responses.json", {"i1": "f", "i2": "ggg", "i3": "h"})
    with ChatServer(longer) as server:
        with pytest.raises(UserError, match="no response to 1 of 4 items"):
            compared(tmp_path, server)
        result = compared(tmp_path, server, allow_missing=True)
        assert len(server.requests) == 4
    assert result["counts"]["missing"] == 2 and result["bench"]["items"] == 4
    assert result["rates"] == {"win": 0.5, "tie": 0.0, "lose": 0.5}


def test_a_limit_first_and_then_all_pays_nothing_twice(tmp_path):
    write_match(tmp_path, ["a", "bb", "c"], ["dd", "e", "f"])
    with ChatServer(longer) as server:
        result = compared(tmp_path, server, limit=1)
        assert len(server.requests) == 2 and result["bench"]["items"] == 1
        assert compared(tmp_path, server)["bench"]["items"] == 3
        assert len(server.requests) == 6


def test_what_the_pairs_hold(tmp_path):
    write_match(tmp_path, ["a", "b"], ["c", "d"])
    rows = [{"id": f"i{n}", "response": "x", "stop": "eos"} for n in range(2)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = work_of(tmp_path, NOBODY, "pairwise", responses=path).options
    items, found, counts = read_pairs(options, 1)
    item = {key: items_of(1)[0][key] for key in ("id", "source", "system", "prompt")}
    assert items == [item] and found == [item | {"responses": ["x", "c"]}]
    assert counts == {"missing": 0, "marked": 0, "cut": 0, "empty": 0}
    rows = [{"id": "i0", "response": " ", "stop": "length"}, {"id": "i1", "response": "[[A]]"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = read_pairs(options, None)[2]
    assert counts == {"missing": 0, "marked": 1, "cut": 1, "empty": 1}


def test_a_dry_run_counts_and_leaves_nothing(evaluated, tmp_path):
    write_match(tmp_path, ["a", "b"], ["c", "d"])
    before = sorted(tmp_path.iterdir())
    files = ("--responses", "janus_responses.json", "--against", "rival_responses.json")
    out = evaluated(
        "pairwise", "--bench", "bench.jsonl", *files, "--dry-run", "--runs", 2, "--base-url", NOBODY
    )
    assert out.startswith("8 calls, about ") and "and 1,600 written\n" in out
    assert sorted(tmp_path.iterdir()) == before


# Judgments that there are already


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two runs, with a game that failed."""
    write_match(tmp_path, ["long text", "b", "cc"], ["a", "long text", "d"])

    def answer(body: dict, seen: object) -> str:
        bad = between(question(body), "response_b") == "b"
        return "Both." if bad else longer(body, seen)

    with ChatServer(answer) as server:
        compared(tmp_path, server, attempts=1, runs=2)
    return tmp_path / "out"


def test_a_folder_is_scored_again_without_a_server(evaluated, folder, tmp_path):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    evaluated("pairwise", "--rescore", folder, "--out", tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (tmp_path / "copy" / "result.json").read_bytes() == before["result.json"]
    result = json.loads(before["result.json"])
    assert result["counts"]["ok"] == 4 and result["counts"]["failed"] == 2
    bad = result | {"tie_win": 0.1, "counts": result["counts"] | {"ok": 0, "failed": 1}}
    (folder / "result.json").write_text(json.dumps(bad))
    evaluated("pairwise", "--rescore", folder)
    assert (folder / "result.json").read_bytes() == before["result.json"]


def test_folders_that_cannot_be_scored_again(evaluated, folder, tmp_path):
    said = evaluated.fails("pairwise", "--rescore", folder, folder)
    assert said == "error: --rescore: one folder at a time\n"
    said = evaluated.fails("pairwise", "--rescore", tmp_path)
    assert "result.json not found: --rescore needs a folder that `pairwise` has filled" in said
    said = evaluated.fails("rubric", "--rescore", folder)
    assert "result.json is a result of 'pairwise', not of 'rubric'" in said
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"kind": "rubric"}))
    said = evaluated.fails("pairwise", "--rescore", folder)
    assert "result.json is a result of 'rubric', not of 'pairwise'" in said


# People


def test_a_sheet_and_its_exports_make_a_result(evaluated, tmp_path):
    """Of a person who prefers our responses, wherever they stand."""
    write_match(tmp_path, ["ours 0", "ours 1", "ours 2"], ["theirs 0", "theirs 1", "theirs 2"])
    files = ("--responses", "janus_responses.json", "--against", "rival_responses.json")
    out = evaluated("pairwise", "--bench", "bench.jsonl", *files, "--sheet", "sheet.html")
    assert out.splitlines()[0].startswith("sheet.html: the page")
    assert out.splitlines()[1].startswith("sheet.key.json: which side was which model")
    assert "ours 1" in (tmp_path / "sheet.html").read_text()
    key = json.loads((tmp_path / "sheet.key.json").read_text())
    assert key["models"] == ["janus", "rival"] and key["bench"]["items"] == 3
    choices = {i["id"]: "left" if i["left"] == "ours" else "right" for i in key["items"]}
    export = {"sheet": key["sheet"], "annotator": "one", "judgments": choices}
    (tmp_path / "one.json").write_text(json.dumps(export))
    command = ("pairwise", "--from-sheet", "one.json", "--out", "people")
    assert evaluated.fails(*command) == "error: --key is needed (see --help)\n"
    evaluated(*command, "--key", "sheet.key.json")
    result = json.loads((tmp_path / "people" / "result.json").read_text())
    assert result["kind"] == "people" and result["rates"]["win"] == 1.0
    assert result["bench"] == key["bench"]


def test_a_sheet_of_some_items_has_all_sources():
    """Drawn in turn, whatever the order and the sizes of the sources are."""
    pairs = [
        {"id": f"{s}{n}", "source": s} for s, size in (("a", 20), ("b", 3)) for n in range(size)
    ]
    drawn = [pair["id"] for pair in sample(pairs, 8, seed=0)]
    assert len({*drawn}) == 8 and sum(key[0] == "b" for key in drawn) == 3
    assert (
        sorted({key[0] for key in drawn[:2]})
        == sorted({key[0] for key in drawn[2:4]})
        == ["a", "b"]
    )
    assert drawn == [pair["id"] for pair in sample(pairs, 8, seed=0)]
    others = [[pair["id"] for pair in sample(pairs, 8, seed=seed)] for seed in range(1, 5)]
    assert len({tuple(other) for other in [drawn, *others]}) == 5
    assert sorted(pair["id"] for pair in sample(pairs, None, seed=0)) == sorted(
        p["id"] for p in pairs
    )


def test_a_sheet_says_which_items_it_has(evaluated, tmp_path):
    write_match(tmp_path, ["a", "b", "c"], ["d", "e", "f"])
    files = ("--responses", "janus_responses.json", "--against", "rival_responses.json")
    command = ("pairwise", "--bench", "bench.jsonl", *files, "--limit", 2, "--sheet")
    evaluated(*command, "one.html", "--seed", 1)
    key = json.loads((tmp_path / "one.key.json").read_text())
    assert key["bench"]["items"] == len(key["items"]) == 2
    hashes = {}
    for seed in range(8):
        evaluated(*command, f"{seed}.html", "--seed", seed)
        key = json.loads((tmp_path / f"{seed}.key.json").read_text())
        ids = frozenset(item["id"] for item in key["items"])
        assert hashes.setdefault(ids, key["bench"]["hash"]) == key["bench"]["hash"]
    assert 1 < len(hashes) == len({*hashes.values()}) <= 3


def test_the_seed_of_a_sheet_decides_the_sides(tmp_path):
    write_match(tmp_path, ["a"] * 12, ["b"] * 12)
    sides = []
    for seed in range(3):
        more = {"sheet": tmp_path / f"{seed}.html", "seed": seed}
        key = pairwise.make_sheet(work_of(tmp_path, NOBODY, "pairwise", **more).options)
        sides.append(tuple(item["left"] for item in json.loads(key.read_text())["items"]))
    assert len(set(sides)) == 3


# Mistakes


@pytest.mark.parametrize("missing", ["--bench", "--responses", "--against", "--judge", "--out"])
def test_flags_that_are_missing_are_named(evaluated, tmp_path, missing):
    write_match(tmp_path, ["a"], ["b"])
    command = list(flags(NOBODY))
    at = command.index(missing)
    said = evaluated.fails(*command[:at], *command[at + 2 :])
    assert said == f"error: {missing} is needed (see --help)\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--seed", -1), "--seed is -1, must be 0 or more"),
        (("--runs", 0), "--runs is 0, must be 1 to 100"),
        (("--against", "janus_responses.json"), "both models have one name; give --name and"),
        (("--against-name", "janus"), "both models have one name; give --name and --against-name"),
        (("--name", "rival"), "both models have one name; give --name and --against-name"),
        (("--against", "none.json"), "none.json not found"),
        (("--allow-missing", "--against", "few.json"), "janus_responses.json and few.json have no"),
    ],
)
def test_mistakes_end_in_one_line(evaluated, tmp_path, more, said):
    write_match(tmp_path, ["a", "b"], ["c", "d"])
    write_responses(tmp_path / "few.json", {"i1": "x"})
    if "few.json" in more:
        write_responses(tmp_path / "janus_responses.json", {"i0": "x"})
    assert said in evaluated.fails(*flags(NOBODY, *more))
    assert not (tmp_path / "out").exists()


def test_two_names_are_enough_for_one_file(tmp_path):
    """Such as two samples of one model."""
    write_match(tmp_path, ["a"], ["b"])
    path = tmp_path / "janus_responses.json"
    with ChatServer(longer) as server:
        result = compared(tmp_path, server, against=path, name="x", against_name="y")
    assert (result["model"], result["opponent"]) == ("x", "y") and result["rates"]["tie"] == 1.0


def test_a_folder_of_another_opponent_is_refused(tmp_path):
    write_match(tmp_path, ["a"], ["b"])
    other = write_responses(tmp_path / "other.json", {"i0": "c"})
    with ChatServer(longer) as server:
        compared(tmp_path, server)
        with pytest.raises(UserError, match="was built with other settings: opponent was "):
            compared(tmp_path, server, against=other)
        assert len(server.requests) == 2


def test_the_defaults_are_those_of_comparisons():
    assert Options().runs == 1 and Options().show_system is True
    work: Work = work_of(Path(), NOBODY, "pairwise")
    assert "two assistants" in work.template().user.lower()
