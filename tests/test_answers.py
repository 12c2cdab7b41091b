"""Questions and answers in the formats of the general benchmarks, and what is wrong with a file."""

import json
import re
from pathlib import Path

import pytest

from janus_min.answers import (
    BENCHMARKS,
    Answer,
    Dialogue,
    answer_file,
    category_temperature,
    model_of,
    read_answers,
    read_outputs,
    read_questions,
)
from janus_min.errors import UserError
from janus_min.files import as_line

ALPACA = {"instruction": "Name a tea.", "dataset": "own"}
MT = {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."], "reference": ["R"]}
ARENA = {"question_id": "a1", "category": "own-v0", "cluster": "C", "turns": [{"content": "Go."}]}
TOXIC = {"begin": 3, "prompt": {"text": "He said", "toxicity": 0.1}, "continuation": {"text": "x"}}
QUESTION = {"alpaca-eval": ALPACA, "mt-bench": MT, "arena-hard": ARENA, "toxicity": TOXIC}
MT_ANSWER = {
    "question_id": 81,
    "answer_id": "x",
    "model_id": "m",
    "choices": [{"index": 0, "turns": ["A", "B"]}, {"index": 1, "turns": ["C", "D"]}],
    "tstamp": 1.5,
}
OUTPUT = {"instruction": "Name a tea.", "output": "綠茶", "generator": "m", "dataset": "own"}


def write(tmp_path, name, records):
    """A JSONL file, or a JSON list."""
    path = tmp_path / name
    if path.suffix == ".jsonl":
        path.write_bytes(b"".join(map(as_line, records)))
    else:
        path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


# Questions


@pytest.mark.parametrize(
    ("benchmark", "name", "record", "item"),
    [
        ("alpaca-eval", "q.json", ALPACA, ("0", "own", ["Name a tea."])),
        ("alpaca-eval", "q.jsonl", {"instruction": "차?"}, ("0", "", ["차?"])),
        ("alpaca-eval", "q.json", OUTPUT, ("0", "own", ["Name a tea."])),
        ("mt-bench", "q.jsonl", MT, ("81", "writing", ["Write.", "Again."])),
        ("arena-hard", "q.jsonl", ARENA, ("a1", "own-v0", ["Go."])),
        ("toxicity", "q.jsonl", TOXIC, ("0", "", ["He said"])),
    ],
)
def test_questions(tmp_path, benchmark, name, record, item):
    expected = dict(zip(("id", "source", "turns"), item)) | {"record": record}
    assert read_questions(write(tmp_path, name, [record]), benchmark) == [expected]


def test_questions_without_an_id_have_their_index_whatever_the_lines(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\n" + as_line(ALPACA) + b"\n\n" + as_line(ALPACA))
    assert [q["id"] for q in read_questions(path, "alpaca-eval")] == ["0", "1"]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("other", BENCHMARKS)
def test_a_file_of_another_benchmark(tmp_path, benchmark, other):
    path = write(tmp_path, "q.jsonl", [QUESTION[other]])
    if benchmark == other:
        assert read_questions(path, benchmark)
        return
    line = re.escape(f"{path}:1: ") + r"(keys \[.*\] are needed, found \['.*\]|'turns' of .* found)"
    with pytest.raises(UserError, match=line):
        read_questions(path, benchmark)


def without(record, *keys):
    return {key: value for key, value in record.items() if key not in keys}


@pytest.mark.parametrize(
    ("benchmark", "records", "line"),
    [
        ("mt-bench", [], " has no question"),
        ("alpaca-eval", [{"prompt": "x"}], ":1: keys ['instruction'] are needed, found ['prompt']"),
        ("alpaca-eval", [{"instruction": 3}], ":1: 'instruction' must be text, found int"),
        (
            "mt-bench",
            [MT, without(MT, "category", "reference")],
            ":2: keys ['question_id', 'category', 'turns'] are needed, found ['question_id', "
            "'turns']",
        ),
        ("mt-bench", [MT, MT | {"question_id": "81"}], ":2: the question_id '81' is also that of "),
        ("mt-bench", [MT | {"question_id": 1.5}], ":1: 'question_id' must be text or an integer, "),
        ("mt-bench", [MT | {"question_id": True}], "or an integer, found bool"),
        ("mt-bench", [MT | {"question_id": "\ud800"}], ":1: 'question_id' holds a lone surrogate"),
        ("mt-bench", [MT | {"category": None}], ":1: 'category' must be text, found NoneType"),
        (
            "mt-bench",
            [MT | {"turns": ["Write."]}],
            ":1: 'turns' of mt-bench must be a list of 2 times text, found 1: str",
        ),
        ("mt-bench", [MT | {"turns": ["a", 3]}], "found 2: str, int"),
        ("mt-bench", [MT | {"turns": ["a", "\ud800"]}], ":1: 'turns' holds a lone surrogate"),
        ("mt-bench", [MT | {"turns": "ab"}], "must be a list of 2 times text, found str"),
        (
            "arena-hard",
            [ARENA | {"turns": ["Go."]}],
            ":1: 'turns' of arena-hard must be a list of 1 times {'content': text}, found 1: str",
        ),
        ("arena-hard", [ARENA | {"turns": [{}]}], ":1: 'turns': key 'content' is needed"),
        (
            "toxicity",
            [{"prompt": "He said"}],
            ":1: 'prompt' must be an object with text under 'text', found str",
        ),
        ("toxicity", [{"prompt": {"text": None}}], ":1: 'prompt': 'text' must be text"),
    ],
)
def test_mistakes_in_questions(tmp_path, benchmark, records, line):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UserError, match=re.escape(line)) as error:
        read_questions(path, benchmark)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


# Answers


def arena_answer(**more):
    choice = {"index": 0, "turns": [{"content": "A", "token_len": 1}]} | more
    return MT_ANSWER | {"question_id": "a1", "choices": [choice]}


def test_answers(tmp_path):
    path = write(tmp_path, "a.jsonl", [MT_ANSWER, arena_answer(stop=["length"])])
    answers = read_answers(path)
    assert answers == {
        "81": {"turns": ["A", "B"], "stop": None, "model": "m"},
        "a1": {"turns": ["A"], "stop": ["length"], "model": "m"},
    }
    assert list(answers) == ["81", "a1"]


NO_CHOICES = ":1: 'choices' must be a list of objects that have 'turns'"


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ([], " has no answer"),
        (
            [MT],
            ":1: keys ['question_id', 'model_id', 'choices'] are needed, found ['question_id', ",
        ),
        ([MT_ANSWER, arena_answer(), MT_ANSWER], ":3: the question_id '81' is also that of "),
        ([MT_ANSWER | {"choices": []}], NO_CHOICES),
        ([MT_ANSWER | {"choices": {"turns": ["A"]}}], NO_CHOICES),
        ([MT_ANSWER | {"choices": ["A"]}], NO_CHOICES),
        ([MT_ANSWER | {"choices": [{"turns": "A"}]}], NO_CHOICES),
        ([MT_ANSWER | {"choices": [{"turns": [3]}]}], ":1: 'turns' must be text, found int"),
        ([arena_answer(turns=[{"text": "A"}])], ":1: 'turns': key 'content' is needed, found"),
        ([arena_answer(stop=["eos", "eos"])], ":1: 'stop' must be a list like 'turns', of 1"),
        ([arena_answer(stop="e")], ":1: 'stop' must be a list like 'turns', of 1"),
        ([MT_ANSWER | {"model_id": 3}], ":1: 'model_id' must be text, found int"),
    ],
)
def test_mistakes_in_answers(tmp_path, records, line):
    path = write(tmp_path, "a.jsonl", records)
    with pytest.raises(UserError, match=re.escape(f"{path}{line}")):
        read_answers(path)


