"""Answers by a model behind a real server: what is sent, what is paid for, what is kept."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from janus_min import batch
from janus_min import client as client_module
from janus_min.answers import Dialogue, category_temperature
from janus_min.connection import Connection, Request
from janus_min.errors import UserError
from janus_min.remote import (
    Missing,
    Remote,
    Reply,
    answer_dialogues,
    answer_prompts,
    calls_folder,
    estimate,
    failed_file,
    finish,
    make_work,
    stop_of,
)
from janus_min.replies import ReplyError
from tests import servers
from tests.kill import survives
from tests.programs import Program
from tests.runs import rows_in
from tests.servers import KEY, ChatServer, Seen, chat, error, question
from tests.test_batch import BatchServer, echo
from tests.test_judging import LIVES, Lives, bodies

NOBODY = "http://127.0.0.1:9/v1"  # a port that nothing listens on
PAPER = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 1024}


def prompts_of(count: int) -> list[tuple[str, str]]:
    """Pairs of system message and instruction; every third has no system message."""
    return [(f"Be brief, user {k}." if k % 3 else "", f"What is thing {k}?") for k in range(count)]


def work_of(url: str, **changes: object):
    """A work by the flags that are given, or the paper's."""
    types = Remote, Connection
    given = [{k: changes.pop(k) for k in part.__annotations__ if k in changes} for part in types]
    given[0] = {"model_name": "stub"} | given[0]
    given[1] = {"base_url": url, "workers": 4} | given[1]
    return make_work(*(part(**own) for part, own in zip(types, given)), **PAPER | changes)


