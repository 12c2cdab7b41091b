"""Evaluations by a judge behind a real server: what is paid for, what is kept, what is said."""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from janus_min import client as client_module
from janus_min import judging, pairwise, rubric
from janus_min.connection import Connection
from janus_min.errors import UserError
from janus_min.judging import Options, Work, file_model
from janus_min.judgments import JUDGMENTS, stored_head, stored_judgments, write_whole
from janus_min.pipeline import PATIENCE, Sampling
from janus_min.replies import ReplyError
from tests.kill import survives
from tests.runs import rows_in, write_rows
from tests.servers import KEY, PASSING, ChatServer, Reply, Seen, chat, error, question  # noqa: F401

NOBODY = "http://127.0.0.1:9/v1"  # a port that nothing listens on
ENDED = {"result.json", "questions.jsonl", "judgments.jsonl", "judgments.failed.jsonl"}


# A bench, a judge, and the ways to call them


def items_of(count: int, rubrics: int = 1, sources: tuple[str, ...] = ("first", "second")):
    """Items whose texts name them; the sources take turns."""
    grades = {str(n): f"It is worth {n}." for n in range(1, 6)}
    return [
        {
            "id": f"i{n}",
            "source": sources[n % len(sources)],
            "system": f"Be brief for user {n}.",
            "prompt": f"What is thing {n}?",
            "reference_answer": f"Thing {n} is known.",
            "rubrics": [
                {"criteria": f"Is thing {n} named in way {k}?", "score_descriptions": grades}
                for k in range(rubrics)
            ],
        }
        for n in range(count)
    ]


def write_case(folder: Path, count: int = 4, rubrics: int = 1, **responses: str) -> list[dict]:
    """bench.jsonl and janus_responses.json in a folder; `responses` are those of some items."""
    items = items_of(count, rubrics)
    write_rows(folder / "bench.jsonl", items)
    write_responses(folder / "janus_responses.json", {i["id"]: f"Reply {i['id']}." for i in items})
    if responses:
        whole = json.loads((folder / "janus_responses.json").read_text())
        whole |= {key: {"response": text} for key, text in responses.items()}
        (folder / "janus_responses.json").write_text(json.dumps(whole))
    return items


def write_responses(path: Path, responses: dict[str, str]) -> Path:
    """Responses by id, as the official scripts write them."""
    path.write_text(json.dumps({key: {"response": text} for key, text in responses.items()}))
    return path


def between(text: str, tag: str) -> str:
    """What our own prompt has in a pair of tags."""
    return re.search(rf"<{tag}>\n(.*?)\n</{tag}>", text, re.S)[1]


def grade_of(criteria: str, response: str) -> int:
    """A grade that looks random, and is a function of these two alone."""
    return 1 + hashlib.sha256(f"{criteria}|{response}".encode()).digest()[0] % 5


def grade(body: dict, seen: object) -> str:
    """The reply of a judge that goes by `grade_of`."""
    user = question(body)
    criteria = between(user, "rubric").splitlines()[0]
    return f"It is so. [RESULT] {grade_of(criteria, between(user, 'response'))}"


def work_of(folder: Path, url: str, kind: str = "rubric", **changes: object) -> Work:
    """A work over the files of `write_case`, into the folder "out"; `changes` are fields of the
    options, of the sampling or of the connection.
    """
    files = {"bench": folder / "bench.jsonl", "responses": folder / "janus_responses.json"}
    more = {"against": folder / "rival_responses.json"} if kind == "pairwise" else {}
    values = files | more | {"out": folder / "out", "judge": "stub", "runs": 1} | changes
    values = {"base_url": url, "workers": 4} | values
    types = (pairwise.Options if kind == "pairwise" else Options), Sampling, Connection
    names = [{field.name for field in fields(part)} for part in types]
    return Work(
        *(part(**{k: values[k] for k in own & values.keys()}) for part, own in zip(types, names)),
        kind,
    )


def silent(text: str) -> None:
    """Says nothing."""


def judged(folder: Path, server: ChatServer, **changes: object) -> dict:
    """The result of a rubric evaluation."""
    return rubric.evaluate(work_of(folder, server.url, **changes), silent)


def bodies(server: ChatServer) -> Counter[str]:
    """How often each body was sent."""
    return Counter(json.dumps(seen.body, sort_keys=True) for seen in server.requests)


def flags(url: str, *more: object) -> tuple:
    """The command line of `judged`, in its folder."""
    files = ("--bench", "bench.jsonl", "--responses", "janus_responses.json")
    return ("rubric", *files, "--judge", "stub", "--out", "out", "--base-url", url, *more)


# Faults and kills


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.test_judging"])  # which takes longer than what is tested


