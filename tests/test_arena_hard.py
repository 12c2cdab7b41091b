"""Arena-Hard: labels, battles and scores, a judge behind a real server, and upstream's files."""

import json
import math
import os
import shutil
import socket
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from janus_min import client as client_module
from janus_min.arena_files import read_recorded
from janus_min.arena_hard import Options, Sampling, evaluate, rescore
from janus_min.battles import (
    LABELS,
    Battle,
    Game,
    battles_of,
    label_counts,
    label_in,
    labels_in,
    scores,
    verdict_counts,
)
from janus_min.connection import Connection
from janus_min.errors import UserError
from janus_min.judge_prompts import ARENA_HARD_AGAIN
from janus_min.judging import Work
from janus_min.pipeline import PATIENCE
from janus_min.replies import ReplyError
from janus_min.templates import own_template
from tests import servers
from tests.kill import survives
from tests.runs import rows_in, write_rows
from tests.servers import ChatServer, Reply, Seen, chat, question
from tests.test_judging import LIVES, NOBODY, Lives, between, bodies, silent

FILES = ("judgments.jsonl", "judgments.failed.jsonl", "questions.jsonl", "result.json")
OWN_FILES = (*FILES, "model_judgment.jsonl", "battles.jsonl")


# A bench, a judge, and the ways to call them


def answer_row(key: str, text: str, model: str, **turn: object) -> dict:
    """An answer, as upstream's files have it."""
    choices = [{"index": 0, "turns": [{"content": text} | turn]}]
    return {"question_id": key, "answer_id": f"a{key}", "model_id": model, "choices": choices}


def write_duels(folder: Path, *pairs: tuple[str, str]) -> None:
    """question.jsonl, janus.jsonl and baseline.jsonl, with answers of ours and of the baseline."""
    cluster = {"category": "arena-hard-v0.1", "cluster": "c"}
    rows = [
        {"question_id": f"q{n}", **cluster, "turns": [{"content": f"What is thing {n}?"}]}
        for n in range(len(pairs))
    ]
    write_rows(folder / "question.jsonl", rows)
    for model, texts in zip(("janus", "baseline"), zip(*pairs)):
        rows = [answer_row(f"q{n}", text, model) for n, text in enumerate(texts)]
        write_rows(folder / f"{model}.jsonl", rows)


def work_of(folder: Path, url: str = NOBODY, **changes: object) -> Work:
    """A work over these files, into the folder "out"; `changes` are fields of its parts."""
    names = {"bench": "question", "responses": "janus", "against": "baseline"}
    values = {key: folder / f"{name}.jsonl" for key, name in names.items()}
    values |= {"out": folder / "out", "judge": "stub", "base_url": url, "workers": 4} | changes
    types = Options, Sampling, Connection
    own = [{field.name for field in fields(part)} & values.keys() for part in types]
    return Work(*(part(**{k: values[k] for k in o}) for part, o in zip(types, own)), "arena-hard")


def judged(folder: Path, server: ChatServer, **changes: object) -> dict:
    """The result of an evaluation."""
    return evaluate(work_of(folder, server.url, **changes), silent)


def label_of(first: str, second: str) -> str:
    """The label of a judge that likes longer answers, and much longer ones more."""
    more = len(first) - len(second)
    sides = "AB" if more > 0 else "BA"
    return f"{sides[0]}{'>>' if abs(more) > 3 else '>'}{sides[1]}" if more else "A=B"


def longer(body: dict, seen: object) -> str:
    """The reply of this judge."""
    user = body["messages"][1]["content"]
    return f"So it is. [[{label_of(*(between(user, f'answer_{side}') for side in 'ab'))}]]"


def contents(folder: Path) -> dict[str, bytes]:
    """What is in the files that a folder of judgments ends with."""
    return {name: (folder / name).read_bytes() for name in OWN_FILES}


# Labels


@pytest.mark.parametrize(
    ("reply", "labels"),
    [
        ("My final verdict is: [[A>B]]", ("A>B",)),
        ("[[B>>A]]. Once more: [[B>>A]]", ("B>>A",)),
        ("[[A>B]] or rather [[A=B]], or [[A>B]]", ("A>B", "A=B")),
        ('They say "[[A=B]]".', ("A=B",)),  # quotes do not count, as upstream
        ("[[A>>A]]", ("A>>A",)), ("[[A<B]]", ("A<B",)), ("[[B]]", ("B",)), ("[[=]]", ("=",)),
        ("[A>B]", ()), ("[[a>b]]", ()), ("[[ A>B ]]", ()), ("[[A > B]]", ()), ("[[C]]", ()),
        ("[[A>B\n]]", ()), ("A>B", ()), ("$ERROR$", ()), ("", ()),
        (own_template("arena-hard").user, tuple(LABELS)),  # who repeats the request
    ],
)  # fmt: skip
def test_labels_are_read_as_upstream_reads_them(reply, labels):
    assert labels_in(reply) == labels
    if labels:
        assert label_in(reply) == (labels[0] if len(labels) == 1 else None)
    else:
        with pytest.raises(ReplyError, match=r"no label such as \[\[A>B\]\] in the reply"):
            label_in(reply)