def write(output: Path, prompts: list[tuple[str, str]], url: str, n: int = 1, **changes: object):
    """What a program does: the answers go into a file, what has none into another one."""
    found = answer_prompts(prompts, n, work_of(url, **changes), output)
    rows, failures = [], []
    for index, reply in enumerate(found):
        row = {"prompt": prompts[index // n][1], "line": index // n + 1, "sample": index % n}
        if isinstance(reply, Missing):
            failures.append((row, reply))
        else:
            rows.append(row | {"response": reply.text, "stop": reply.stop})
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    finish(output, failures, len(found))
    return found


@pytest.fixture
def fails(monkeypatch, capsys):
    """Calls a function as a program that must end in one line, which is returned."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return lambda main: Program(main, monkeypatch, capsys).fails()


# What is sent


def test_a_request_is_what_the_flags_say(tmp_path):
    plain = {"model": "stub", "temperature": 1.0, "top_p": 0.9, "max_tokens": 1024}
    user = {"role": "user", "content": "What is it?"}
    system = {"role": "system", "content": "Be brief."}
    with ChatServer() as server:
        for number, (prompt, changes, body) in enumerate(
            [
                (("", "What is it?"), {}, plain | {"messages": [user]}),
                (("Be brief.", "What is it?"), {}, plain | {"messages": [system, user]}),
                (
                    ("", "What is it?"),
                    {"temperature": 0.0, "top_p": 1.0, "max_tokens": 20, "seed": 0},
                    {"model": "stub", "temperature": 0.0, "top_p": 1.0, "max_tokens": 20}
                    | {"seed": 0, "messages": [user]},
                ),
                (
                    ("", "What is it?"),
                    {"repetition_penalty": 1.03},
                    plain | {"repetition_penalty": 1.03, "messages": [user]},
                ),
                (
                    ("", "What is it?"),
                    {"repetition_penalty": 1.03, "extra": '{"top_k": 5}'},
                    plain | {"repetition_penalty": 1.03, "top_k": 5, "messages": [user]},
                ),
                (
                    ("", "What is it?"),
                    {"extra": '{"max_tokens": null, "repetition_penalty": 1.1, "top_k": 5}'},
                    {"model": "stub", "temperature": 1.0, "top_p": 0.9, "top_k": 5}
                    | {"repetition_penalty": 1.1, "messages": [user]},
                ),
            ]
        ):
            write(tmp_path / f"{number}.jsonl", [prompt], server.url, **changes)
            assert server.requests[-1].body == body
            assert server.requests[-1].path == "/v1/chat/completions"
    assert len(server.requests) == 6


def test_samples_are_requests_of_their_own_in_the_order_of_the_prompts(tmp_path):
    def answer(body: dict, seen: Seen) -> str:
        return f"{body['seed']}: {question(body)}"

    with ChatServer(answer) as server:
        found = write(tmp_path / "out.jsonl", prompts_of(3), server.url, n=2, seed=5)
        assert [reply.text for reply in found] == [
            f"{5 + k}: What is thing {i}?" for i in range(3) for k in range(2)
        ]
        assert len(server.requests) == 6
    with ChatServer() as server:  # without a seed, the bodies are the same
        write(tmp_path / "plain.jsonl", prompts_of(3), server.url, n=2)
        assert [*bodies(server).values()] == [2, 2, 2]
        # More samples and more prompts ask for what is new alone.
        found = write(tmp_path / "plain.jsonl", prompts_of(4), server.url, n=3)
        assert len(server.requests) == 12 and len(found) == 12
        assert not any("seed" in seen.body for seen in server.requests)


def test_equal_prompts_are_paid_once(tmp_path):
    with ChatServer() as server:
        found = write(tmp_path / "out.jsonl", [("", "Why?")] * 5, server.url)
    assert len(server.requests) == 1 and [r.text for r in found] == ["answer to Why?"] * 5


def test_a_reply_says_its_model_and_its_tokens(tmp_path, capsys):
    with ChatServer(lambda body, seen: chat("So.", usage=(7, 3))) as server:
        [found] = write(tmp_path / "out.jsonl", [("", "Why?")], server.url, price_in=1e5)
    assert found == Reply("So.", "eos", "stub-1", [7, 3])
    folder = calls_folder(tmp_path / "out.jsonl")
    assert folder == tmp_path / "out.jsonl.calls"
    assert capsys.readouterr().out.endswith(
        f"\n{folder}: 1 answers by stub-1, 0 failed; tokens: 7 read, 3 written, $0.70\n"
    )


# Why answers end


@pytest.mark.parametrize(
    ("text", "finish_reason", "more", "stop"),
    [
        ("So.", "stop", {}, "eos"),
        ("So.", None, {}, "eos"),
        ("So and", "length", {}, "length"),
        ("", "length", {}, "length"),
        ("", "stop", {}, "eos"),
        (None, "stop", {}, "eos"),
        ("So and", "content_filter", {}, "filtered by the server"),
        ("", "content_filter", {}, "filtered by the server"),
        ("", "tool_calls", {}, "ended by 'tool_calls'"),
        (None, "stop", {"refusal": "I will not."}, "refused: I will not."),
        (None, "length", {"refusal": "I will"}, "refused: I will"),
    ],
)
def test_how_an_answer_ends(tmp_path, fails, text, finish_reason, more, stop):
    output = tmp_path / "out.jsonl"
    reply = {"text": text or "", "finish": finish_reason, **more}
    with ChatServer(lambda body, seen: chat(text, finish_reason, **more)) as server:
        if stop in ("eos", "length"):
            assert stop_of(reply) == stop
            [found] = write(output, [("", "Why?")], server.url)
            assert (found.text, found.stop) == (text or "", stop)
            assert rows_in(output)[0]["response"] == (text or "")
            return
        with pytest.raises(ReplyError) as raised:
            stop_of(reply)
        assert str(raised.value) == stop
        said = fails(lambda: write(output, [("", "Why?")], server.url, attempts=2))
        assert len(server.requests) == 2 and rows_in(output) == []
    [failed] = rows_in(failed_file(output))
    assert failed["reason"] == f"after 2 attempts: {stop}" and failed["line"] == 1
    assert said == (
        f"error: without an answer: 1 of 1, {failed_file(output)} says why; filtered or refused "
        "ones need more --attempts\n"
    )


def test_empty_answers_are_counted(tmp_path, capsys):
    with ChatServer(lambda body, seen: "" if "thing 1?" in question(body) else "So.") as server:
        write(tmp_path / "out.jsonl", prompts_of(3), server.url)
    assert ": 3 answers by stub-1, 1 empty, 0 failed; tokens: " in capsys.readouterr().out
    assert [row["response"] for row in rows_in(tmp_path / "out.jsonl")] == ["So.", "", "So."]


def test_filtered_answers_are_asked_for_again_by_more_attempts(tmp_path, fails):
    output = tmp_path / "out.jsonl"

    def answer(body: dict, seen: Seen) -> dict | str:
        number = sum(question(body) == question(other.body) for other in server.requests)
        bad = "thing 1?" in question(body) and number < 3
        return chat("I", "content_filter") if bad else "So."

    with ChatServer(answer) as server:
        for _ in range(2):  # the second time, all is paid for
            fails(lambda: write(output, prompts_of(3), server.url, attempts=2))
            assert len(server.requests) == 4
            assert [row["line"] for row in rows_in(output)] == [1, 3]
            assert [row["line"] for row in rows_in(failed_file(output))] == [2]
        write(output, prompts_of(3), server.url, attempts=3)
        assert len(server.requests) == 5
    assert [row["line"] for row in rows_in(output)] == [1, 2, 3]
    assert not failed_file(output).exists()


def test_samples_and_attempts_do_not_share_replies(tmp_path):
    """The body is the same for all of them."""
    filtered = [servers.Reply(200, chat("I", "content_filter"))]
    with ChatServer(lambda body, seen: f"{len(server.requests)}", script=filtered) as server:
        found = write(tmp_path / "out.jsonl", [("", "Why?")], server.url, n=3, workers=1)
    assert [reply.text for reply in found] == ["2", "3", "4"]


# Faults and kills


def test_faults_change_nothing_and_nothing_is_paid_twice(tmp_path, rough):
    with ChatServer() as server:
        good = write(tmp_path / "good.jsonl", prompts_of(40), server.url, n=2, seed=1)
    with ChatServer(faults=0.2) as server:
        found = write(tmp_path / "out.jsonl", prompts_of(40), server.url, n=2, seed=1)
    assert server.paid == 80 and sum(server.failures.values()) > 5
    assert found == good
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "good.jsonl").read_bytes()


def child(output: Path, url: str, life: int) -> None:
    """A run in a process of its own; its key says which one it is."""
    os.environ["OPENAI_API_KEY"] = f"life {life}"
    client_module.wait_before = lambda attempt, asked: 0.02
    write(output, prompts_of(60), url, n=4, seed=0, workers=8)


def answer_in_turn(body: dict, seen: Seen) -> str:
    """Says the same to the same body, whenever it is asked."""
    return f"So, {question(body)}"


def test_killed_again_and_again_under_faults_it_ends_with_the_same_file(tmp_path, rough):
    """A fifth of all requests fail. What was in the journal is not paid for again."""
    good, output = tmp_path / "good.jsonl", tmp_path / "out.jsonl"
    with ChatServer(answer_in_turn) as server:
        write(good, prompts_of(60), server.url, n=4, seed=0)
    asked = {
        Request(seen.body, 20 * seen.body["seed"]).key(): json.dumps(seen.body, sort_keys=True)
        for seen in server.requests
    }
    assert len(asked) == 240
    lives, kept = Lives(answer_in_turn), [Counter()]
    with ChatServer(lives.answer, faults=0.2, script=lives) as server:
        for life in range(LIVES):
            code = lives.live(life, child, output, server.url)
            content = (calls_folder(output) / "calls.jsonl").read_bytes()
            keys = [json.loads(line)["key"] for line in content.split(b"\n")[:-1]]
            kept.append(Counter(asked[key] for key in keys if key))
            assert output.exists() == (life == LIVES - 1)
        assert code == 0
        assert sum(server.failures.values()) - server.failures["hang"] > 20
    sizes = [sum(each.values()) for each in kept]
    assert sizes == sorted(set(sizes)) and sizes[-1] == 240
    for before, paid in zip(kept, lives.paid):
        assert all(before[body] + paid[body] <= 1 for body in paid)
    assert output.read_bytes() == good.read_bytes()
    with ChatServer() as server:  # and once more nothing is asked
        write(output, prompts_of(60), server.url, n=4, seed=0)
        assert not server.requests and output.read_bytes() == good.read_bytes()


def test_killed_between_any_two_changes_of_files(tmp_path, rough):
    """One prompt is refused, so that there is a file of failures, too."""
    folder = tmp_path / "work"
    output = folder / "out.jsonl"

    def refuse(seen: Seen) -> servers.Reply | None:
        long = "thing 1?" in question(seen.body)
        return servers.Reply(400, error("too long")) if long else None

    with ChatServer(script=refuse) as server:

        def work() -> None:
            with pytest.raises(UserError, match="without an answer: 1 of 2"):
                write(output, prompts_of(2), server.url, workers=1)

        folder.mkdir()
        work()
        names = output, failed_file(output)
        whole = [path.read_bytes() for path in names]
        point = 0
        while True:
            shutil.rmtree(folder)
            folder.mkdir()
            if survives(work, folder, point := point + 1):
                break
            work()
            assert [path.read_bytes() for path in names] == whole, point
    assert point > 10


# Requests that a server does not answer


TOO_LONG = "This model's maximum context length is 8 tokens, however you requested 9"


def test_a_prompt_that_is_too_long_fails_alone_and_is_asked_again(tmp_path, fails):
    output, refuse = tmp_path / "out.jsonl", True

    def script(seen: Seen) -> servers.Reply | None:
        long = refuse and "thing 2?" in question(seen.body)
        body = error(TOO_LONG, code="context_length_exceeded", type="invalid_request_error")
        return servers.Reply(400, body) if long else None

    with ChatServer(script=script) as server:
        said = fails(lambda: write(output, prompts_of(8), server.url, n=2, workers=1))
        assert said == (
            f"error: without an answer: 2 of 16, {failed_file(output)} says why; the same command "
            "asks for 2 of them again\n"
        )
        place = {"prompt": "What is thing 2?", "line": 3}
        assert rows_in(failed_file(output)) == [
            place | {"sample": sample, "reason": f"HTTP 400: {TOO_LONG}"} for sample in range(2)
        ]
        rows = rows_in(output)
        assert len(rows) == 14 and 3 not in {row["line"] for row in rows}
        refuse, before = False, len(server.requests)
        write(output, prompts_of(8), server.url, n=2)
        assert [question(seen.body) for seen in server.requests[before:]] == [place["prompt"]] * 2
    assert [row["line"] for row in rows_in(output)] == [1 + k // 2 for k in range(16)]
    assert not failed_file(output).exists()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, error(f"Incorrect API key provided: {KEY}"), "HTTP 401: Incorrect API key"),
        (404, error("The model `stub` does not exist", code="model_not_found"), "`stub` does not"),
        (429, error("You have no quota", code="insufficient_quota"), "HTTP 429: You have no quota"),
    ],
)
def test_what_no_request_can_mend_ends_the_run(tmp_path, monkeypatch, fails, status, body, said):
    """In one line, without the key, which is in no file either."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    script = [None] * 3 + [servers.Reply(status, body)] * 99
    output = tmp_path / "out.jsonl"
    with ChatServer(script=script) as server:
        found = fails(lambda: write(output, prompts_of(40), server.url, workers=1))
        assert len(server.requests) == 4
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert said in found and KEY not in found and not output.exists()
    with ChatServer() as server:  # the three that were answered are not asked again
        write(output, prompts_of(40), server.url)
        assert len(server.requests) == 37
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(paths) >= 5 and all(KEY.encode() not in path.read_bytes() for path in paths)


def test_a_run_does_not_cost_more_than_it_may(tmp_path, fails):
    output, prices = tmp_path / "out.jsonl", {"price_in": 10.0, "price_out": 1000.0}
    with ChatServer(lambda body, seen: "So. " * 500) as server:
        said = fails(
            lambda: write(
                output, prompts_of(30), server.url, max_cost=5.0, max_tokens=600, **prices
            )
        )
        spent = server.paid_tokens[0] * 10e-6 + server.paid_tokens[1] * 1000e-6
        assert 4.0 < spent <= 5.0 and said.startswith("error: --max-cost 5: $")
        paid = server.paid
        write(output, prompts_of(30), server.url, max_cost=50.0, max_tokens=600, **prices)
        assert len(server.requests) == 30 > paid


def test_answers_through_the_batch_interface_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "POLL_SECONDS", 0.0)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer(lambda body, seen: echo(body["messages"])) as server:
        direct = write(tmp_path / "direct.jsonl", prompts_of(4), server.url, n=2)
    with BatchServer(echo) as server:
        found = write(tmp_path / "out.jsonl", prompts_of(4), server.url, n=2, batch=True)
        assert server.chats == 0 and len(server.batches) == 1
    assert [reply[:2] for reply in found] == [reply[:2] for reply in direct]


# Other mistakes


def test_a_model_must_be_named(fails):
    assert fails(lambda: work_of(NOBODY, model_name=None)) == (
        "error: --model-name is needed: the name of a model, as the server knows it\n"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attempts": 0}, "--attempts is 0, must be 1 to 20"),
        ({"attempts": 21}, "--attempts is 21, must be 1 to 20"),
        ({"extra": "[1]"}, "--extra is [1], must be a JSON object"),
        ({"extra": "[1]", "repetition_penalty": 1.1}, "--extra is [1], must be a JSON object"),
        ({"extra": '{"n": 2}'}, "must be without model, messages, n and stream"),
        ({"temperature": 3.0}, "--temperature is 3.0, must be between 0 and 2"),
    ],
)
def test_flags_are_checked(change, said):
    with pytest.raises(UserError) as raised:
        work_of(NOBODY, **change)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_name": "other"}, "model was 'stub', is 'other'"),
        ({"temperature": 0.5}, "temperature was 1.0, is 0.5"),
        ({"max_tokens": 9}, "max_tokens was 1024, is 9"),
        ({"seed": 3}, "seed was None, is 3"),
        ({"repetition_penalty": 1.1}, "extra was {}, is {'repetition_penalty': 1.1}"),
    ],
)
def test_answers_under_other_settings_need_another_file(tmp_path, fails, change, said):
    output = tmp_path / "out.jsonl"
    with ChatServer() as server:
        write(output, prompts_of(2), server.url)
        found = fails(lambda: write(output, prompts_of(2), server.url, **change))
        assert found == (
            f"error: {calls_folder(output)} was built with other settings: {said}; give the same "
            "ones, or another --output\n"
        )
        assert len(server.requests) == 2


