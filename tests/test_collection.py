"""What is asked at each stage, what is taken from a reply, and why another reply is not."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest

from janus_min import prompts
from janus_min.client import Connection, Request
from janus_min.collection import (
    Question,
    Stage,
    grouped,
    preference_sets,
    preferences_stage,
    responses_stage,
    rubric,
    rubrics_stage,
    system_message,
    systems_stage,
)
from janus_min.hierarchy import DIMENSIONS, read_hierarchy, starting_points
from janus_min.pipeline import Failed, Folder, Pipeline, Sampling
from janus_min.replies import ReplyError, json_value

HIERARCHY = read_hierarchy()
ORIGIN = {"id": 7, "main_source": "nectar", "original_source": "sharegpt", "prompt": "Why rain?"}
SETS = [
    {
        dimension: {
            "subdimension": f"{dimension} kind",
            "preference": f"{dimension} wish {user}",
            "description": f"For user {user} the {dimension} is just so.",
        }
        for dimension in DIMENSIONS
    }
    for user in ("one", "two", "three")
]
WANTED = [[{"dimension": d, **entries[d]} for d in DIMENSIONS] for entries in SETS]


def reason_of(function: Callable, *arguments: object) -> str:
    """Why a reply is refused: a text on one line."""
    with pytest.raises(ReplyError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Preferences


def read_sets(reply: str, differ: int = 4) -> list[list[dict]]:
    return preference_sets(json_value(reply), 3, differ)


def other_names(rename: Callable[[str], str]) -> str:
    """The good reply, with its dimensions spelt in another way."""
    return json.dumps({"sets": [{rename(d): one[d] for d in one} for one in SETS]})


GOOD = json.dumps({"sets": SETS})
EXTRA = [{d: {**one[d], "why": "so", "weight": 3} for d in one} for one in SETS]
SPACED = [{d: {k: f"\n {t.replace(' ', '  ')}\t" for k, t in one[d].items()} for d in one}
          for one in SETS]  # fmt: skip


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Here are the sets you asked for:\n\n{GOOD}\n\nI hope they help!",
        f"Certainly!\n```json\n{json.dumps({'sets': SETS}, indent=2)}\n```\nEnjoy.",
        json.dumps([{"sets": SETS}]),
        json.dumps(SETS),
        f"```\n{json.dumps(SETS, indent=1)}\n```",
        other_names(lambda name: name.replace("_", " ").capitalize()),
        other_names(lambda name: f" {name.replace('_', '-').upper()} "),
        json.dumps({"sets": [dict(reversed(one.items())) for one in SETS]}),
        json.dumps({"users": 3, "sets": EXTRA, "note": "as asked"}),
        json.dumps({"sets": SPACED}),
    ],
    ids=["good", "fences", "prose", "prose and fences", "list of one", "bare list",
         "bare in fences", "other case", "capitals", "other order", "extra keys", "white space"],
)  # fmt: skip
def test_sets_are_taken_from_replies_of_many_shapes(reply):
    assert read_sets(reply) == WANTED


def changed(change: Callable[[list[dict]], object]) -> str:
    """The good reply, after a change to its sets."""
    sets = deepcopy(SETS)
    replaced = change(sets)
    return json.dumps({"sets": sets if replaced is None else replaced})


def entry(key: str, value: object) -> str:
    """The good reply, with another value in the style of its second set."""
    return changed(lambda sets: sets[1]["style"].update({key: value}))


TWICE = GOOD.replace('"background_knowledge"', '"style"', 1)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("I cannot do that.", "no JSON"),
        (GOOD[: len(GOOD) // 2], "no whole JSON"),
        ("{}", '"sets" must be a list of 3 objects, found nothing'),
        ('{"sets": "three"}', "list of 3 objects, found text"),
        ('{"sets": {"1": {}}}', "list of 3 objects, found an object"),
        ('{"preference_sets": []}', "found nothing"),
        (changed(lambda sets: sets[:2]), "list of 3 objects, found 2 of them"),
        (changed(lambda sets: sets * 2), "list of 3 objects, found 6 of them"),
        (json.dumps([SETS]), "list of 3 objects, found 1 of them"),
        (changed(lambda sets: [*sets[:2], "none"]), "set 3 must be a JSON object, found text"),
        (changed(lambda sets: [{"style": sets[0]["style"]}, *sets[1:]]),
         r"set 1 must have the keys \['style', 'background_.*, found \['style'\]$"),
        (changed(lambda sets: sets[2].update(length=sets[2]["style"])),
         r"set 3 must have the keys .*, found .*'length'\]$"),
        (TWICE, "the key 'style' is there twice"),
        (changed(lambda sets: sets[1].update(Style=sets[1]["style"])),
         "^set 2 has the dimension style twice"),
        (changed(lambda sets: sets[1].update(style="warm")),
         "^style of set 2 must be a JSON object, found text"),
        (entry("preference", ""), "^style of set 2 needs text under 'preference', found none"),
        (entry("description", " \n"), "^style of set 2 needs text under 'description', found none"),
        (entry("subdimension", 3), "style of set 2 needs text under 'subdim.*, found a number"),
        (entry("preference", None), "needs text under 'preference', found nothing"),
        (entry("preference", ["a"]), "needs text under 'preference', found a list"),
        (entry("preference", True), "needs text under 'preference', found true or false"),
        (entry("description", "a" * 1201),
         "'description' of style of set 2 has 1201 characters, 1200 at most"),
        (entry("preference", "a" * 201), "'preference' of style of set 2 has 201 characters, 200"),
        (entry("subdimension", "a" * 81), "'subdimension' of style of set 2 has 81 .*, 80 at most"),
    ],
)  # fmt: skip
def test_replies_without_three_whole_sets_are_refused_with_the_reason(reply, reason):
    assert re.search(reason, reason_of(read_sets, reply))


def test_a_missing_entry_of_a_preference_is_named():
    reply = changed(lambda sets: sets[0]["informativeness"].pop("description") and None)
    assert reason_of(read_sets, reply) == (
        "informativeness of set 1 needs text under 'description', found nothing"
    )


@pytest.mark.parametrize(
    "keys", [["preference"], ["description"], ["preference", "description"]], ids="/".join
)
@pytest.mark.parametrize("same", range(5))
@pytest.mark.parametrize("differ", range(1, 5))
def test_any_two_sets_differ_in_so_many_dimensions(keys, same, differ):
    """Letters' case and punctuation make no difference; the subdimension may be the same."""

    def repeat(sets: list[dict]) -> None:
        for dimension in DIMENSIONS[:same]:
            for key in keys:
                sets[2][dimension][key] = sets[0][dimension][key].upper() + " !"

    if 4 - same >= differ:
        assert len(read_sets(changed(repeat), differ)) == 3
    else:
        where = ", ".join(f"{key} in {d}" for d in DIMENSIONS[:same] for key in keys)
        wanted = f"sets 1 and 3 have the same {where}"
        assert reason_of(read_sets, changed(repeat), differ) == wanted