def child(folder: Path, url: str, life: int) -> None:
    """An evaluation in a process of its own that does not wait long after a fault. Its key says
    which one it is.
    """
    os.environ["OPENAI_API_KEY"] = f"life {life}"
    client_module.wait_before = lambda attempt, asked: 0.02
    rubric.evaluate(work_of(folder, url, runs=2, workers=8), silent)


def kept_bodies(folder: Path, asked: dict[str, str]) -> Counter[str]:
    """How many replies to each body the journal has, as far as whole lines go."""
    content = (folder / "out" / "calls.jsonl").read_bytes()
    keys = [json.loads(line)["key"] for line in content.split(b"\n")[:-1]]
    return Counter(asked[key] for key in keys if key)


LIVES = 5  # the last one is not ended


class Lives:
    """A script for a server: each life may send so many requests, and further ones hang."""

    def __init__(self, reply: Callable[[dict, object], str | dict] = grade):
        self.reply, chance = reply, random.Random(3)
        self.goals = [chance.randrange(25, 50) for _ in range(LIVES - 1)]
        self.sent, self.lock = Counter(), threading.Lock()
        self.paid = [Counter() for _ in range(LIVES)]  # bodies that were answered

    def __call__(self, seen: Seen) -> Reply | None:
        with self.lock:
            self.sent[life := self.of(seen)] += 1
            return Reply(how="hang") if self.at_its_end(life) else None

    def answer(self, body: dict, seen: Seen) -> str | dict:
        time.sleep(0.005)
        with self.lock:
            self.paid[self.of(seen)][json.dumps(body, sort_keys=True)] += 1
        return self.reply(body, seen)

    def live(self, life: int, child: Callable, *arguments: object) -> int:
        """A life in a process of its own, killed at its end. Returns the process's exit code."""
        process = FORKS.Process(target=child, args=(*arguments, life), daemon=True)
        process.start()
        end = time.monotonic() + 60
        while life < LIVES - 1 and not self.at_its_end(life) and time.monotonic() < end:
            time.sleep(0.002)
        if life < LIVES - 1:
            process.kill()
        process.join(60)
        return process.exitcode

    def at_its_end(self, life: int) -> bool:
        return life < len(self.goals) and self.sent[life] > self.goals[life]

    def of(self, seen: Seen) -> int:
        return int(seen.headers["authorization"].split()[-1])


def test_killed_again_and_again_under_faults_it_ends_with_the_same_result(tmp_path, rough):
    """A fifth of all requests fail. What was in the journal is not paid for again."""
    whole = tmp_path / "whole"
    whole.mkdir()
    for folder in (tmp_path, whole):
        write_case(folder, 30, 4)
    with ChatServer(grade) as server:
        assert judged(whole, server, runs=2)["counts"]["ok"] == len(server.requests) == 240
    keys = {  # a request is known by its body and its sample
        client_module.Request(seen.body, sample).key(): json.dumps(seen.body, sort_keys=True)
        for seen in server.requests
        for sample in (0, 20)
    }
    assert len(keys) == 240
    lives, kept = Lives(), [Counter()]
    with ChatServer(lives.answer, faults=0.2, script=lives) as server:
        for life in range(LIVES):
            code = lives.live(life, child, tmp_path, server.url)
            kept.append(kept_bodies(tmp_path, keys))
        assert code == 0
        assert sum(server.failures.values()) - server.failures["hang"] > 20
    sizes = [sum(bodies.values()) for bodies in kept]
    assert sizes == sorted(set(sizes)) and sizes[0] == 0 and sizes[-1] == 240
    for before, paid in zip(kept, lives.paid):
        assert all(before[body] + paid[body] <= 2 for body in paid)
    for name in (*sorted(ENDED), "evaluation-1.json", "evaluation-2.json"):
        expected, found = (path / "out" / name for path in (whole, tmp_path))
        assert expected.read_bytes() == found.read_bytes(), name


def test_killed_between_any_two_changes_of_files(tmp_path):
    """Every file is whole or not there, whatever was the last thing that was done."""
    write_case(tmp_path, 2)
    out, spare = tmp_path / "out", tmp_path / "spare"
    with ChatServer(grade) as server:
        judged(tmp_path, server, workers=1)
        whole = {path.name: path.read_bytes() for path in out.iterdir()}
        assert whole.keys() >= ENDED
        shutil.move(out, spare)
        point = 0
        while not survives(lambda: judged(tmp_path, server, workers=1), out, point := point + 1):
            judged(tmp_path, server, workers=1)
            for name in (*ENDED, "evaluation-1.json"):
                assert (out / name).read_bytes() == whole[name], (point, name)
            shutil.rmtree(out)
    assert point > 15