# Dry runs


def test_a_dry_run_counts_without_a_server(capsys):
    prompts = [("s" * 40, ["u" * 60]), ("", ["u" * 20])]
    estimate(prompts, 3, work_of(NOBODY, model_name=None, dry_run=True))
    assert capsys.readouterr().out == (
        "6 calls, about 90 tokens read and 2,400 written\n"
        "Estimated with 4 characters per token, answers of 400 tokens.\n"
    )
    # Of two turns, the second one is asked with the first one and its answer.
    work = work_of(NOBODY, max_tokens=100, price_in=1e4, price_out=1e5)
    estimate([(None, ["u" * 40, "v" * 80])], 1, work)
    assert capsys.readouterr().out == (
        "2 calls, about 140 tokens read and 200 written\n"
        "about $21.40 at $10000 and $100000 per million\n"
        "Estimated with 4 characters per token, answers of 100 tokens.\n"
    )


# Conversations of several turns


def dialogues_of(count: int, n: int = 1) -> list[Dialogue]:
    """Questions of two turns; writing and math take turns."""
    return [
        Dialogue(
            {"source": ("writing", "math")[k % 2], "turns": [f"First {k}?", f"Then {k}?"]}, sample
        )
        for k in range(count)
        for sample in range(n)
    ]


def by_category(dialogue: Dialogue) -> float:
    return category_temperature(dialogue.question["source"])


