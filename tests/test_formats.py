"""Files of the published data sets, as text."""

import json

import pytest

from janus_min.errors import UserError
from janus_min.formats import pair_row, read_jsonl, reward_row, sft_row

GOOD = {"system": "Be brief.", "prompt": "What is rain?", "output": "Water."}
PROMPT = "[INST] Be brief.\nWhat is rain? [/INST]"
PAIR = {
    "system": "Be brief.",
    "prompt": "What is rain?",
    "chosen": "Water.",
    "rejected": "It is cold.",
}
ANSWERS = ("Water.", "It is cold.")


def write(tmp_path, *lines):
    path = tmp_path / "data.jsonl"
    parts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(parts) + b"\n")
    return path


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_sft_rows():
    assert sft_row(GOOD, "") == (PROMPT, ("Water.",))
    older = {"system": "Be brief.", "instruction": "What is rain?", "output": "Water.", "more": 1}
    assert sft_row(older, "") == (PROMPT, ("Water.",))
    published = {"main_source": "a", "preference_set": [{"dimension": "style"}]} | GOOD
    assert sft_row(published, "") == (PROMPT, ("Water.",))
    for nothing in ({}, {"system": ""}, {"system": None}):
        row = {"prompt": "What is rain?", "output": "Water."} | nothing
        assert sft_row(row, "").prompt == "[INST] What is rain? [/INST]"
    assert sft_row({"text": "Rain is water."}, "") == ("", ("Rain is water.",))
    assert sft_row(GOOD | {"prompt": " "}, "") == "empty prompt"


CHAT = [user("What is rain?"), assistant("Water.")]
OTHER = [user("What is rain?"), assistant("It is cold.")]


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        # the names of the official DPO configuration
        {"system": "Be brief.", "instruction": "What is rain?", "chosen_response": "Water.",
         "rejected_response": "It is cold."},
        # the ORPO variant, with all it may hold
        PAIR | {"chosen": CHAT, "rejected": OTHER},
        {"system": "Be brief.", "chosen": CHAT, "rejected": OTHER},
        PAIR | {"chosen": CHAT[1:], "rejected": OTHER[1:]},
        {"chosen": [{"role": "system", "content": "Be brief."}, *CHAT],
         "rejected": [{"role": "system", "content": "Be brief."}, *OTHER]},
        {"system": None, "chosen": [{"role": "system", "content": "Be brief."}, *CHAT],
         "rejected": [{"role": "system", "content": "Be brief."}, *OTHER]},
        # the RM variant
        {"input": "Be brief.\nWhat is rain?", "chosen": "Water.", "rejected": "It is cold."},
    ],
)  # fmt: skip
def test_all_variants_of_a_pair_are_the_same_pair(row):
    assert pair_row(row, "") == reward_row(row, "") == (PROMPT, ANSWERS)


def test_a_pair_without_a_question_is_of_no_use():
    assert pair_row(PAIR | {"prompt": ""}, "") == "empty prompt"


HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: What is rain?\n\nAssistant:"


def test_raw_transcripts_share_what_comes_before_the_last_answer():
    row = {"chosen": f"{HH} Water.", "rejected": f"{HH} Wet."}
    assert reward_row(row, "") == (HH, ("Water.", "Wet."))
    later = {"chosen": f"{HH} W.\n\nHuman: Go on\n\nAssistant: No", "rejected": f"{HH} W?"}
    assert reward_row(later, "") == (HH, ("W.\n\nHuman: Go on\n\nAssistant: No", "W?"))
    strange = {"chosen": "One", "rejected": "Two"}
    assert reward_row(strange, "") == "transcripts without a common prompt"
    with pytest.raises(UserError, match="transcripts without a prompt are read by the reward"):
        pair_row(row, "x:1")


def test_transcripts_of_oasst():
    row = {"prompt": "prompter:Hi\nassistant:Yes?\nprompter:Rain?", "chosen": "A", "rejected": "B"}
    prompt, answers = reward_row(row, "")
    assert prompt == "\nHuman:\nHi\n\nAssistant:\nYes?\n\nHuman:\nRain?\nAssistant:\n"
    assert answers == ("A", "B")