def test_faults_change_nothing_in_the_result(tmp_path, rough):
    write_case(tmp_path, 10, 2)
    with ChatServer(grade) as server:
        good = judged(tmp_path, server)
    shutil.rmtree(tmp_path / "out")
    with ChatServer(grade, faults=0.2) as server:
        assert judged(tmp_path, server) == good
        assert server.paid == 20 and sum(server.failures.values()) > 2


def test_prompts_that_were_sent_once_are_not_sent_for_what_is_new(tmp_path):
    """More runs, more items, more attempts: only what is new is asked."""
    write_case(tmp_path, 4, 2)
    with ChatServer(grade) as server:
        judged(tmp_path, server, limit=1)
        assert len(server.requests) == 2
        judged(tmp_path, server)
        assert len(server.requests) == 8 and set(bodies(server).values()) == {1}
        result = judged(tmp_path, server, runs=3)
        assert len(server.requests) == 24 and set(bodies(server).values()) == {3}
        assert result["counts"]["ok"] == 24 and len(result["runs"]) == 3
        assert judged(tmp_path, server, runs=3) == result and len(server.requests) == 24


# Replies that cannot be read


def unreadable(body: dict, seen: object) -> str:
    """A judge that does not know the form."""
    return f"I would say: {len(question(body)) % 3}."


@pytest.mark.parametrize("workers", [1, 4])
def test_a_judge_that_never_says_anything_readable_ends_the_run(evaluated, tmp_path, workers):
    write_case(tmp_path, 30)
    with ChatServer(unreadable) as server:
        said = evaluated.fails(*flags(server.url, "--runs", 1, "--workers", workers))
        few = PATIENCE * 6  # questions, and attempts at each
        assert few <= len(server.requests) <= few + 6 * (workers - 1)
        assert said.startswith(
            f"error: nothing came of {PATIENCE} questions to stub, so no more are asked: "
            "after 6 attempts: no [RESULT] in the reply; the last reply ends in 'I would say: "
        )
        assert not (tmp_path / "out" / "result.json").exists()
        assert list((tmp_path / "out").glob("evaluation*")) == []


def test_a_judge_that_is_always_cut_off_ends_the_run(evaluated, tmp_path):
    write_case(tmp_path, 30)
    cut = Reply(200, chat("The response is", finish="length"))
    with ChatServer(grade, script=lambda seen: cut) as server:
        said = evaluated.fails(*flags(server.url, "--runs", 1, "--workers", 1))
        assert len(server.requests) == PATIENCE * 6
    assert said.endswith(
        "asked: after 6 attempts: cut off at the largest number of tokens; all replies are kept, "
        "and with more --attempts the same command goes on\n"
    )


def test_one_item_alone_does_not_end_a_run(tmp_path):
    """Its rubrics and runs are many questions, but one response may well be beyond a judge."""
    write_case(tmp_path, 6, 4)

    def answer(body: dict, seen: object) -> str:
        return "no" if "thing 0?" in question(body) else "[RESULT] 4"

    with ChatServer(answer) as server:
        result = judged(tmp_path, server, runs=3, attempts=1, workers=1)
    assert result["counts"]["failed"] == 12 and result["counts"]["ok"] == 60


def test_a_stopped_run_is_not_scored(evaluated, tmp_path):
    """Its questions are those of the new responses, its judgments those of the old ones."""
    write_case(tmp_path, 2)
    with ChatServer(grade) as server:
        judged(tmp_path, server)
        before = (tmp_path / "out" / "evaluation-1.json").read_bytes()
        write_case(tmp_path, 2, i0="A new response.")
    refuse = Reply(401, error("no such key"))
    with ChatServer(grade, script=lambda seen: refuse) as server, pytest.raises(UserError):
        judged(tmp_path, server)
    said = evaluated.fails("rubric", "--rescore", tmp_path / "out")
    assert said == f"error: {tmp_path / 'out'} has no result; go on without --rescore\n"
    assert (tmp_path / "out" / "evaluation-1.json").read_bytes() == before