@pytest.mark.parametrize(
    ("label", "first", "second"),
    [
        ("A>>B", ["lose"] * 3, ["win"] * 3),
        ("A>B", ["lose"], ["win"]),
        ("A=B", ["tie"], ["tie"]),
        ("B>A", ["win"], ["lose"]),
        ("B>>A", ["win"] * 3, ["lose"] * 3),
        ("A>>A", [], []),
        ("A<B", [], []),
    ],
)
def test_battles_of_a_label_in_both_games(label, first, second):
    """The model is B in the first game and A in the second."""
    for number, outcomes in enumerate((first, second)):
        games = [Game("q", number, (label,))]
        assert list(battles_of("m", games)) == [Battle("q", "m", outcome) for outcome in outcomes]


def test_each_game_counts_by_itself_and_failures_are_told_apart():
    games = [
        Game("a", 0, ("A>B",)), Game("a", 1, ("A>B", "B>A")), Game("b", 0, ()),
        Game("b", 1, ("B>>A",)), Game("c", 0, ("A<B",)), Game("c", 1, ("A>B",)),
    ]  # fmt: skip
    assert verdict_counts(games) == {"ok": 3, "failed": 3, "several": 1, "odd": 1}
    assert label_counts(games) == {
        "A>>B": 0, "A>B": 2, "A=B": 0, "B>A": 0, "B>>A": 1, "A<B": 1
    }  # fmt: skip
    outcomes = [(own.id, own.outcome) for own in battles_of("m", games)]
    assert outcomes == [("a", "lose"), ("b", "lose"), ("b", "lose"), ("b", "lose"), ("c", "win")]


# Scores


def battles(**models: str) -> list[Battle]:
    """Battles of models, such as "wwtl"."""
    names = {"w": "win", "t": "tie", "l": "lose"}
    rows = [(model, names[letter]) for model, text in models.items() for letter in text]
    return [Battle(f"q{n}", model, outcome) for n, (model, outcome) in enumerate(rows)]


MIXED = {"a": "wwtl", "b": "wllllttll" * 3, "c": "w" * 19 + "l", "d": "tt", "e": "lw"}