@pytest.mark.parametrize("value", [SETS[0], SETS[:1], {"sets": SETS[:1]}, [{"sets": SETS[:1]}]])
def test_a_single_set_may_stand_alone(value):
    assert preference_sets(value, 1, 4) == WANTED[:1]
    assert reason_of(preference_sets, {}, 1, 4).startswith("set 1 must have the keys")


def test_a_starting_point_is_not_taken_word_for_word():
    stage = preferences_stage(HIERARCHY, 3, 4, 0)
    point = starting_points(HIERARCHY, 3, [0, ORIGIN["id"]])[1]["informativeness"]

    def copied(sets: list[dict]) -> None:
        sets[1]["informativeness"]["description"] = point["description"].upper()

    assert reason_of(stage.read, ORIGIN, changed(copied)) == (
        "informativeness of set 2 has the description of its starting point; it must fit the "
        "instruction"
    )
    reply = changed(lambda sets: sets[1]["informativeness"].update(preference=point["preference"]))
    assert stage.read(ORIGIN, reply)["preference_sets"][1][2]["preference"] == point["preference"]


def test_the_request_for_preferences_holds_instruction_and_starting_points():
    stage = preferences_stage(HIERARCHY, 3, 4, 5)
    question = stage.ask(ORIGIN)
    assert question.json and question.system == prompts.PREFERENCES_SYSTEM
    assert f"<instruction>\n{ORIGIN['prompt']}\n</instruction>" in question.user
    points = starting_points(HIERARCHY, 3, [5, 7])
    lines = "\n".join(json.dumps(point) for point in points)
    assert f"<starting_points>\n{lines}\n</starting_points>" in question.user
    assert stage.ask(ORIGIN | {"id": 8}).user != question.user
    for text in ("Imagine 3 users", '3 entries, one for each user, in "sets"'):
        assert text in question.user
    assert "Imagine a user" in preferences_stage(HIERARCHY, 1, 4, 5).ask(ORIGIN).user
    assert preferences_stage(HIERARCHY, 20, 4, 5).ask(ORIGIN).max_tokens >= 20 * 600
    assert stage.tasks(ORIGIN) == [ORIGIN] and stage.fan_out == 1
    record = stage.read(ORIGIN | {"more": 1}, GOOD)
    assert record == ORIGIN | {"preference_sets": WANTED}