def test_a_run_killed_before_its_first_question_is_not_scored(tmp_path, monkeypatch):
    """The questions are new, the judgments are not."""
    write_case(tmp_path, 2)
    with ChatServer(grade) as server:
        judged(tmp_path, server)
        write_case(tmp_path, 2, i0="A new response.")
        monkeypatch.setattr(judging.Pipeline, "run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            judged(tmp_path, server)
    with pytest.raises(UserError, match="has no result; go on without --rescore"):
        rubric.rescore(Options(rescore=(tmp_path / "out",)))


def test_no_result_stands_in_a_folder_while_another_one_is_made(tmp_path, monkeypatch):
    """Its counts would be those of other responses. After a kill before it is gone, the judgments
    are known to be of other questions."""
    write_case(tmp_path, 2)
    with ChatServer(grade) as server:
        judged(tmp_path, server)
        kept = (tmp_path / "out" / "result.json").read_bytes()
        write_case(tmp_path, 2, i0="A new response.")
        monkeypatch.setattr(rubric, "score_folder", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            judged(tmp_path, server)
        assert not (tmp_path / "out" / "result.json").exists()
        monkeypatch.undo()
        monkeypatch.setattr(judging.Pipeline, "run", lambda *_: 1 / 0)
        write_case(tmp_path, 2)
        with pytest.raises(ZeroDivisionError):
            judged(tmp_path, server)
    (tmp_path / "out" / "result.json").write_bytes(kept)
    with pytest.raises(UserError, match="has no finished judgments"):
        rubric.rescore(Options(rescore=(tmp_path / "out",)))


def test_a_folder_with_a_result_of_another_kind_is_left_alone(tmp_path):
    write_case(tmp_path, 2)
    (tmp_path / "out").mkdir()
    text = '{"kind": "reward"}'
    (tmp_path / "out" / "result.json").write_text(text)
    with ChatServer(grade) as server:
        with pytest.raises(UserError, match="holds a result of 'reward', not of 'rubric'; give an"):
            judged(tmp_path, server)
        assert not server.requests
    assert (tmp_path / "out" / "result.json").read_text() == text


def test_a_server_may_name_its_model_in_any_way(tmp_path):
    write_case(tmp_path, 3)
    names = iter([{"name": "x"}, 7, "stub-9"])

    def script(seen: Seen) -> Reply:
        return Reply(200, chat("[RESULT] 4") | {"model": next(names)})

    with ChatServer(grade, script=script) as server:
        assert judged(tmp_path, server)["answered_by"] == ["stub-9"]


def test_sources_keep_the_order_of_the_bench(tmp_path):
    """Whatever failed in between, or had no answer."""
    write_case(tmp_path, 4)
    rows = [item | {"source": f"s{n}"} for n, item in enumerate(items_of(4))]
    write_rows(tmp_path / "bench.jsonl", rows)

    def answer(body: dict, seen: object) -> str:
        return "no" if "thing 1?" in question(body) else "[RESULT] 4"

    with ChatServer(answer) as server:
        result = judged(tmp_path, server, attempts=1)
    assert list(result["by_source"]) == ["s0", "s1", "s2", "s3"]


def test_one_readable_reply_is_enough_to_go_on(tmp_path):
    write_case(tmp_path, 30)

    def answer(body: dict, seen: object) -> str:
        return "[RESULT] 4" if "thing 0?" in question(body) else "no"

    with ChatServer(answer) as server:
        result = judged(tmp_path, server, attempts=1, workers=1)
    assert result["counts"]["ok"] == 1 and result["counts"]["failed"] == 29
    assert result["score"] == 4.0


def test_patience_begins_anew_with_each_run(tmp_path):
    """What failed before is no reason to end a run in which something succeeds."""
    write_case(tmp_path, 30)
    readable = False

    def answer(body: dict, seen: object) -> str:
        return "no" if not readable and "thing 2" not in question(body) else "[RESULT] 4"

    with ChatServer(answer) as server:
        for n in range(3):  # things 2 and 20 to 29 are well
            readable = n == 2
            result = judged(tmp_path, server, attempts=1 + n, workers=1)
            assert result["counts"]["ok"] == (30 if readable else 11)


def test_a_reply_that_cannot_be_read_is_asked_for_anew(tmp_path):
    """The same body once more, without the mistake: the journal knows which sample it was."""
    write_case(tmp_path, 3)
    times: Counter[str] = Counter()

    def answer(body: dict, seen: object) -> str:
        times[question(body)] += 1
        return ("none", "[RESULT] 7", "[RESULT] 3")[times[question(body)] - 1]

    with ChatServer(answer) as server:
        result = judged(tmp_path, server)
        assert len(server.requests) == 9 and set(bodies(server).values()) == {3}
        assert all(len(seen.body["messages"]) == 2 for seen in server.requests)
    assert result["score"] == 3.0 and result["counts"]["ok"] == 3
    assert [record["reply"] for record in rows_in(tmp_path / "out" / "judgments.jsonl")] == [
        "[RESULT] 3"
    ] * 3


def test_runs_and_attempts_do_not_share_replies(tmp_path):
    """The second attempt of one run is not the first of the next."""
    write_case(tmp_path, 1)
    replies = iter(["none", "[RESULT] 1", "[RESULT] 2", "none", "[RESULT] 5"])
    with ChatServer(lambda body, seen: next(replies)) as server:
        result = judged(tmp_path, server, runs=3, workers=1)
        assert len(server.requests) == 5
    assert result["runs"] == [1.0, 2.0, 5.0]


def test_a_reply_cut_short_is_never_read(tmp_path):
    write_case(tmp_path, 1)
    cut = Reply(200, chat("[RESULT] 5", finish="length"))
    with ChatServer(script=[cut], answer=lambda body, seen: "[RESULT] 2") as server:
        assert judged(tmp_path, server)["score"] == 2.0


# Servers that fail for some requests


def test_a_request_without_an_answer_is_asked_again_by_the_same_command(evaluated, tmp_path):
    write_case(tmp_path, 8)
    refuse = True

    def script(seen: object) -> Reply | None:
        asks = refuse and "thing 2?" in question(seen.body)
        return Reply(400, error("this is too long")) if asks else None

    with ChatServer(grade, script=script) as server:
        command = flags(server.url, "--runs", 1)
        said = evaluated.fails(*command)
        assert said == "error: without an answer: 1; the same command asks for them again\n"
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        # What has no answer is one of those that failed.
        counts = result["counts"]
        assert (counts["ok"], counts["failed"], counts["unanswered"]) == (7, 1, 1)
        [failed] = rows_in(tmp_path / "out" / "judgments.failed.jsonl")
        assert failed == {
            "id": "i2", "number": 0, "run": 0, "unanswered": True,
            "reason": "HTTP 400: this is too long",
        }  # fmt: skip
        evaluation = json.loads((tmp_path / "out" / "evaluation-1.json").read_text())
        assert evaluation["i2"]["score"] == evaluation["i2"]["feedback"] == [None]
        refuse, seen = False, len(server.requests)
        assert "0 of 8" in evaluated(*command)
        [again] = server.requests[seen:]
        assert "thing 2?" in question(again.body)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["counts"]["unanswered"] == 0 and result["counts"]["ok"] == 8
    assert rows_in(tmp_path / "out" / "judgments.failed.jsonl") == []


# Dry runs


@pytest.mark.parametrize(
    ("more", "calls"),
    [((), 24), (("--runs", 1), 8), (("--limit", 1, "--runs", 2), 4), (("--judge", "x"), 24)],
)
def test_a_dry_run_counts_and_leaves_nothing(evaluated, tmp_path, more, calls):
    """Without judge, folder, key and server."""
    items = write_case(tmp_path, 4, 2)
    before = sorted(tmp_path.iterdir())
    command = ("rubric", "--bench", "bench.jsonl", "--responses", "janus_responses.json")
    out = evaluated(*command, "--dry-run", *more, "--base-url", NOBODY)
    runs = calls // (2 * (1 if "--limit" in more else len(items)))
    chosen = items[:1] if "--limit" in more else items
    template = judging.own_template("rubric")
    characters = runs * sum(
        len(template.system)
        + len(template.user)
        - sum(map(len, ("{instruction}", "{reference_answer}", "{response}", "{rubric}")))
        + len(item["prompt"] + item["reference_answer"] + f"Reply {item['id']}.")
        + len("\n".join([r["criteria"], *(f"{n}: It is worth {n}." for n in range(1, 6))]))
        for item in chosen
        for r in item["rubrics"]
    )
    first, *rest = out.splitlines()
    assert first == (
        f"{calls} calls, about {characters // 4:,} tokens read and {calls * 200:,} written"
    )
    assert rest == [
        "Estimated with 4 characters per token and judgments of 200 tokens, without second "
        "attempts."
    ]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("prices", [(10, 30), (0, 30), (10, 0)])
def test_a_dry_run_says_the_price(evaluated, tmp_path, prices):
    write_case(tmp_path, 50, 2)
    command = ("rubric", "--bench", "bench.jsonl", "--responses", "janus_responses.json")
    given = ("--price-in", prices[0], "--price-out", prices[1])
    out = evaluated(*command, "--dry-run", *given)
    found = re.match(r"300 calls, about (\S+) tokens read and (\S+) written\n", out).groups()
    read, written = (int(number.replace(",", "")) for number in found)
    assert written == 300 * 200 and read > 300 * 100
    dollars = (read * prices[0] + written * prices[1]) / 1e6
    assert f"\nabout ${dollars:,.2f} at ${prices[0]} and ${prices[1]} per million\n" in out


def test_a_run_says_what_it_cost(tmp_path):
    write_case(tmp_path, 4)
    said: list[str] = []
    with ChatServer(grade) as server:
        rubric.evaluate(work_of(tmp_path, server.url), said.append)
        read, written = server.paid_tokens
        path = tmp_path / "out" / "judgments.jsonl"
        line = f"{path}: 4, 0 failed; tokens: {read:,} read, {written:,} written"
        assert said == [line]
        prices = {"price_in": 1000.0, "price_out": 2000.0}
        rubric.evaluate(work_of(tmp_path, server.url, **prices), said.append)
    assert said[1] == line + f", ${(read * 1000 + written * 2000) / 1e6:,.2f}"


# Prompts


OTHER_PROMPT = '''"""The prompts of somebody."""

GRADER_SYSTEM_PROMPT = "You are strict."

GRADER_USER_PROMPT_TEMPLATE = """TASK: {instruction}
REPLY: {response}
BEST: {reference_answer}
BY: {rubric}
Say [RESULT] and {{a number}}.
"""
'''


def test_the_judge_is_asked_by_the_users_own_prompt(tmp_path):
    [item] = write_case(tmp_path, 1)
    (tmp_path / "prompts.py").write_text(OTHER_PROMPT)
    descriptions = item["rubrics"][0]["score_descriptions"]
    with ChatServer(lambda body, seen: "[RESULT] 2") as server:
        judged(tmp_path, server, judge_prompt=tmp_path / "prompts.py")
        [seen] = server.requests
        system, user = seen.body["messages"]
        assert system == {"role": "system", "content": "You are strict."}
        found = user["content"].splitlines()
        asked = ["TASK: What is thing 0?", "REPLY: Reply i0.", "BEST: Thing 0 is known."]
        asked += ["BY: Is thing 0 named in way 0?"]
        assert found[:-1] == asked + [f"{n}: {descriptions[n]}" for n in "12345"]
        assert found[-1] == "Say [RESULT] and {a number}."
        other = OTHER_PROMPT.replace("strict", "kind")
        (tmp_path / "prompts.py").write_text(other)
        with pytest.raises(UserError, match="was built with other settings: prompt was"):
            judged(tmp_path, server, judge_prompt=tmp_path / "prompts.py")
        with pytest.raises(UserError, match="prompt was"):
            judged(tmp_path, server)
        assert len(server.requests) == 1


def test_what_is_sent_is_what_the_flags_say(tmp_path):
    write_case(tmp_path, 1)
    more = {"temperature": 0.3, "top_p": 0.5, "max_tokens": 77, "extra": '{"seed": 1}'}
    with ChatServer(grade) as server:
        result = judged(tmp_path, server, **more)
    [seen] = server.requests
    body = {"model": "stub", "temperature": 0.3, "top_p": 0.5, "max_tokens": 77, "seed": 1}
    assert {key: seen.body[key] for key in seen.body if key != "messages"} == body
    settings = {key: result["settings"][key] for key in result["settings"] if key != "prompt"}
    assert settings == {
        "temperature": 0.3, "top_p": 0.5, "extra": {"seed": 1}, "max_tokens": 77,
        "show_system": False,
    }  # fmt: skip
    assert result["answered_by"] == ["stub-1"]


def test_extra_parameters_are_compared_by_their_meaning(tmp_path):
    extras = ('{"a": 1, "b": [2]}', '{ "b":[2],"a":1 }', '{"a": 1, "b": [3]}')
    first, same, other = (work_of(tmp_path, NOBODY, extra=extra).settings() for extra in extras)
    assert first == same != other
    assert work_of(tmp_path, NOBODY, base_url="http://x/v1").settings() == (
        work_of(tmp_path, NOBODY).settings()
    )


# Secrets


@pytest.mark.parametrize("bad", [False, True])
def test_the_key_is_in_no_file_and_no_output(evaluated, tmp_path, monkeypatch, bad):
    write_case(tmp_path, 4)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def script(seen: object) -> Reply | None:
        assert seen.headers["authorization"] == f"Bearer {KEY}"
        refuse = bad and "thing 1?" in question(seen.body)
        return Reply(400, error(f"no, {KEY}")) if refuse else None

    with ChatServer(grade, script=script) as server:
        status, out, err = evaluated._run(flags(server.url, "--runs", 1))
    assert status == (2 if bad else 0) and KEY not in out + err
    if bad:
        [failed] = rows_in(tmp_path / "out" / "judgments.failed.jsonl")
        assert failed["reason"] == "HTTP 400: no, [key]"
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(paths) >= 7
    assert all(KEY.encode() not in path.read_bytes() for path in paths)


# Mistakes


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--runs", 0), "--runs is 0, must be 1 to 100"),
        (("--runs", 101), "--runs is 101, must be 1 to 100"),
        (("--attempts", 0), "--attempts is 0, must be 1 to 20"),
        (("--attempts", 21), "--attempts is 21, must be 1 to 20"),
        (("--max-tokens", 0), "--max-tokens is 0, must be at least 1"),
        (("--limit", 0), "--limit is 0, must be at least 1"),
        (("--extra", "[1]"), "--extra is [1], must be a JSON object"),
        (("--max-cost", 1), "--max-cost needs prices"),
        (("--judge-prompt", "none.py"), "none.py: No such file or directory"),
        (("--bench", "none.jsonl"), "none.jsonl not found"),
        (("--responses", "none.json"), "none.json not found"),
        (("--bad",), "unrecognized arguments: --bad"),
        (("--json-mode",), "unrecognized arguments: --json-mode"),
        (("--model", "x"), "unrecognized arguments: --model x"),
        (("--against", "x"), "unrecognized arguments: --against x"),
    ],
)
def test_mistakes_end_in_one_line(evaluated, tmp_path, more, said):
    write_case(tmp_path)
    assert said in evaluated.fails(*flags(NOBODY, *more))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["--bench", "--responses", "--judge", "--out"])