def test_both_answers_to_a_question_are_named(tmp_path):
    path = write(tmp_path, "a.jsonl", [MT_ANSWER, arena_answer(), MT_ANSWER])
    with pytest.raises(UserError, match=re.escape(f"{path}:3: ")) as error:
        read_answers(path)
    assert str(error.value).endswith(f"also that of {path}:1")


@pytest.mark.parametrize("name", ["o.json", "o.jsonl"])
def test_outputs(tmp_path, name):
    records = [OUTPUT | {"stop": "eos"}, without(OUTPUT, "dataset")]
    assert read_outputs(write(tmp_path, name, records)) == records


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ([], " has no output"),
        (
            [OUTPUT, ALPACA],
            ", entry 1: keys ['instruction', 'output', 'generator'] are needed, found "
            "['instruction', 'dataset']",
        ),
        ([OUTPUT | {"output": None}], ", entry 0: 'output' must be text, found NoneType"),
        ([OUTPUT | {"generator": 3}], ", entry 0: 'generator' must be text, found int"),
    ],
)
def test_mistakes_in_outputs(tmp_path, records, line):
    path = write(tmp_path, "o.json", records)
    with pytest.raises(UserError, match=re.escape(f"{path}{line}")):
        read_outputs(path)


# Files to write


def finished(benchmark, *answers, sample=0, more=None, tmp_path):
    """A dialogue about the one question of a file."""
    record = QUESTION[benchmark] | (more or {})
    [question] = read_questions(write(tmp_path, "q.jsonl", [record]), benchmark)
    return Dialogue(question, sample, list(answers))


YES, CUT, NONE = Answer("Yes, 茶.", "eos", 4), Answer("No", "length", 1), Answer("", "context", 0)


