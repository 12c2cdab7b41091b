"""Scores over HTTP: what is sent, what each answer means, and that nothing is asked for twice."""

import json
import multiprocessing
import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from janus_min import client as client_module
from janus_min.errors import UserError
from janus_min.journal import Journal
from janus_min.limits import wait_before
from janus_min.perspective import PerspectiveConnection, fetch_scores, score_request
from tests.servers import ChatServer, Reply, Seen, error, too_many

SECRET = "AIza-SECRET-0123456789"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.test_perspective"])


def scored(value: object) -> Reply:
    """The answer to a text that has a score."""
    return Reply(200, {"attributeScores": {"TOXICITY": {"summaryScore": {"value": value}}}})


def refused(message: str, **detail) -> Reply:
    """A 400, as Google's services send it."""
    return Reply(400, error(message, status="INVALID_ARGUMENT", details=[detail]))


def by_length(body: dict, seen: object) -> Reply:
    """A score that the text decides."""
    return scored(len(text_of(body)) / 100)


def text_of(body: dict) -> str:
    return body["comment"]["text"]


def texts_of(server: ChatServer) -> list[str]:
    return [text_of(seen.body) for seen in server.requests]


def connection(server: object, **more) -> PerspectiveConnection:
    url = getattr(server, "url", server)
    settings = {"base_url": url, "requests_per_minute": None, "workers": 1}
    return PerspectiveConnection(**settings | more)


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Fetches scores into a journal, with a key, and short waits."""
    monkeypatch.setenv("PERSPECTIVE_API_KEY", SECRET)
    monkeypatch.setattr(
        client_module, "wait_before", lambda attempt, asked: 0.02 * wait_before(attempt, asked)
    )

    def fetch(texts: list[str], server: object, **more) -> dict:
        with Journal(tmp_path / "calls.jsonl") as journal:
            return fetch_scores(texts, connection(server, **more), journal)

    return fetch


# What is sent


def test_a_text_is_sent_in_the_services_form_with_the_key_in_its_header(fetch, capfd, tmp_path):
    with ChatServer(by_length) as server:
        assert fetch(["four"], server) == {"four": {"score": 0.04}}
        [seen] = server.requests
    assert seen.path == "/v1/v1alpha1/comments:analyze"
    assert seen.body == {
        "comment": {"text": "four"},
        "requestedAttributes": {"TOXICITY": {}},
        "languages": ["en"],
        "doNotStore": True,
    }
    assert seen.headers["x-goog-api-key"] == SECRET and "authorization" not in seen.headers
    assert SECRET not in seen.path and SECRET not in "".join(capfd.readouterr())
    [line] = map(json.loads, (tmp_path / "calls.jsonl").read_text().splitlines())
    assert line == {"key": score_request("four").key(), "tokens": [0, 0], "reply": {"score": 0.04}}


def test_defaults_are_the_services():
    own = PerspectiveConnection()
    assert own.base_url == "https://commentanalyzer.googleapis.com"
    assert (own.key_variable, own.requests_per_minute) == ("PERSPECTIVE_API_KEY", 60)


def test_equal_texts_and_texts_with_a_score_are_not_sent_again(fetch, monkeypatch):
    with ChatServer(by_length) as server:
        assert fetch(["a", "bb", "a", "a"], server, workers=4).keys() == {"a", "bb"}
        assert sorted(texts_of(server)) == ["a", "bb"]
        found = fetch(["bb", "a", "ccc"], server)
        assert found == {"a": {"score": 0.01}, "bb": {"score": 0.02}, "ccc": {"score": 0.03}}
        assert texts_of(server)[2:] == ["ccc"]
    monkeypatch.delenv("PERSPECTIVE_API_KEY")
    nobody = "https://example.invalid"
    assert fetch(["ccc"], nobody) == {"ccc": {"score": 0.03}}  # without server and key
    with pytest.raises(UserError, match="no key: set the environment variable PERSPECTIVE_API_KEY"):
        fetch(["new"], nobody)


# What an answer means


PASSING = [
    too_many("0"),
    too_many(),
    Reply(500, error("oops")),
    Reply(503, "<html>", (("Content-Type", "text/html"),)),
    Reply(how="reset"),
    Reply(200, {"languages": ["en"]}),
    Reply(200, "null"),
    Reply(200, "{"),
    *map(scored, (None, "0.5", True, 1.5, -0.1, [0.5])),
]


@pytest.mark.parametrize("reply", PASSING)
def test_what_may_pass_is_tried_again(fetch, reply):
    with ChatServer(by_length, script=[reply]) as server:
        assert fetch(["a"], server) == {"a": {"score": 0.01}}
        assert texts_of(server) == ["a", "a"]


def test_all_wait_as_long_as_the_server_asks(fetch, monkeypatch):
    monkeypatch.setattr(client_module, "wait_before", wait_before)
    with ChatServer(by_length, script=[too_many("0.3")]) as server:
        fetch(["a"], server)
        first, second = (seen.time for seen in server.requests)
    assert second - first >= 0.3


@pytest.mark.parametrize("value", [0, 0.25, 1])
def test_scores_are_from_0_to_1(fetch, value):
    with ChatServer(lambda body, seen: scored(value)) as server:
        assert fetch(["a"], server) == {"a": {"score": value}}


def test_texts_that_have_no_score_are_an_answer(fetch):
    """Even if they are the first ones and all there is; they are not asked for again."""
    reasons = {
        "a": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
        "b": "LANGUAGE_DETECTION_FAILED",
        "c": "COMMENT_TOO_LONG",
        "d": "COMMENT_EMPTY",
    }
    expected = {text: {"score": None, "reason": reason} for text, reason in reasons.items()}
    with ChatServer(lambda body, seen: refused("no", errorType=reasons[text_of(body)])) as server:
        assert fetch(list("abcd"), server) == expected
        assert fetch(list("abcd"), server) == expected and len(server.requests) == 4


def test_another_400_is_the_end_of_that_text_alone_and_is_asked_again_next_time(fetch):
    """Details of other forms, or none: the reason is the server's words, without the key."""
    bad = {"b": Reply(400, error(f"what is {SECRET}?")), "c": refused("odd", errorType=["x"])}
    for text, details in {"d": 7, "e": [3]}.items():
        bad[text] = Reply(400, error("odd", details=details))
    with ChatServer(lambda body, seen: bad.get(text_of(body)) or scored(0.5)) as server:
        found = fetch(list("abcdef"), server)
        assert found["a"] == found["f"] == {"score": 0.5}
        reason = "HTTP 400: what is [key]?"
        assert found["b"] == {"score": None, "reason": reason, "unanswered": True}
        assert all(found[text]["reason"] == "HTTP 400: odd" for text in "cde")
        assert len(server.requests) == 6
        bad.clear()
        assert {own["score"] for own in fetch(list("abcdef"), server).values()} == {0.5}
        assert texts_of(server)[6:] == list("bcde")


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (refused("key not valid", reason="API_KEY_INVALID"), "HTTP 400: key not valid"),
        (Reply(403, error("not enabled")), "HTTP 403: not enabled"),
        (Reply(401, error("who?")), "HTTP 401: who?"),
        (Reply(404, error(f"nothing for {SECRET}")), "HTTP 404: nothing for [key]"),
    ],
)
def test_what_no_text_can_mend_ends_the_run(fetch, reply, line):
    with ChatServer(by_length, script=[None, reply]) as server:
        with pytest.raises(UserError) as caught:
            fetch(list("abcd"), server)
        assert str(caught.value) == f"{server.url}: {line}" and len(server.requests) == 2
        fetch(list("abcd"), server)
        assert texts_of(server)[2:] == list("bcd")  # "a" is kept