@pytest.mark.parametrize(
    ("scores", "answers"),
    [((1.0, -1.0), ("A", "B")), ((0, 0.5), ("B", "A")), ((0.0, 0.0), None)],
)
def test_pairs_of_webgpt(scores, answers):
    row = {"question": {"full_text": "Why?"}, "answer_0": "A", "answer_1": "B"}
    row |= {"score_0": scores[0], "score_1": scores[1]}
    wanted = ("[INST] Why? [/INST]", answers) if answers else "equal scores"
    assert reward_row(row, "") == wanted
    question = {"question": {"full_text": " "}}
    assert reward_row(row | question, "") == ("empty prompt" if answers else "equal scores")


WEBGPT = {"question": {"full_text": "Why?"}, "answer_0": "A", "answer_1": "B"}


@pytest.mark.parametrize(
    ("parse", "row", "message"),
    [
        (sft_row, PAIR, r"this is a preference pair, for SFT needed are 'prompt' \(or 'instruction'"
         r"\) and 'output'; found \['chosen', 'prompt', 'rejected', 'system'\]"),
        (pair_row, GOOD, "this is no preference pair: needed are 'prompt' .*'chosen' and 'rejected'"
         r"; found \['output', 'prompt', 'system'\]"),
        (reward_row, GOOD, "this is no preference pair"),
        (pair_row, {"chosen": "a", "rejected": "b"}, r"needed .*; found \['chosen', 'rejected'\]"),
        (pair_row, PAIR | {"chosen": 3}, "'chosen' must be text, found int"),
        (pair_row, PAIR | {"chosen": ["a"]}, "'chosen' must be text, or messages with 'role'"),
        (pair_row, PAIR | {"chosen": []}, "'chosen' must be text, or messages with 'role' and"),
        (pair_row, PAIR | {"rejected": [user("a")]}, "'rejected' must be text, or messages"),
        (pair_row, PAIR | {"chosen": [{"role": "assistant"}]}, "'chosen': key 'content' is needed"),
        (pair_row, PAIR | {"chosen": CHAT * 2}, "'chosen' has 4 messages; conversations"),
        (pair_row, PAIR | {"chosen": CHAT, "rejected": [user("No"), assistant("b")]},
         "'chosen' and 'rejected' answer different messages"),
        (pair_row, {"prompt": "No", "chosen": CHAT, "rejected": CHAT},
         "'chosen' answers another message than the prompt"),
        (pair_row, PAIR | {"chosen": [{"role": ["x"]}]}, "'chosen' must be text, or messages"),
        (pair_row, PAIR | {"system": 1}, "'system' must be text, found int"),
        (pair_row, PAIR | {"rejected": "\ud800"}, "'rejected' holds a lone surrogate"),
        (reward_row, WEBGPT, r"'score_0' and 'score_1' must be numbers, found \[None, None\]"),
        (reward_row, WEBGPT | {"question": "a"}, "'question' must be an object with 'full_text'"),
        (sft_row, {"prompt": "a"}, r"key 'output' is needed, found \['prompt'\]"),
        (sft_row, {"output": "a"}, "key 'prompt' or 'instruction' is needed"),
        (sft_row, {"prompt": 3, "output": "a"}, "'prompt' must be text, found int"),
        (sft_row, {"prompt": "a", "output": None}, "'output' must be text, found NoneType"),
        (sft_row, {"system": 1, "prompt": "a", "output": "b"}, "'system' must be text, found int"),
        (sft_row, {"prompt": "\ud800", "output": "b"}, "'prompt' holds a lone surrogate"),
        (sft_row, {"text": 1}, "'text' must be text, found int"),
    ],
)  # fmt: skip
def test_broken_rows_say_where_and_what(parse, row, message):
    with pytest.raises(UserError, match=f"data.jsonl:7: {message}"):
        parse(row, "data.jsonl:7")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a"', r"data.jsonl:2: not JSON \(.* column 15"),
        (b"[" * 100_000, "data.jsonl:2: not JSON"),
        (b"1" * 10_000, "data.jsonl:2: not JSON"),
        (b'["a"]', "data.jsonl:2: a JSON object is needed, found list"),
        (b'{"prompt": "\xff"}', "data.jsonl:2: not UTF-8"),
    ],
)
def test_broken_lines_are_named_by_file_and_line(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        list(read_jsonl(write(tmp_path, GOOD, line)))