def upstream_rows(rows: list[Battle]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features and labels of upstream's regression: the baseline is the column 0 and side a."""
    names = ["baseline", *dict.fromkeys(row.model for row in rows)]
    features = np.zeros((2 * len(rows), len(names)))
    labels = np.zeros(2 * len(rows))
    for copy in range(2):
        for place, row in enumerate(rows, start=copy * len(rows)):
            features[place, 0] = math.log(10)
            features[place, names.index(row.model)] = -math.log(10)
            labels[place] = row.outcome == "lose" or (row.outcome == "tie" and copy == 0)
    return features, labels, names


def newton(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The coefficients of a logistic regression without penalty. As only differences of Elo count,
    one of the many solutions.
    """
    found = np.zeros(features.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-features @ found))
        hessian = features.T * (chance * (1 - chance)) @ features
        found += np.linalg.pinv(hessian, rcond=1e-10) @ (features.T @ (labels - chance))
    return found


def score_of(coefficients: np.ndarray, place: int) -> float:
    """The score of a model, by its Elo, when that of the baseline is 1000."""
    elo = 1000 + 400 * (coefficients[place] - coefficients[0])
    return 100 / (1 + 10 ** ((1000 - elo) / 400))


def test_the_score_is_the_win_rate_of_the_fitted_model():
    features, labels, names = upstream_rows(battles(**MIXED))
    fitted, found = newton(features, labels), scores(battles(**MIXED), 1, 0)
    by_hand = {"a": 62.5, "b": 100 * 2 / 9, "c": 95.0, "d": 50.0, "e": 50.0}
    assert list(found) == list(by_hand) == names[1:]
    for place, name in enumerate(names[1:], start=1):
        assert found[name][0] == pytest.approx(by_hand[name], abs=1e-12)
        assert found[name][0] == pytest.approx(score_of(fitted, place), abs=1e-6)


def test_the_score_is_that_of_scikit_learn():
    features, labels, names = upstream_rows(battles(**MIXED))
    fit = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-8, max_iter=1000)
    fit.fit(features, labels)
    found = scores(battles(**MIXED), 1, 0)
    for place, name in enumerate(names[1:], start=1):
        assert found[name][0] == pytest.approx(score_of(fit.coef_[0], place), abs=1e-3)


def test_the_interval_is_of_resampled_battles_of_all_models():
    """By hand: as many are drawn as there are, whoever's they are, so that others' change it."""
    rows = battles(a="wwtl" * 5, b="lllltw" * 5)
    points = np.array([1, 1, 0.5, 0] * 5)
    generator, drawn = np.random.default_rng(7), []
    for _ in range(40):
        places = generator.integers(50, size=50)
        drawn.append(100 * points[places[places < 20]].mean())
    found = scores(rows, 40, 7)
    assert found["a"][1] == pytest.approx([np.percentile(drawn, p) for p in (2.5, 97.5)])
    assert scores(rows, 40, 7) == found != scores(rows, 40, 8)
    assert scores(rows[:20], 40, 7)["a"][1] != found["a"][1]


def test_the_interval_has_the_width_of_independent_battles():
    """2 · 1.96 · s / √n, which is why it is too narrow for three rows of one game."""
    rows = battles(m="w" * 150 + "t" * 100 + "l" * 150)
    low, high = scores(rows, 4000, 1)["m"][1]
    spread = 100 * np.std([1] * 150 + [0.5] * 100 + [0] * 150)
    assert (low + high) / 2 == pytest.approx(50, abs=0.5)
    assert high - low == pytest.approx(2 * 1.96 * spread / math.sqrt(400), rel=0.06)


def test_scores_at_their_ends():
    assert scores([], 10, 0) == {}
    assert scores(battles(m="www"), 10, 0) == {"m": (100.0, [100.0, 100.0])}
    assert scores(battles(m="l"), 10, 0) == {"m": (0.0, [0.0, 0.0])}
    rare = scores(battles(rare="w", often="l" * 60), 1, 1)  # drawn in no round
    assert rare == {"rare": (100.0, None), "often": (0.0, [0.0, 0.0])}


# A judge that is asked

PAIRS = (("long text", "a"), ("bb", "longest"), ("c", "d"), ("ee", "f"))


def test_a_judge_sees_both_orders_and_clear_labels_count_three_times(tmp_path):
    write_duels(tmp_path, *PAIRS)
    with ChatServer(longer) as server:
        result = judged(tmp_path, server)
        shown = {
            tuple(
                between(question(seen.body), part) for part in ("question", "answer_a", "answer_b")
            )
            for seen in server.requests
        }
        body = server.requests[0].body
    orders = {(f"What is thing {n}?", *p) for n, own in enumerate(PAIRS) for p in (own, own[::-1])}
    assert shown == orders and len(server.requests) == 8
    assert body["temperature"] == 0.0 and body["top_p"] == 1.0 and body["max_tokens"] == 4096
    assert body["messages"][0]["content"] == own_template("arena-hard").system
    # Three wins of each game of q0, three losses of q1, a tie of q2, a win of q3.
    assert result["weights"] == {"win": 8, "tie": 2, "lose": 6}
    assert result["score"] == pytest.approx(100 * 9 / 16)
    assert result["labels"] == {"A>>B": 2, "A>B": 1, "A=B": 2, "B>A": 1, "B>>A": 2}
    assert result["counts"] == {
        "ok": 8, "failed": 0, "several": 0, "odd": 0, "unanswered": 0,
        "missing": 0, "marked": 0, "cut": 0, "empty": 0,
    }  # fmt: skip
    heads = [result[key] for key in ("kind", "model", "opponent", "judge", "answered_by")]
    assert heads == ["arena-hard", "janus", "baseline", "stub", ["stub-1"]]
    assert result["bench"]["name"] == "question.jsonl" and result["bench"]["items"] == 4
    assert result["bootstrap"] == {"rounds": 1000, "seed": 42} and result["length"] is None
    low, high = result["interval"]
    assert 0 < low < result["score"] < high < 100
    assert result == json.loads((tmp_path / "out" / "result.json").read_text())


def test_files_in_upstreams_formats(tmp_path):
    write_duels(tmp_path, ("long text", "a"), ("c", "d"))
    with ChatServer(longer) as server:
        judged(tmp_path, server)
        sent = [question(seen.body) for seen in server.requests]
    first, second = rows_in(tmp_path / "out" / "model_judgment.jsonl")
    assert {key: first[key] for key in ("question_id", "model", "judge")} == {
        "question_id": "q0", "model": "janus", "judge": "stub"
    }  # fmt: skip
    assert [game["score"] for game in first["games"]] == ["B>>A", "A>>B"]
    assert [game["score"] for game in second["games"]] == ["A=B", "A=B"]
    assert first["games"][0]["judgment"] == "So it is. [[B>>A]]"
    prompts = [game["user_prompt"] for row in (first, second) for game in row["games"]]
    assert sorted(prompts) == sorted(sent)
    assert between(prompts[0], "answer_a") == between(prompts[1], "answer_b") == "a"
    won = {"question_id": "q0", "model_a": "baseline", "model_b": "janus", "winner": "model_b"}
    tie = won | {"question_id": "q1", "winner": "tie"}
    assert rows_in(tmp_path / "out" / "battles.jsonl") == [won] * 6 + [tie] * 2


def test_a_judge_without_a_verdict_is_asked_to_go_on(tmp_path):
    """The server sees what was said before; both replies are read, and kept, as one."""
    write_duels(tmp_path, ("c", "d"))

    def answer(body: dict, seen: object) -> str:
        if len(body["messages"]) == 2:
            return "A is fine, and so is B."
        return "So it is [[B>A]]." if between_a(body) == "d" else "Hm, [[A<B]]."

    def between_a(body: dict) -> str:
        return between(body["messages"][1]["content"], "answer_a")

    with ChatServer(answer) as server:
        result = judged(tmp_path, server, workers=1)
        assert len(server.requests) == 4
    later = [seen.body["messages"] for seen in server.requests if len(seen.body["messages"]) > 2]
    for messages in later:
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
        assert messages[2]["content"] == "A is fine, and so is B."
        assert messages[3]["content"] == ARENA_HARD_AGAIN and "[[" not in ARENA_HARD_AGAIN
    [row] = rows_in(tmp_path / "out" / "model_judgment.jsonl")
    assert row["games"][0]["judgment"] == "A is fine, and so is B.\nSo it is [[B>A]]."
    assert [game["score"] for game in row["games"]] == ["B>A", "A<B"]
    assert result["counts"]["odd"] == result["counts"]["failed"] == result["counts"]["ok"] == 1
    assert result["labels"]["A<B"] == 1 and result["score"] == 100.0


def test_with_more_attempts_the_conversation_goes_on(tmp_path):
    write_duels(tmp_path, ("c", "d"))

    def answer(body: dict, seen: object) -> str:
        return ("One.", "Two.", "[[A=B]]")[len(body["messages"]) // 2 - 1]

    with ChatServer(answer) as server:
        assert judged(tmp_path, server, attempts=3, workers=1)["counts"]["ok"] == 2
        assert len(server.requests) == 6
        last = server.requests[2].body["messages"]
    assert [message["content"] for message in last[2:]] == [
        "One.", ARENA_HARD_AGAIN, "Two.", ARENA_HARD_AGAIN,
    ]  # fmt: skip
    [row] = rows_in(tmp_path / "out" / "model_judgment.jsonl")
    assert row["games"][1]["judgment"] == "One.\nTwo.\n[[A=B]]"


@pytest.mark.parametrize(
    ("replies", "requests", "count"),
    [
        (["[[A>B]] or [[A=B]]"], 1, "several"),  # final
        (["Both.", "[[A>B]] or [[A=B]]"], 2, "several"),
        (["[[A>>A]]"], 1, "odd"),
        (["Both.", "Still both."], 2, None),
        (["echo"], 1, "several"),
        ([Reply(200, chat("[[A>B", finish="length"))] * 2, 2, None),
    ],
)
def test_games_that_fail_have_no_weight_and_are_counted(tmp_path, replies, requests, count):
    """The second game does well."""
    write_duels(tmp_path, ("longer", "d"))
    waiting = list(replies)

    def answer(body: dict, seen: object) -> str | Reply:
        if between(body["messages"][1]["content"], "answer_a") == "longer":
            return longer(body, seen)
        reply = waiting.pop(0)
        return body["messages"][1]["content"] if reply == "echo" else reply

    with ChatServer(answer) as server:
        result = judged(tmp_path, server, workers=1)
        assert len(server.requests) == requests + 1
    found = {key: result["counts"][key] for key in ("ok", "failed", "several", "odd")}
    counts = {"ok": 1, "failed": 1, "several": 0, "odd": 0}
    assert found == counts | ({count: 1} if count else {})
    assert result["weights"] == {"win": 3, "tie": 0, "lose": 0} and result["score"] == 100.0
    failed = rows_in(tmp_path / "out" / "judgments.failed.jsonl")
    assert len(failed) == (count is None)
    [row] = rows_in(tmp_path / "out" / "model_judgment.jsonl")
    odd = "A>>A" if count == "odd" else None
    assert [game["score"] for game in row["games"]] == [odd, "A>>B"]
    if len(replies) == 2 and isinstance(replies[0], str):
        assert row["games"][0]["judgment"] == "\n".join(replies)


def test_a_judge_that_never_has_a_label_ends_the_run(tmp_path):
    write_duels(tmp_path, *[("a", "b")] * 12)
    with ChatServer(lambda body, seen: "Both.") as server:
        with pytest.raises(UserError, match="nothing came of 10 questions to stub, so no more are"):
            judged(tmp_path, server, workers=1)
        assert len(server.requests) == 2 * PATIENCE


def test_nothing_but_failures_has_no_score(tmp_path):
    write_duels(tmp_path, ("a", "b"))
    with ChatServer(lambda body, seen: "[[A>B]] [[B>A]]") as server:
        result = judged(tmp_path, server)
    assert result["score"] is result["interval"] is None and result["counts"]["ok"] == 0
    assert result["weights"] == {"win": 0, "tie": 0, "lose": 0}
    assert (tmp_path / "out" / "battles.jsonl").read_bytes() == b""


def test_a_game_without_an_answer_is_asked_again(tmp_path):
    write_duels(tmp_path, ("a", "b"), ("c", "long text"))
    refuse = True

    def script(seen: Seen) -> Reply | None:
        asks = refuse and between(question(seen.body), "answer_a") == "c"
        return Reply(400, servers.error("no")) if asks else None

    with ChatServer(longer, script=script) as server:
        result = judged(tmp_path, server)
        assert result["counts"]["unanswered"] == 1 == result["counts"]["failed"]
        row = rows_in(tmp_path / "out" / "model_judgment.jsonl")[1]
        assert row["games"][1]["judgment"] == "" and row["games"][1]["score"] is None
        refuse, before = False, len(server.requests)
        result = judged(tmp_path, server)
        assert len(server.requests) == before + 1 and result["counts"]["unanswered"] == 0
    assert result["weights"] == {"win": 0, "tie": 2, "lose": 6}


def test_the_users_own_prompt_and_its_names_of_marks(tmp_path):
    """In the form of upstream's judge_config.yaml."""
    write_duels(tmp_path, ("our {answer_2}", "theirs"))
    path = tmp_path / "judge_config.yaml"
    user = "<q>\\n{question_1}\\n<A>\\n{answer_1}\\n<B>\\n{answer_2}"
    path.write_text(f'name: x\nsystem_prompt: "Be \\"fair\\"."\n\nprompt_template: ["{user}"]\n')
    with ChatServer(lambda body, seen: "[[A=B]]") as server:
        result = judged(tmp_path, server, judge_prompt=path, workers=1)
    asked = [[m["content"] for m in seen.body["messages"]] for seen in server.requests]
    text = "<q>\nWhat is thing 0?\n<A>\n{}\n<B>\n{}".format
    ours, theirs = "our {answer_2}", "theirs"
    assert asked == [['Be "fair".', text(theirs, ours)], ['Be "fair".', text(ours, theirs)]]
    own = work_of(tmp_path).settings()["prompt"]
    assert result["settings"]["prompt"] != own


def test_answers_are_counted_and_measured(tmp_path):
    pairs = ("[[A>B]]", "x"), (" ", "y"), ("c", "z"), ("d", "see [[B]]"), ("e", "w")
    write_duels(tmp_path, *pairs)
    texts = enumerate(ours for ours, _ in pairs)
    rows = [answer_row(f"q{n}", text, "janus", token_len=10 * n) for n, text in texts]
    rows[2]["choices"][0]["stop"] = ["length"]
    del rows[3]["choices"][0]["turns"][0]["token_len"]
    rows[4]["choices"][0]["turns"] = ["e"]
    rows[4]["conv_metadata"] = {"token_len": 60}
    write_rows(tmp_path / "janus.jsonl", rows)
    with ChatServer(lambda body, seen: "[[A=B]]") as server:
        result = judged(tmp_path, server)
    counts = {key: result["counts"][key] for key in ("missing", "marked", "cut", "empty")}
    assert counts == {"missing": 0, "marked": 2, "cut": 1, "empty": 1}
    assert result["length"] == pytest.approx((0 + 10 + 20 + 60) / 4)
    with ChatServer(lambda body, seen: "[[A=B]]") as server:
        limited = judged(tmp_path, server, limit=2, out=tmp_path / "two")
        assert len(server.requests) == 4
    assert limited["bench"]["items"] == 2 and limited["length"] == 5.0


def test_questions_that_one_of_them_did_not_answer_are_missing(tmp_path):
    write_duels(tmp_path, *[("a", "b")] * 4)
    write_rows(tmp_path / "janus.jsonl", rows_in(tmp_path / "janus.jsonl")[:3])
    write_rows(tmp_path / "baseline.jsonl", rows_in(tmp_path / "baseline.jsonl")[1:])
    with ChatServer(longer) as server:
        with pytest.raises(UserError, match=r"janus.jsonl: no response to 1 of 4 items: "):
            judged(tmp_path, server)
        result = judged(tmp_path, server, allow_missing=True)
        assert len({between(question(s.body), "question") for s in server.requests}) == 2
    assert result["counts"]["missing"] == 2 and result["bench"]["items"] == 4


def test_a_dry_run_counts_and_leaves_nothing(tmp_path):
    write_duels(tmp_path, *PAIRS)
    before, said = sorted(tmp_path.iterdir()), []
    assert evaluate(work_of(tmp_path, dry_run=True, out=None, judge=None), said.append) is None
    assert said[0].startswith("8 calls, about ") and said[0].endswith(" and 1,600 written")
    assert sorted(tmp_path.iterdir()) == before


# Faults and kills


def test_faults_change_nothing_in_the_result(tmp_path, rough):
    write_duels(tmp_path, *[(f"a{n}" * (n % 4), f"b{n}") for n in range(10)])
    with ChatServer(longer) as server:
        good = judged(tmp_path, server)
        files = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with ChatServer(longer, faults=0.3) as server:
        assert judged(tmp_path, server) == good and contents(tmp_path / "out") == files
        assert server.paid == 20 and sum(server.failures.values()) > 2


def hesitant(body: dict, seen: object) -> str:
    """A judge that needs a second message where the prompt's length is a multiple of 3."""
    user = body["messages"][1]["content"]
    slow = len(user) % 3 == 0 and len(body["messages"]) == 2
    return "Let me think." if slow else longer(body, seen)


def child(folder: Path, url: str, life: int) -> None:
    """An evaluation in a process of its own that does not wait long after a fault."""
    os.environ["OPENAI_API_KEY"] = f"life {life}"
    client_module.wait_before = lambda attempt, asked: 0.02
    evaluate(work_of(folder, url, workers=8), silent)


def test_killed_again_and_again_under_faults_it_ends_with_the_same_files(tmp_path, rough):
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        write_duels(tmp_path / name, *[("a" * (n % 9), "b" * (n % 5)) for n in range(80)])
    with ChatServer(hesitant) as server:
        judged(tmp_path / "calm", server)
        calm = bodies(server)
        assert len(calm) > 180 and set(calm.values()) == {1}
    lives = Lives(hesitant)
    with ChatServer(lives.answer, faults=0.2, script=lives) as server:
        codes = [lives.live(n, child, tmp_path / "killed", server.url) for n in range(LIVES)]
        assert codes[-1] == 0 and all(code != 0 for code in codes[:-1])
        assert bodies(server).keys() == calm.keys()
    assert contents(tmp_path / "killed" / "out") == contents(tmp_path / "calm" / "out")


def test_killed_between_any_two_changes_of_files(tmp_path):
    write_duels(tmp_path, ("aaaaaaa", "b"))  # of a length for which the judge hesitates
    out = tmp_path / "out"
    with ChatServer(hesitant) as server:
        judged(tmp_path, server, workers=1)
        assert len(server.requests) == 4
        whole = contents(out)
        shutil.rmtree(out)
        point = 0
        while not survives(lambda: judged(tmp_path, server, workers=1), out, point := point + 1):
            judged(tmp_path, server, workers=1)
            assert contents(out) == whole, point
            shutil.rmtree(out)
    assert point > 15


# Judgments that there are already


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with verdicts and failures, and no way to any server afterwards."""
    write_duels(tmp_path, *PAIRS, ("no verdict", "x"))

    def answer(body: dict, seen: object) -> str:
        first = between(body["messages"][1]["content"], "answer_a")
        rare = {"no verdict": "None.", "x": "[[A>B]] [[A=B]]", "f": "[[A>>A]]"}
        return rare.get(first) or longer(body, seen)

    with ChatServer(answer) as server:
        judged(tmp_path, server)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    return tmp_path / "out"


def test_a_folder_is_scored_again_without_a_server(folder, tmp_path):
    before = contents(folder)
    result = json.loads(before["result.json"])
    assert result["counts"]["failed"] == 3 and result["counts"]["ok"] == 7
    again = rescore(Options(rescore=(folder,), out=tmp_path / "copy"))
    assert again == result and contents(folder) == before
    assert (tmp_path / "copy" / "result.json").read_bytes() == before["result.json"]
    for name in OWN_FILES[3:]:
        (folder / name).unlink()
    spoilt = result | {"score": 1.0, "counts": result["counts"] | {"ok": 0, "odd": 9}}
    (folder / "result.json").write_text(json.dumps(spoilt))
    assert rescore(Options(rescore=(folder,)))["score"] == result["score"]
    assert contents(folder) == before
    other = rescore(Options(rescore=(folder,), name="n", against_name="o", rounds=7, seed=1))
    assert (other["model"], other["opponent"]) == ("n", "o")
    assert other["bootstrap"] == {"rounds": 7, "seed": 1} and other["score"] == result["score"]
    rows = read_recorded(folder / "battles.jsonl").battles
    assert scores(rows, 7, 1) == {"n": (result["score"], other["interval"])}
    assert rescore(Options(rescore=(folder,))) == other  # by the rounds and the seed of the folder


def test_the_written_files_give_the_same_score(folder, tmp_path):
    result = json.loads((folder / "result.json").read_text())
    bench = tmp_path / "question.jsonl"
    judgments = rescore(Options(rescore=(folder / "model_judgment.jsonl",), bench=bench))
    rows = rescore(Options(rescore=(folder / "battles.jsonl",), bench=bench, judge="stub"))
    for key in ("model", "bench", "judge", "score", "interval", "weights"):
        assert judgments[key] == rows[key] == result[key], key
    assert judgments["labels"] == result["labels"] and rows["labels"] == {}
    assert (judgments["opponent"], rows["opponent"]) == ("baseline", "baseline")
    same = ("ok", "failed", "several", "odd", "unanswered", "missing")
    assert {key: judgments["counts"][key] for key in same} == {
        key: result["counts"][key] for key in same
    }
    assert judgments["counts"]["twice"] == judgments["counts"]["differ"] == 0
    # The question whose games both failed has no battle.
    assert rows["counts"] == {"ok": 15, "failed": 0, "unanswered": 0, "missing": 1}


def game(text: str | None, score: object = ...) -> dict:
    """A game of upstream's files."""
    said = {"user_prompt": "?"} | ({} if text is None else {"judgment": text})
    return said if score is ... else said | {"score": score}


def judgment(key: object, *games: object, **more: object) -> dict:
    """A row of upstream's files."""
    return {"question_id": key, "model": "m", "judge": "gpt", "games": list(games)} | more


@pytest.mark.parametrize(
    ("rows", "score", "counts"),
    [  # what is not in `counts` is 0
        ([judgment("a", game("[[B>A]]", "B>A"), game("[[A=B]]", "A=B"))], 75, {"ok": 2}),
        ([judgment("a", game(None, "B>>A"), game(None, "A=B"))], 87.5, {"ok": 2}),  # without texts
        ([judgment("a", game({"answer": "x"}, "B>A"), game(None, None))], 100,
         {"ok": 1, "failed": 1}),
        # the text counts, not the score
        ([judgment("a", game("[[B>A]]", "A>B"), game("[[A>B]]"))], 100, {"ok": 2, "differ": 1}),
        ([judgment("a", game("[[B>A]] [[A>B]]", "A>B"), game("[[A>B]]", "A>B"))], 100,
         {"ok": 1, "failed": 1, "several": 1, "differ": 1}),
        ([judgment("a", game("$ERROR$", None), game("[[A>>A]]", "A>>A"))], None,
         {"failed": 2, "odd": 1}),
        ([judgment("a", game("[[B>A]]", "B>A"))], 100, {"ok": 1, "failed": 1}),  # one game only
        ([judgment("a"), judgment(7, None, game("[[A>B]]", "A>B"))], 100, {"ok": 1, "failed": 3}),
        # the first of two judgments
        ([judgment("a", *[game(None, "A=B")] * 2), judgment("a", *[game(None, "B>A")] * 2)], 50,
         {"ok": 2, "twice": 1}),
    ],
)  # fmt: skip
def test_upstreams_judgments(tmp_path, rows, score, counts):
    path = write_rows(tmp_path / "m.jsonl", rows)
    result = rescore(Options(rescore=(path,)))
    names = ("ok", "failed", "several", "odd", "unanswered", "missing", "twice", "differ")
    assert result["counts"] == dict.fromkeys(names, 0) | counts
    assert result["score"] == (None if score is None else pytest.approx(score))
    assert (result["model"], result["judge"], result["opponent"]) == ("m", "gpt", "gpt-4-0314")
    assert result["settings"] == {"recorded": True} and result["length"] is None
    assert result["bench"]["items"] == len({row["question_id"] for row in rows})


def test_upstreams_newer_judgments_name_the_baseline(tmp_path):
    row = {"uid": "q0", "model": "m", "judge": "gpt", "baseline": "o3", "games": [game("[[A=B]]")]}
    path = write_rows(tmp_path / "m.jsonl", [row])
    write_duels(tmp_path, ("a", "b"))
    result = rescore(Options(rescore=(path,), bench=tmp_path / "question.jsonl"))
    assert result["opponent"] == "o3" and result["score"] == 50


def battle(key: str, winner: object, model: str = "m", baseline: str = "base") -> dict:
    """A row of upstream's file of battles."""
    return {"question_id": key, "model_a": baseline, "model_b": model, "winner": winner}


def test_one_of_several_models_is_picked_by_name_and_all_are_resampled(tmp_path):
    rows = [battle("a", "model_b"), battle("a", "tie"), battle("b", "model_a", "n")] * 5
    path = write_rows(tmp_path / "battles.jsonl", rows)
    result = rescore(Options(rescore=(path,), name="m", out=tmp_path / "out"))
    assert result["score"] == 75 and result["weights"] == {"win": 5, "tie": 5, "lose": 0}
    assert result["bench"]["items"] == 1 and result["opponent"] == "base"
    assert result["interval"] == scores(read_recorded(path).battles, 1000, 42)["m"][1]
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    texts = [judgment("a", game("[[B>A]]")), judgment("a", game("[[A>B]]"), model="n")]
    path = write_rows(tmp_path / "both.jsonl", texts)
    assert [rescore(Options(rescore=(path,), name=name))["score"] for name in "mn"] == [100, 0]
    path = write_rows(tmp_path / "one.jsonl", rows[:2])
    assert rescore(Options(rescore=(path,), name="shown"))["model"] == "shown"  # the only one


def test_two_files_of_the_same_questions_have_the_same_bench(tmp_path):
    orders = [battle("a", "tie"), battle("b", "tie")], [battle("b", "model_a"), battle("a", "tie")]
    paths = [write_rows(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate(orders)]
    first, second = (rescore(Options(rescore=(path,)))["bench"]["hash"] for path in paths)
    path = write_rows(tmp_path / "c.jsonl", [battle("c", "tie")])
    third = rescore(Options(rescore=(path,)))
    assert first == second != third["bench"]["hash"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "file.jsonl has no judgment"),
        ([{"question_id": 81, "judge": ["gpt-4", "single-v1"], "score": 9, "turn": 1}],
         r"file.jsonl:1: keys \['question_id', 'model', 'games'\] or \['question_id', 'model_a', "
         r"'model_b', 'winner'\] are needed, found \['question_id', 'judge', 'score', 'turn'\]"),
        ([judgment("a"), battle("a", "tie")], "file.jsonl:2: keys .* are needed, found"),
        ([judgment(None)], "file.jsonl:1: 'question_id' must be text or an integer, found None"),
        ([judgment("a", model=3)], "file.jsonl:1: 'model' must be text, found int"),
        ([judgment("a", judge=["gpt-4"])], "file.jsonl:1: 'judge' must be text, found list"),
        ([judgment("a"), judgment("b", judge="x")],
         r"file.jsonl:2: judge and baseline are \['x', None\], before they were \['gpt', None\];"),
        ([judgment("a", baseline="b"), judgment("b")],
         r"are \['gpt', None\], before they were \['gpt', 'b'\]; one file has the judgments"),
        ([judgment("a", games={})], "file.jsonl:1: 'games' must be a list of 2, found dict"),
        ([judgment("a", None, None, None)], "'games' must be a list of 2, found 3 of them"),
        ([judgment("a", game(None, 3))],
         "file.jsonl:1: a game must be an object with a label or null as 'score', found"),
        ([judgment("a", "A>B")], "with a label or null as 'score', found 'A>B'"),
        ([judgment("a"), judgment("a", model="n")],
         "file.jsonl: 'model' has 2 names: 'm', 'n'; --name takes one"),
        ([battle("a", "tie"), battle("a", "tie", "n", "m")],
         "file.jsonl:2: 'model_a' must be the baseline, 'base', and 'model_b' another model, found "
         "'m' and 'n'"),
        ([battle("a", "tie", "base")], "'model_b' another model, found 'base' and 'base'"),
        ([battle("a", "tie (bothbad)")],
         r"file.jsonl:1: 'winner' must be one of \['model_a', 'tie', 'model_b'\], found 'tie \(b"),
        ([battle("a", ["tie"])], "file.jsonl:1: 'winner' must be text, found list"),
    ],
)  # fmt: skip
def test_mistakes_in_recorded_files(tmp_path, rows, said):
    path = write_rows(tmp_path / "file.jsonl", rows)
    with pytest.raises(UserError, match=said):
        rescore(Options(rescore=(path,)))


def test_mistakes_in_what_is_scored_again(folder, tmp_path):
    path = write_rows(tmp_path / "m.jsonl", [judgment("other", game("[[A>B]]"))])
    with pytest.raises(UserError, match=r"m.jsonl: judgments of 1 questions that .*question.jsonl"):
        rescore(Options(rescore=(path,), bench=tmp_path / "question.jsonl"))
    with pytest.raises(UserError, match=r"^--rescore: one folder or file at a time$"):
        rescore(Options(rescore=(folder, path)))
    with pytest.raises(UserError, match="not found: a JSONL file is needed"):
        rescore(Options(rescore=(tmp_path / "none.jsonl",)))
    with pytest.raises(UserError, match="holds the judgments of another result; give another"):
        rescore(Options(rescore=(path,), out=folder))
    with pytest.raises(UserError, match="--rescore needs a folder that `arena-hard` has filled"):
        rescore(Options(rescore=(tmp_path,)))
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"kind": "pairwise"}))
    with pytest.raises(UserError, match="is a result of 'pairwise', not of 'arena-hard'"):
        rescore(Options(rescore=(folder,)))