def test_flags_that_are_missing_are_named(evaluated, tmp_path, missing):
    write_case(tmp_path)
    command = list(flags(NOBODY))
    at = command.index(missing)
    said = evaluated.fails(*command[:at], *command[at + 2 :])
    assert said == f"error: {missing} is needed (see --help)\n"
    assert not (tmp_path / "out").exists()


def test_flags_are_named_as_they_are_typed():
    with pytest.raises(UserError, match=r"^--judge-prompt is needed"):
        Options().require_flags("judge_prompt")


def test_the_bounds_of_options_are_allowed():
    Options(runs=1, attempts=1, max_tokens=1, limit=1)
    Options(runs=100, attempts=20)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"judge": "other"}, "judge was 'stub', is 'other'"),
        ({"temperature": 0.5}, "temperature was 1.0, is 0.5"),
        ({"show_system": True}, "show_system was False, is True"),
        ({"max_tokens": 9}, "max_tokens was 1024, is 9"),
        ({"extra": '{"a": 1}'}, "extra was {}, is {'a': 1}"),
        ({"name": "other"}, "model was 'janus', is 'other'"),
    ],
)
def test_a_folder_of_other_settings_is_refused(tmp_path, change, said):
    write_case(tmp_path, 1)
    with ChatServer(grade) as server:
        judged(tmp_path, server)
        before = (tmp_path / "out" / "result.json").read_bytes()
        with pytest.raises(UserError) as caught:
            judged(tmp_path, server, **change)
        assert f"{tmp_path / 'out'} was built with other settings: {said}" in str(caught.value)
        assert "another --out" in str(caught.value) and len(server.requests) == 1
    assert (tmp_path / "out" / "result.json").read_bytes() == before