def test_a_second_turn_is_asked_with_the_first_answer(tmp_path, capsys):
    dialogues = dialogues_of(2)
    output = tmp_path / "out.jsonl"
    with ChatServer(lambda body, seen: chat(f"To {question(body)}", usage=(9, 4))) as server:
        work = work_of(server.url, workers=1)
        assert answer_dialogues(dialogues, "Be kind.", by_category, work, output) == {}
        plain = {"model": "stub", "top_p": 0.9, "max_tokens": 1024}
        expected = []
        for turn in range(2):
            for k, temperature in enumerate((0.7, 0.0)):
                messages = [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": f"First {k}?"},
                    {"role": "assistant", "content": f"To First {k}?"},
                    {"role": "user", "content": f"Then {k}?"},
                ]
                messages = messages[: 2 + 2 * turn]
                expected.append(plain | {"temperature": temperature, "messages": messages})
        assert [seen.body for seen in server.requests] == expected
        for k, dialogue in enumerate(dialogues):
            assert [answer.text for answer in dialogue.answers] == [
                f"To First {k}?", f"To Then {k}?",
            ]  # fmt: skip
            assert [(answer.stop, answer.tokens) for answer in dialogue.answers] == [("eos", 4)] * 2
        again = dialogues_of(2)
        assert answer_dialogues(again, "Be kind.", by_category, work, output) == {}
        assert again == dialogues and len(server.requests) == 4
    assert ": 4 answers by stub-1, 0 failed; tokens: 36 read, 16 written\n" in (
        capsys.readouterr().out
    )