# Mistakes


def mt_bench(folder: Path) -> None:
    row = {"question_id": 81, "category": "writing", "turns": ["One?", "Two?"]}
    write_rows(folder / "question.jsonl", [row])


def two_turns(folder: Path) -> None:
    rows = rows_in(folder / "janus.jsonl")
    rows[1]["choices"][0]["turns"].append({"content": "b"})
    write_rows(folder / "janus.jsonl", rows)


def unknown(folder: Path) -> None:
    rows = rows_in(folder / "baseline.jsonl")
    write_rows(folder / "baseline.jsonl", [*rows, answer_row("81", "x", "baseline")])


def twice(folder: Path) -> None:
    rows = rows_in(folder / "janus.jsonl")
    write_rows(folder / "janus.jsonl", [*rows, rows[0]])


def apart(folder: Path) -> None:
    for name, part in (("janus", slice(1)), ("baseline", slice(1, None))):
        write_rows(folder / f"{name}.jsonl", rows_in(folder / f"{name}.jsonl")[part])


def alpaca_eval(folder: Path) -> None:
    write_rows(folder / "janus.jsonl", [{"instruction": "a", "output": "b", "generator": "c"}])


@pytest.mark.parametrize(
    ("spoil", "changes", "said"),
    [
        (mt_bench, {}, "question.jsonl:1: 'turns' of arena-hard must be a list of 1 times {'con"),
        (two_turns, {}, "janus.jsonl: the answer to 'q1' has 2 turns, needed is one"),
        (unknown, {}, "baseline.jsonl: responses to 1 items that the bench does not have: "
         "'81'; its ids are 'q0', 'q1'"),
        (twice, {}, "the question_id 'q0' is also that of "),
        (alpaca_eval, {}, "keys ['question_id', 'model_id', 'choices'] are needed, found"),
        (apart, {}, "janus.jsonl: no response to 2 of 3 items: 'q1', 'q2'; --allow-missing ev"),
        (apart, {"allow_missing": True}, "janus.jsonl and "),
        (apart, {"allow_missing": True, "limit": 1},
         "baseline.jsonl: no response to 1 of 1 items: 'q0'"),
        (None, {"against": "janus.jsonl"}, "both models have one name; give --name and"),
        (None, {"name": "baseline"}, "both models have one name; give --name and --against-name"),
        (None, {"against_name": "janus"}, "both models have one name; give --name and"),
        (None, {"bench": None}, "--bench is needed (see --help)"),
        (None, {"responses": None}, "--responses is needed (see --help)"),
        (None, {"against": None}, "--against is needed (see --help)"),
        (None, {"judge": None}, "--judge is needed (see --help)"),
        (None, {"out": None}, "--out is needed (see --help)"),
        (None, {"rounds": 0}, "--rounds is 0, must be 1 to 100000"),
        (None, {"seed": -1}, "--seed is -1, must be 0 or more"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(tmp_path, spoil, changes, said):
    write_duels(tmp_path, *PAIRS[:3])
    if spoil:
        spoil(tmp_path)
    if isinstance(changes.get("against"), str):
        changes = changes | {"against": tmp_path / changes["against"]}
    with pytest.raises(UserError) as error:
        evaluate(work_of(tmp_path, **changes), silent)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_defaults_are_upstreams():
    options, sampling = Options(), Sampling()
    assert (options.attempts, options.max_tokens) == (2, 4096)
    assert (sampling.temperature, sampling.top_p) == (0.0, 1.0)