def test_only_what_has_changed_is_asked_again(tmp_path):
    write_case(tmp_path, 3)
    with ChatServer(grade) as server:
        judged(tmp_path, server)
        write_case(tmp_path, 3, i1="Another reply.")
        result = judged(tmp_path, server)
        assert len(server.requests) == 4
        assert "Another reply." in question(server.requests[3].body)
        (tmp_path / "new").mkdir()
        write_case(tmp_path / "new", 3, i1="Another reply.")
        assert judged(tmp_path / "new", server, name="janus") == result


def test_the_prompt_of_a_result_is_the_one_that_was_used(tmp_path):
    """Even if its file is edited while the judge is asked."""
    write_case(tmp_path, 1)
    marks = "{instruction} {response} {reference_answer} {rubric}"
    path = tmp_path / "prompt.txt"
    path.write_text(f"First. {marks}")

    def answer(body: dict, seen: object) -> str:
        path.write_text(f"Second. {marks}")
        return grade(body, seen)

    first = work_of(tmp_path, NOBODY, judge_prompt=path).settings()["prompt"]
    with ChatServer(answer) as server:
        assert judged(tmp_path, server, judge_prompt=path)["settings"]["prompt"] == first
    assert work_of(tmp_path, NOBODY, judge_prompt=path).settings()["prompt"] != first


