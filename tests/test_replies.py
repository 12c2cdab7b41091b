"""What models and servers send: JSON in all its disguises, replies of no use, statuses."""

import json

import pytest

from janus_min.endpoint import Answer
from janus_min.replies import ReplyError, error_text, json_value, reply_of, unusable, usage_of
from janus_min.verdicts import Verdict, judge_chat
from tests.servers import chat, error

ONE = {"name": "비", "score": 5}
TEXT = json.dumps(ONE, ensure_ascii=False)

GOOD = [
    (TEXT, ONE),
    (json.dumps(ONE, indent=2), ONE),
    (f"```json\n{TEXT}\n```", ONE),
    (f"```\n{TEXT}\n```", ONE),
    (f"```JSON\n{TEXT}\n```", ONE),
    (f"``` json \n\n{TEXT}\n\n  ```  \n", ONE),
    (f"```json\r\n{TEXT}\r\n```", ONE),
    (f"```json\n{TEXT}```", ONE),
    (f"```json {TEXT} ```", ONE),
    (f"```json\n{TEXT}", ONE),  # the fence is never closed
    (f"Sure! Here it is:\n{TEXT}", ONE),
    (f"Sure!\n\n```json\n{TEXT}\n```\n\nDoes that help?", ONE),
    (f"{TEXT}\n\nI hope that helps.", ONE),
    (f"\ufeff{TEXT}", ONE),
    (f"\n\t {TEXT} \n", ONE),
    ('{"code": "```py\\nx = {1}\\n```"}', {"code": "```py\nx = {1}\n```"}),
    ('```json\n{"code": "```py\\nx\\n```"}\n```', {"code": "```py\nx\n```"}),
    ('```json\n{"code": "a\\n```\\nb"}\n```', {"code": "a\n```\nb"}),
    ('{"text": "a } and { b", "more": {"x": "}{"}}', {"text": "a } and { b", "more": {"x": "}{"}}),
    ('Well: {"text": "say \\"{}\\" twice"} so', {"text": 'say "{}" twice'}),
    ('{"a": {"b": {"c": [1, {"d": 2}]}}} {not JSON}', {"a": {"b": {"c": [1, {"d": 2}]}}}),
    ('{"\\ud55c": "\\ud83c\\udf27"}', {"한": "🌧"}),
    ("{}", {}),
    ("[1, 2]", [1, 2]),
    ("```json\n[]\n```", []),
    ('{"a": 1, "b": {"a": 2}}', {"a": 1, "b": {"a": 2}}),
]


@pytest.mark.parametrize(("text", "value"), GOOD)
def test_json_in_text(text, value):
    """Fences, prose, strings that look like either."""
    assert json_value(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON"),
        ("   \n", "no JSON"),
        ("I cannot do that.", "no JSON"),
        ("5", "no JSON object or list"),
        ('"just a string"', "no JSON object or list"),
        ("null", "no JSON object or list"),
        ("```json\n5\n```", "no JSON object or list"),
        (TEXT[:-1], "no whole JSON"),
        (TEXT[:-4], "no whole JSON"),
        (f"```json\n{TEXT[:12]}", "no whole JSON"),
        ('{"a": "cut within a str', "no whole JSON"),
        ("[1, 2", "no JSON"),
        (f"{TEXT}\n{TEXT}", "more than one JSON object"),
        (f"{TEXT} or rather {{}}", "more than one JSON object"),
        (f"First:\n```\n{TEXT}\n```\nsecond:\n```\n{TEXT}\n```", "more than one JSON object"),
        (f"```\n{TEXT}\n```\nor\n```\n{TEXT}\n```", "more than one JSON object"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('x {"b": {"a": 1, "c": 0, "a": 1}}', "the key 'a' is there twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('so {"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": 1,}', "no whole JSON"),
        ("{'a': 1}", "no whole JSON"),
        ('{"a": 1 // one\n}', "no whole JSON"),
        ('{"a": "line\nbreak"}', "no whole JSON"),
        ("{a: 1}", "no whole JSON"),
        ("Use {name} here.", "no whole JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"a": ' * 100_000, "nested too deep"),
        ('so {"a": {}} ' + '{"a": ' * 100_000, "nested too deep"),
        ('{"a": ' + "1" * 5000 + "}", "a number of 5000 digits"),
        ('so {"a": ' + "1" * 5000 + "}", "a number of 5000 digits"),
    ],
)
def test_text_without_json_that_could_be_meant(text, reason):
    """Nothing is guessed, and whatever a model repeats without end is an ordinary failure."""
    with pytest.raises(ReplyError, match=reason):
        json_value(text)


def test_what_is_kept_of_a_reply():
    assert reply_of(chat("Water.")) == {
        "text": "Water.", "finish": "stop", "model": "stub-1", "system_fingerprint": "fp_0"
    }  # fmt: skip
    parts = [{"type": "text", "text": "Wa"}, {"type": "image"}, "x", {"type": "text", "text": "t"}]
    assert reply_of(chat(parts))["text"] == "Wat"
    plain = chat("Water.")
    del plain["system_fingerprint"], plain["model"], plain["usage"]
    assert reply_of(plain) == {"text": "Water.", "finish": "stop"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (chat(""), "empty"),
        (chat(" \n "), "empty"),
        (chat(None), "empty"),
        (chat([]), "empty"),
        (chat(None, "tool_calls", tool_calls=[{"id": "1"}]), "ended by 'tool_calls'"),
        (chat("half a text", "error"), "ended by 'error'"),
        (chat("half a text", "abort"), "ended by 'abort'"),
        (chat("<think>but what does it"), "empty"),
        (chat(None, refusal="I cannot."), "refused: I cannot."),
        (chat("Well,", refusal="I cannot."), "refused: I cannot."),
        (chat("Well, it is", "length"), "cut off at the largest number of tokens"),
        (chat("Well", "content_filter"), "filtered by the server"),
        (chat("", "content_filter"), "filtered by the server"),
    ],
)
def test_replies_of_no_use(body, reason):
    """Each is a failure with its reason, not data."""
    assert unusable(reply_of(body)) == reason


def test_replies_of_use():
    for body in (chat("Water."), chat("Water.", finish=None), chat("Water.", refusal=None)):
        assert unusable(reply_of(body)) is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "a JSON list"),
        ("text", "a JSON str"),
        (None, "a JSON NoneType"),
        ({}, r"'choices' needed, found \[\]"),
        ({"choices": []}, r"'choices' needed, found \['choices'\]"),
        ({"choices": None, "x": 1}, "'choices' needed"),
        ({"choices": ["x"]}, "'choices' needed"),
        ({"error": {"message": "overloaded"}}, "found an error: overloaded"),
        ({"choices": [{"text": "x"}]}, "its choice has no 'message'"),
        ({"choices": [{"message": "x"}]}, "its choice has no 'message'"),
        (chat(5), "the text of the answer is a JSON int"),
    ],
)
def test_bodies_that_are_no_chat_completion(body, reason):
    with pytest.raises(ReplyError, match=reason):
        reply_of(body)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, (3, 4)),
        ({"prompt_tokens": 3}, (3, 0)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None),
        ({"prompt_tokens": "3", "completion_tokens": -4}, None),
        ({"prompt_tokens": True, "completion_tokens": 4}, (0, 4)),
        ({"prompt_tokens": 10**400, "completion_tokens": 4}, (0, 4)),
        (None, None),
        ([], None),
    ],
)
def test_tokens_as_servers_count_them(usage, tokens):
    found = usage_of({"usage": usage})
    assert found == tokens and (found is None or json.dumps(found) == json.dumps(list(tokens)))
    assert usage_of([]) is None and usage_of({}) is None