def test_without_a_system_message_and_at_one_temperature(tmp_path):
    dialogues = dialogues_of(1, n=2)
    with ChatServer() as server:
        work = work_of(server.url, temperature=0.3, seed=4)
        answer_dialogues(dialogues, None, None, work, tmp_path / "out.jsonl")
    assert len(server.requests) == 4
    for seen in server.requests:
        assert seen.body["temperature"] == 0.3
        assert "system" not in {message["role"] for message in seen.body["messages"]}
    assert Counter(seen.body["seed"] for seen in server.requests) == {4: 2, 5: 2}


@pytest.mark.parametrize("turn", [0, 1])
def test_a_dialogue_without_an_answer_is_not_gone_on_with(tmp_path, fails, turn):
    dialogues, output, refuse = dialogues_of(4), tmp_path / "out.jsonl", True
    lost = ("First 2?", "Then 2?")[turn]

    def script(seen: Seen) -> servers.Reply | None:
        long = refuse and question(seen.body) == lost
        return servers.Reply(400, error(TOO_LONG)) if long else None

    with ChatServer(script=script) as server:
        work = work_of(server.url, workers=1)
        missing = answer_dialogues(dialogues, None, None, work, output)
        assert missing == {2: Missing(f"HTTP 400: {TOO_LONG}", True)}
        assert [len(dialogue.answers) for dialogue in dialogues] == [2, 2, turn, 2]
        refuse, before = False, len(server.requests)
        dialogues = dialogues_of(4)
        assert answer_dialogues(dialogues, None, None, work, output) == {}
        asked = [question(seen.body) for seen in server.requests[before:]]
        assert asked == ["First 2?", "Then 2?"][turn:]
    assert [len(dialogue.answers) for dialogue in dialogues] == [2] * 4