def test_modes_that_exclude_each_other(evaluated, tmp_path):
    said = evaluated.fails("rubric", "--rescore", tmp_path, "--dry-run")
    assert said == "error: --rescore and --dry-run do not go together\n"
    said = evaluated.fails("pairwise", "--sheet", "x.html", "--from-sheet", "a.json")
    assert said == "error: --sheet and --from-sheet do not go together\n"


def test_a_result_does_not_replace_that_of_a_judge(evaluated, tmp_path):
    write_case(tmp_path, 1)
    with ChatServer(grade) as server:
        result = judged(tmp_path, server)
    out = tmp_path / "out"
    said = evaluated.fails("rubric", "--rescore", out / "evaluation-1.json", "--out", out)
    assert said == f"error: {out} holds the judgments of another result; give another --out\n"
    shutil.copytree(out, tmp_path / "other")
    command = ("rubric", "--rescore", out, "--name", "x", "--out")
    assert "give another --out" in evaluated.fails(*command, tmp_path / "other")
    assert json.loads((out / "result.json").read_text()) == result
    evaluated(*command, out / ".." / "out")  # another name for the same folder
    assert json.loads((out / "result.json").read_text()) == result | {"model": "x"}


def test_a_folder_of_another_kind_is_refused(tmp_path):
    write_case(tmp_path, 1)
    write_responses(tmp_path / "rival_responses.json", {"i0": "Rival."})
    with ChatServer(grade) as server:
        judged(tmp_path, server)
        with pytest.raises(UserError, match=r"holds a result of .rubric., not of .pairwise."):
            pairwise.evaluate(work_of(tmp_path, server.url, "pairwise"), silent)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "result.json not found: --rescore needs a folder that `rubric` has filled"),
        ('{"kind": "pairwise"}', "result.json is a result of 'pairwise', not of 'rubric'"),
        ("{}", "result.json is a result of None, not of 'rubric'"),
        (
            '{"kind": "rubric", "model": "m"}',
            "result.json: needed are the keys ['bench', 'counts', 'judge', 'kind', 'model', "
            "'settings'], found ['kind', 'model']",
        ),
        ("[]", "result.json is damaged: a JSON object is needed"),
        ("{", "result.json is damaged: "),
    ],
)
def test_a_folder_without_a_result_cannot_be_scored_again(tmp_path, content, said):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError) as caught:
        stored_head(tmp_path, "rubric")
    assert str(caught.value).startswith(f"{tmp_path}/") and said in str(caught.value)