# System messages

PLAIN = (
    "You are a patient guide, and you answer in warm words, for children, with one number, safely. "
    "Your answers are short, for those who listen are tired."
)


@pytest.mark.parametrize(
    "reply",
    [PLAIN, f"  {PLAIN}\n", f'"{PLAIN}"', f'" {PLAIN} "\n', f"“{PLAIN}”"],
    ids=["plain", "white space", "quoted", "quoted with space", "typographic"],
)
def test_system_messages_are_taken_without_what_is_around_them(reply):
    assert system_message(reply) == PLAIN


@pytest.mark.parametrize(
    "reply",
    [
        f'"Why" is what they ask. {PLAIN} They say "thanks"',
        f"3 wishes guide you. {PLAIN}",
        f"Surely you know it all. {PLAIN}",
        f"Sure of yourself and calm. {PLAIN}",
        f"{PLAIN} Never say that I cannot help. Follow rule 1. Be kind.",
        PLAIN.replace("You are", "As a guide, you're").replace("Your", "Those"),
        "Be a guide and let kindness be " + "the mark of what is yours " * 10,
    ],
    ids=["quotes within", "a number", "Surely", "sure of", "one rule", "you're", "yours"],
)
def test_system_messages_that_only_look_wrong_stay_as_they_are(reply):
    assert system_message(reply) == reply.strip()


HANGUL = "당신은 환자를 돌보는 간호사이며 모든 질문에 따뜻하고 쉬운 말로 답합니다. " * 3


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (f"{PLAIN}\n\n{PLAIN}", "one paragraph, without line breaks"),
        (f"Sure, here is the system message:\n\n{PLAIN}", "one paragraph"),
        (f"- {PLAIN}\n- {PLAIN}", "one paragraph"),
        (f"- {PLAIN}", "without list, heading or introduction"),
        (f"1. {PLAIN} 2. {PLAIN}", "without list, heading"),
        (f"2) {PLAIN}", "without list, heading"),
        (f"# {PLAIN}", "without list, heading"),
        (f"### A guide {PLAIN}", "without list, heading"),
        (f"**System message** {PLAIN}", "without list, heading"),
        (f"```{PLAIN}```", "without list, heading"),
        (f"Sure, here is the system message: {PLAIN}", "introduction"),
        (f"Certainly! {PLAIN}", "introduction"),
        (f"Absolutely. {PLAIN}", "introduction"),
        (f"Below is what you want. {PLAIN}", "introduction"),
        (f"Of course: {PLAIN}", "introduction"),
        (f"{PLAIN} 1. Be kind. 2. Be short.", "without list, heading"),
        (f"{PLAIN} You are **kind**.", "without list, heading"),
        (f"I'm sorry, but this is not for you. {PLAIN}", "a system message, not an excuse"),
        (f"I cannot write this for you. {PLAIN}", "a system message, not an excuse"),
        (f"I can’t write this for you. {PLAIN}", "a system message, not an excuse"),
        (f"Here is a system message. {PLAIN}", "introduction"),
        (f"Here's a system message. {PLAIN}", "introduction"),
        (f"Here’s what fits. {PLAIN}", "introduction"),
        (f"System message: {PLAIN}", "introduction"),
        (f'"System message: {PLAIN}"', "introduction"),
        ("You are a guide.", "it has 4 words, needed are 20 to 400"),
        ("you " * 401, "it has 401 words, needed are 20 to 400"),
        ("", "it has 0 words"),
        ("The guide answers young learners with warm words. " * 4, 'to the assistant as "you"'),
        (HANGUL, 'speak to the assistant as "you"'),
    ],
)  # fmt: skip
def test_other_texts_are_no_system_message(reply, reason):
    assert reason in reason_of(system_message, reply)