def test_messages_of_errors():
    assert error_text(error("no")) == error_text({"error": "no"}) == "no"
    assert error_text({"detail": "no"}) == error_text({"message": "no"}) == "no"
    assert error_text("no") == "no" and error_text({"error": {"x": 1}}) == "{'x': 1}"


JSON = {"Content-Type": "application/json"}


def judged(status, body, headers=JSON):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return judge_chat(Answer(status, headers, raw))


@pytest.mark.parametrize(
    ("status", "again", "fatal"),
    [(status, True, False) for status in (408, 409, 425, 429, 500, 501, 502, 503, 504, 529)]
    + [(status, False, False) for status in (400, 405, 413, 415, 422, 451, 204)]
    + [(status, False, True) for status in (401, 402, 404, 301, 302, 303, 307, 308)],
)
def test_statuses(status, again, fatal):
    """What is tried again, what ends a request, what ends the run."""
    verdict, used = judged(status, error("the message"))
    assert used == (0, 0) and (verdict.again, verdict.fatal) == (again, fatal)
    assert verdict.slow_down == (status == 429)
    assert str(status) in verdict.reason
    assert ("a redirect" if 300 <= status < 400 else "the message") in verdict.reason


def test_no_money_and_no_such_model_end_the_run():
    """Whatever their status."""
    for more in ({"code": "insufficient_quota"}, {"type": "insufficient_quota"}):
        assert judged(429, error("no money", **more))[0].fatal
    for code in ("model_not_found", "invalid_api_key", "billing_not_active"):
        assert judged(400, error("no", code=code))[0].fatal
    for body in (error("no", code=["x"]), {"error": "insufficient_quota"}, [], b"<html>"):
        assert not judged(429, body)[0].fatal


def test_what_a_server_asks_to_wait():
    assert judged(429, error("x"), JSON | {"Retry-After": "7"})[0].wait == 7
    assert judged(503, b"", {"Retry-After": "7"})[0].wait == 7
    assert judged(429, error("x"))[0].wait is None


def test_an_answer_that_is_no_chat_completion_is_tried_again_and_paid_for():
    """The tokens of a useless reply count; bytes are decoded as JSON says."""
    verdict, used = judged(200, chat("x", usage=(9, 4)) | {"choices": []})
    assert isinstance(verdict, Verdict) and verdict.again and used == (9, 4)
    verdict, _ = judged(200, b"<html>", {"Content-Type": "text/html"})
    assert verdict.again and verdict.reason == "the answer is not JSON but text/html"
    assert judged(200, b"[" * 100_000)[0].again
    latin = {"Content-Type": "text/plain; charset=latin-1"}
    raw = json.dumps(chat("비 🌧️"), ensure_ascii=False).encode()
    assert judged(200, raw, latin)[0]["text"] == "비 🌧️"