def test_what_a_comparison_needs_to_be_scored_again(tmp_path):
    """Beside what grades need, the opponent's name."""
    head = dict.fromkeys(("model", "judge", "bench", "settings"), "x")
    result = head | {"counts": {"ok": 1, "failed": 0, "missing": 2}}
    (tmp_path / "result.json").write_text(json.dumps(result | {"kind": "pairwise"}))
    with pytest.raises(UserError, match=r"needed are the keys .*'opponent'"):
        stored_head(tmp_path, "pairwise")
    (tmp_path / "result.json").write_text(json.dumps(result | {"kind": "rubric"}))
    assert stored_head(tmp_path, "rubric") == ({"kind": "rubric"} | head, {"missing": 2})
    head, _ = stored_head(tmp_path, "rubric", model="new", judge=None)
    assert head["model"] == "new" and head["judge"] == "x"


# Small parts


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("janus_responses.json", "janus"),
        ("janus_evaluation.json", "janus"),
        ("janus-7b.v1_responses.jsonl", "janus-7b.v1"),
        ("responses.json", "responses"),
        ("my_responses_new.json", "my_responses_new"),
    ],
)
def test_a_file_names_its_model(name, model):
    assert file_model(Path("somewhere") / name) == model
    assert Options(responses=Path(name)).model_name() == model
    assert Options(responses=Path(name), name="Own").model_name() == "Own"


def test_judgments_are_read_once_more(tmp_path):
    """Whatever value a record has, its reply decides."""
    rows = [{"id": "a", "value": 3, "reply": "5"}, {"id": "b", "value": 3, "reply": "none"}]
    write_rows(tmp_path / f"{JUDGMENTS}.jsonl", rows)
    write_rows(tmp_path / "questions.jsonl", [{"id": key, "source": "s"} for key in "abcd"])
    write_whole(tmp_path / "build.json", {"stages": {"judgments": {}}})
    failed = [{"id": "c", "reply": "4", "reason": "r"}, {"id": "d", "reason": "no answer"}]
    write_rows(tmp_path / f"{JUDGMENTS}.failed.jsonl", failed)

    def read(reply: str) -> int:
        if not reply.isdigit():
            raise ReplyError("no number")
        return int(reply)

    found = list(stored_judgments(tmp_path, read))
    assert [(r["id"], r["value"]) for r in found] == [("a", 5), ("b", None), ("c", 4), ("d", None)]
    assert [r["reason"] for r in found[2:]] == ["r", "no answer"]
    assert {r["source"] for r in found} == {"s"}
    for state in ({"stages": {}}, {}):  # of a run that has begun, and of none
        write_whole(tmp_path / "build.json", state)
        with pytest.raises(UserError, match=r" has no finished judgments; go on without --resc"):
            list(stored_judgments(tmp_path, read))
    (tmp_path / "build.json").unlink()
    with pytest.raises(UserError, match=r" has no finished judgments; go on without --rescore$"):
        list(stored_judgments(tmp_path, read))


def test_results_are_readable_text_and_replace_the_old_one(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    write_whole(path, {"name": "Jänus \ud800"})
    assert path.read_bytes() == '{\n  "name": "Jänus ?"\n}\n'.encode()
    assert list(tmp_path.iterdir()) == [path]