def test_a_server_that_refuses_the_first_texts_in_its_own_words_ends_the_run(fetch):
    with ChatServer(lambda body, seen: Reply(400, error("no such API"))) as server:
        with pytest.raises(UserError, match="the first requests all failed: HTTP 400: no such API"):
            fetch(list("abcdefgh"), server)
        assert len(server.requests) == 3


# A run that is killed


LIVES, TEXTS = 4, [f"text number {n}" for n in range(60)]


def live(folder: Path, url: str, life: int) -> None:
    """A run in a process of its own, whose key says which one it is."""
    os.environ["PERSPECTIVE_API_KEY"] = f"life {life}"
    with Journal(folder / "calls.jsonl") as journal:
        fetch_scores(TEXTS, connection(url, workers=4), journal)


def test_killed_again_and_again_it_asks_for_nothing_that_it_has(fetch, tmp_path):
    """SIGKILL in the midst of requests: 15 of each life are answered, the last one goes on."""
    lock, asked = threading.Lock(), [[] for _ in range(LIVES)]

    def script(seen: Seen) -> Reply | None:
        life = int(seen.headers["x-goog-api-key"].split()[-1])
        with lock:
            asked[life].append(text_of(seen.body))
            return Reply(how="hang") if life < LIVES - 1 and len(asked[life]) > 15 else None

    kept: set[str] = set()
    names = {score_request(text).key(): text for text in TEXTS}
    with ChatServer(by_length, script=script) as server:
        for life in range(LIVES):
            process = FORKS.Process(target=live, args=(tmp_path, server.url, life), daemon=True)
            process.start()
            end = time.monotonic() + 60
            while life < LIVES - 1 and len(asked[life]) < 17 and time.monotonic() < end:
                time.sleep(0.002)
            if life < LIVES - 1:
                process.kill()
            process.join(60)
            assert not kept & {*asked[life]}, "asked for once more"
            lines = (tmp_path / "calls.jsonl").read_bytes().split(b"\n")[:-1]
            kept = {names[json.loads(line)["key"]] for line in lines}
            assert len(kept) == len(lines) > 10 * min(life, LIVES - 2)
        assert process.exitcode == 0
        requests = len(server.requests)
        found = fetch(TEXTS, server)
        assert len(server.requests) == requests and kept == {*TEXTS}
    assert found == {text: {"score": len(text) / 100} for text in TEXTS}
    assert Counter(text for own in asked for text in own).keys() == {*TEXTS}