def test_system_messages_of_another_script_need_an_english_you():
    """The teacher is asked in English, and an English "you" is all that can be looked for."""
    text = f"You will answer in Korean: {HANGUL}"
    assert system_message(text) == text.strip()


def test_the_request_for_a_system_message_holds_the_descriptions_alone():
    task = systems_stage(3).tasks(ORIGIN | {"preference_sets": WANTED})[1]
    question = systems_stage(3).ask(task)
    lines = "\n".join(f"- {own['description']}" for own in WANTED[1])
    assert question.user == prompts.fill(prompts.SYSTEM_MESSAGE, descriptions=lines)
    assert not question.json and question.system == prompts.SYSTEM_MESSAGE_SYSTEM
    asked = question.system + question.user
    hidden = [ORIGIN["prompt"], *(e[k] for e in WANTED[1] for k in ("subdimension", "preference"))]
    hidden += [e["description"] for one in (WANTED[0], WANTED[2]) for e in one]
    assert not [text for text in hidden if text in asked]


def test_each_preference_set_becomes_a_system_message_of_its_own():
    stage = systems_stage(3)
    tasks = stage.tasks(ORIGIN | {"preference_sets": WANTED})
    assert len(tasks) == stage.fan_out == 3
    assert tasks == [ORIGIN | {"set": n, "preference_set": one} for n, one in enumerate(WANTED)]
    assert stage.read(tasks[2], f'"{PLAIN}"') == tasks[2] | {"system": PLAIN}


def test_a_system_message_that_is_taken_is_refused():
    stage = systems_stage(1, {PLAIN}.__contains__)
    assert reason_of(stage.read, {}, PLAIN) == "this system message exists already"
    assert stage.read({}, f"{PLAIN} Thanks.") == {"system": f"{PLAIN} Thanks."}


# Responses


def test_a_response_is_asked_for_as_the_trained_model_will_be(tmp_path):
    """The system message and the instruction, unchanged, and nothing else."""
    task = ORIGIN | {"set": 1, "system": f" {PLAIN}", "prompt": 'Say {count} "a"\n```x``` '}
    stage = responses_stage()
    assert stage.tasks(task) == [task]
    with pipeline(tmp_path) as asked:
        request = asked.outcome(stage, task)
    assert request.body["messages"] == [
        {"role": "system", "content": task["system"]},
        {"role": "user", "content": task["prompt"]},
    ]
    assert "response_format" not in request.body
    assert stage.read(task, "\n Rain is water. \n") == task | {"output": "Rain is water."}


# Rubrics

SCORES = {str(n): f"It does so in {n} of 5 parts." for n in range(1, 6)}
RUBRIC = {"criteria": "Does it do so?", "score_descriptions": SCORES}