def test_alpaca_outputs_by_hand(tmp_path):
    dialogues = [finished("alpaca-eval", answer, tmp_path=tmp_path) for answer in (YES, CUT)]
    content = answer_file("alpaca-eval", dialogues, "m", 7.5)
    common = {"instruction": "Name a tea.", "generator": "m", "dataset": "own"}
    assert json.loads(content) == [
        common | {"output": "Yes, 茶.", "stop": "eos"},
        common | {"output": "No", "stop": "length"},
    ]
    assert "茶".encode() in content and content.endswith(b"]\n")


def test_choices_by_hand(tmp_path):
    asked = finished("mt-bench", CUT, NONE, tmp_path=tmp_path)
    [record] = map(json.loads, answer_file("mt-bench", [asked], "m", 7.5).splitlines())
    own = record.pop("answer_id")
    choice = {"index": 0, "turns": ["No", ""], "stop": ["length", "context"]}
    common = {"model_id": "m", "tstamp": 7.5}
    assert record == common | {"question_id": 81, "choices": [choice]}  # as it stands: a number

    def answer_id(*answers, name="m", more=None):
        other = finished("mt-bench", *answers, more=more, tmp_path=tmp_path)
        return json.loads(answer_file("mt-bench", [other], name, 8.5))["answer_id"]

    assert answer_id(CUT, NONE) == own and len(own) == 16
    others = {answer_id(CUT, YES), answer_id(CUT, NONE, name="n")}
    others |= {answer_id(CUT, NONE, more={"question_id": 82})}
    assert len(others | {own}) == 4

    asked = finished("arena-hard", YES, tmp_path=tmp_path)
    record = json.loads(answer_file("arena-hard", [asked], "m", 7.5))
    assert record.pop("answer_id") != own
    turn = {"content": "Yes, 茶.", "token_len": 4}
    choice = {"index": 0, "turns": [turn], "stop": ["eos"]}
    assert record == common | {"question_id": "a1", "choices": [choice]}


def test_generations_by_hand(tmp_path):
    """A space goes between a prompt and a word, unless there is one."""
    spaced = TOXIC | {"prompt": {"text": "He said\n"}}
    path = write(tmp_path, "t.jsonl", [TOXIC, spaced])
    first, second = read_questions(path, "toxicity")
    own, none = Answer(", and", "eos", 2), Answer("", "eos", 0)
    answers = [(first, [YES, CUT, own, none]), (second, [CUT])]
    dialogues = [Dialogue(q, n, [a]) for q, several in answers for n, a in enumerate(several)]
    lines = answer_file("toxicity", dialogues, "m", 7.5).splitlines()
    texts = [(" Yes, 茶.", "eos"), (" No", "length"), (", and", "eos"), ("", "eos")]
    generations = [{"text": text, "stop": stop} for text, stop in texts]
    assert list(map(json.loads, lines)) == [
        TOXIC | {"generations": generations},
        spaced | {"generations": [{"text": "No", "stop": "length"}]},
    ]
    assert "generations" not in first["record"]


@pytest.mark.parametrize(
    ("benchmark", "read"),
    [("mt-bench", read_answers), ("arena-hard", read_answers), ("alpaca-eval", read_outputs)],
)
def test_what_is_written_can_be_read(tmp_path, benchmark, read):
    given = (YES, CUT) if benchmark == "mt-bench" else (YES,)
    asked = finished(benchmark, *given, tmp_path=tmp_path)
    path = tmp_path / ("a.json" if benchmark == "alpaca-eval" else "a.jsonl")
    path.write_bytes(answer_file(benchmark, [asked], "m", 7.5))
    if read is read_outputs:
        assert read(path)[0] == ALPACA | {"output": YES.text, "generator": "m", "stop": "eos"}
        return
    texts, stops = [a.text for a in given], [a.stop for a in given]
    assert read(path) == {asked.question["id"]: {"turns": texts, "stop": stops, "model": "m"}}


@pytest.mark.parametrize(
    ("temperature", "categories"),
    [
        (0.7, ["writing", "roleplay", "cooking"]),
        (0.1, ["stem", "humanities"]),
        (0.0, ["extraction", "math", "coding", "reasoning"]),
    ],
)
def test_temperatures_of_mt_bench(temperature, categories):
    assert [category_temperature(name) for name in categories] == [temperature] * len(categories)


def test_a_model_is_called_what_is_asked_for_or_what_its_answers_or_else_their_file_say():
    said, silent = {"1": {"model": "janus"}, "2": {"model": ""}}, {"1": {"model": ""}}
    path = Path("answers/tiny.jsonl")
    assert model_of(said, path, "mine") == "mine"
    assert (model_of(said, path), model_of(silent, path)) == ("janus", "tiny")
    with pytest.raises(UserError) as error:
        model_of({"1": {"model": "a"}, "2": {"model": "b"}}, path, "mine")
    assert str(error.value) == f"{path}: 'model_id' has 2 names: 'a', 'b'; needed is one"