def test_a_rubric_is_asked_for_each_preference():
    stage = rubrics_stage()
    tasks = stage.tasks(
        ORIGIN | {"set": 2, "preference_set": WANTED[2], "system": "", "output": ""}
    )
    assert tasks == [{"id": 7, "set": 2, "preference": own} for own in WANTED[2]]
    assert len(tasks) == stage.fan_out
    question = stage.ask(tasks[3])
    wanted = prompts.fill(prompts.RUBRIC, description=WANTED[2][3]["description"])
    assert question == Question(prompts.RUBRIC_SYSTEM, wanted, True, question.max_tokens)
    assert stage.read(tasks[3], json.dumps(RUBRIC)) == tasks[3] | {"rubric": RUBRIC}


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(RUBRIC),
        f"```json\n{json.dumps(RUBRIC)}\n```",
        json.dumps([RUBRIC]),
        json.dumps(RUBRIC | {"note": "as asked"}),
        json.dumps(RUBRIC | {"score_descriptions": dict(reversed(SCORES.items()))}),
        json.dumps(RUBRIC | {"criteria": "Does it\n  do so? "}),
    ],
    ids=["plain", "fences", "list of one", "extra key", "other order", "white space"],
)
def test_rubrics_are_taken_from_replies(reply):
    found = rubric(json_value(reply))
    assert found == RUBRIC and list(found["score_descriptions"]) == list("12345")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"criteria": None}, "the reply needs text under 'criteria', found nothing"),
        ({"criteria": "a" * 501}, "'criteria' of the reply has 501 characters, 500 at most"),
        ({"score_descriptions": list(SCORES.values())}, '"score_descriptions" must be a JSON object'
         ", found a list"),
        ({"score_descriptions": {k: SCORES[k] for k in "1234"}}, "must have the keys 1 to 5, found "
         "['1', '2', '3', '4']"),
        ({"score_descriptions": SCORES | {"0": "Not at all."}}, "must have the keys 1 to 5"),
        ({"score_descriptions": SCORES | {"3": " "}}, "needs text under '3', found none"),
        ({"score_descriptions": SCORES | {"3": 3}}, "needs text under '3', found a number"),
        ({"score_descriptions": SCORES | {"3": "a" * 1001}}, "has 1001 characters, 1000 at most"),
        ({"score_descriptions": SCORES | {"3": SCORES["4"].upper()}}, "two scores have the same"),
    ],
)  # fmt: skip
def test_rubrics_that_are_not_whole_are_refused_with_the_reason(change, reason):
    assert reason in reason_of(rubric, RUBRIC | change)


def test_a_rubric_is_one_object():
    assert reason_of(rubric, [RUBRIC, RUBRIC]) == "the reply must be a JSON object, found a list"
    found = reason_of(rubric, {"rubric": RUBRIC})
    assert found == '"score_descriptions" must be a JSON object, found nothing'


def test_groups_are_records_of_one_instruction_in_a_row():
    records = [{"id": i, "n": n} for n, i in enumerate([3, 3, 4, 9, 9, 9])]
    assert [len(group) for group in grouped(iter(records))] == [2, 1, 3]
    assert [record for group in grouped(iter(records)) for record in group] == records
    assert list(grouped(iter([]))) == []


# Attempts


@contextmanager
def pipeline(path: Path, attempts: int = 3) -> Iterator[Pipeline]:
    """A pipeline in a folder; nothing is asked of a server."""
    with Folder(path, {}) as folder:
        yield Pipeline(folder, Sampling(model="m"), Connection(), attempts)


def answer(asked: Pipeline, stage: Stage, task: dict, *replies: str | dict) -> tuple:
    """Answers the requests for a task, one after the other. Returns them and what came of it."""
    requests = []
    for reply in replies:
        request = asked.outcome(stage, task)
        assert isinstance(request, Request) and request.key() not in [r.key() for r in requests]
        requests.append(request)
        reply = {"text": reply} if isinstance(reply, str) else reply
        asked.folder.journal.add(request.key(), (1, 1), reply={"finish": "stop"} | reply)
    return requests, asked.outcome(stage, task)


STAGE = preferences_stage(HIERARCHY, 3, 4, 0)
BROKEN = GOOD[:-20] + "{count}"
REFUSED = {"text": "No.", "refusal": "I would rather not"}
CUT = {"text": GOOD[:100], "finish": "length"}


def test_the_first_good_reply_is_the_record(tmp_path):
    with pipeline(tmp_path) as asked:
        requests, outcome = answer(asked, STAGE, ORIGIN, GOOD)
        assert outcome == ORIGIN | {"preference_sets": WANTED}
        question = STAGE.ask(ORIGIN)
        body = requests[0].body
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert [message["content"] for message in body["messages"]] == list(question[:2])
        assert body["response_format"] == {"type": "json_object"}
        assert body["max_tokens"] == question.max_tokens


def test_a_reply_that_cannot_be_read_is_shown_with_the_reason(tmp_path):
    missing = changed(lambda sets: sets[:2])
    with pipeline(tmp_path) as asked:
        requests, outcome = answer(asked, STAGE, ORIGIN, BROKEN, missing, GOOD)
    assert isinstance(outcome, dict)
    first = requests[0].body["messages"]
    for request, reply in zip(requests[1:], [BROKEN, missing]):
        reason = reason_of(read_sets, reply)
        assert request.body["messages"] == [
            *first,
            {"role": "assistant", "content": reply},
            {"role": "user", "content": prompts.fill(prompts.AGAIN, reason=reason)},
        ]
        assert reason in request.body["messages"][3]["content"]


@pytest.mark.parametrize(
    "reply",
    [REFUSED, CUT, {"text": " \n"}, {"text": GOOD, "finish": "content_filter"}],
    ids=["refused", "cut", "empty", "filtered"],
)
def test_a_reply_that_is_none_is_asked_for_as_another_sample(tmp_path, reply):
    """Also after one that was shown: the mistakes in it are forgotten."""
    with pipeline(tmp_path) as asked:
        requests, outcome = answer(asked, STAGE, ORIGIN, reply, BROKEN, GOOD)
        first, second, third = requests
        assert second.body == first.body and second.sample != first.sample
        assert third.body["messages"][2]["content"] == BROKEN
        assert isinstance(outcome, dict)
        others, _ = answer(asked, STAGE, ORIGIN | {"id": 8}, BROKEN, reply, GOOD)
        assert others[2].body == others[0].body and others[2].key() != others[0].key()


def test_the_same_bad_reply_is_asked_about_as_often_as_another(tmp_path):
    """Although the request after it is the same again."""
    with pipeline(tmp_path, attempts=4) as asked:
        requests, outcome = answer(asked, STAGE, ORIGIN, BROKEN, BROKEN, BROKEN, GOOD)
    assert isinstance(outcome, dict) and requests[2].body == requests[1].body


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ([BROKEN, BROKEN + " ", REFUSED], "refused: I would rather not"),
        ([REFUSED, CUT, BROKEN], "no whole JSON"),
        ([CUT, CUT, CUT], "cut off at the largest number of tokens"),
        ([BROKEN, CUT, {"text": ""}], "empty"),
    ],
)
def test_after_all_attempts_the_last_reason_stays(tmp_path, replies, reason):
    with pipeline(tmp_path) as asked:
        _, outcome = answer(asked, STAGE, ORIGIN, *replies)
    assert isinstance(outcome, Failed) and outcome.reason.startswith(f"after 3 attempts: {reason}")


def test_more_attempts_go_on_where_fewer_stopped(tmp_path):
    with pipeline(tmp_path, attempts=2) as asked:
        before, outcome = answer(asked, STAGE, ORIGIN, REFUSED, BROKEN)
        assert isinstance(outcome, Failed)
    with pipeline(tmp_path, attempts=4) as asked:
        after, outcome = answer(asked, STAGE, ORIGIN, CUT, GOOD)
        assert isinstance(outcome, dict) and asked.folder.journal.lines == 4
    keys = [request.key() for request in before + after]
    assert len(set(keys)) == 4
    assert after[0].body["messages"][2]["content"] == BROKEN
