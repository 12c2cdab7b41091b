"""generate.py with a server in the place of a model on this machine."""

import pytest

import generate
from janus_min.answers import read_answers, read_outputs
from janus_min.bench import read_responses
from tests.programs import Program
from tests.runs import rows_in, write_rows
from tests.servers import KEY, ChatServer, Reply, chat, error, question

PROMPTS = [
    {"id": "a", "system": "Be brief.", "prompt": "What is rain?"},
    {"instruction": "What is tea?"},
]
QUESTIONS = [
    {"question_id": 81, "category": "math", "turns": ["What is 2?", "And 3?"]},
    {"question_id": 82, "category": "writing", "turns": ["Write.", "Again."]},
]
FILES = ("--input", "in.jsonl", "--output", "out.jsonl")


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_rows(tmp_path / "in.jsonl", PROMPTS)
    return Program(generate.main, monkeypatch, capsys)


@pytest.fixture
def server():
    """It answers with the question, and with how many messages it has seen."""
    with ChatServer(lambda body, seen: f"{len(body['messages'])}: {question(body)}") as server:
        yield server


@pytest.fixture
def asked(program, server):
    """The program with the server's flags."""
    return lambda *flags: program("--base-url", server.url, "--model", "stub", *flags)


# Files of prompts


def test_a_file_has_the_records_of_a_model_on_this_machine(asked, server, tmp_path):
    out = asked(*FILES, "--n", 2, "--max-tokens", 9, "--seed", 5)
    records = rows_in(tmp_path / "out.jsonl")
    assert [(r["line"], r["sample"]) for r in records] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for record in records:
        assert record.items() >= PROMPTS[record["line"] - 1].items()
        assert record["stop"] == "eos" and record["model"] == "stub-1"
        sampling = {"model": "stub", "temperature": 1.0, "top_p": 0.9, "max_tokens": 9, "seed": 5}
        assert record["sampling"].items() >= sampling.items()
    assert [r["response"] for r in records[1:3]] == ["2: What is rain?", "1: What is tea?"]
    assert "4 responses to 2 prompts in out.jsonl\n" in out
    assert sorted(seen.body["seed"] for seen in server.requests) == [5, 5, 6, 6]
    messages = [{"role": "system", "content": "Be brief."}]
    messages += [{"role": "user", "content": "What is rain?"}]
    assert messages in [seen.body["messages"] for seen in server.requests]
    assert not any("repetition_penalty" in seen.body for seen in server.requests)


def test_what_the_interface_lacks_is_sent_if_it_is_given(asked, server):
    asked(*FILES)
    for seen in server.requests:
        assert seen.body.keys() == {"model", "messages", "temperature", "top_p", "max_tokens"}
        assert [seen.body[key] for key in ("temperature", "top_p", "max_tokens")] == [
            1.0,
            0.9,
            1024,
        ]
    flags = ("--repetition-penalty", 1.03, "--seed", 0, "--extra", '{"top_k": 7}', "--workers", 2)
    asked("--input", "in.jsonl", "--output", "more.jsonl", *flags)
    for seen in server.requests[2:]:
        own = {"repetition_penalty": 1.03, "seed": 0, "top_k": 7}
        assert own.items() <= seen.body.items()


def test_the_official_format_is_read_by_evaluations(asked, tmp_path):
    asked("--input", "in.jsonl", "--output", "out.json")
    found = read_responses(tmp_path / "out.json")
    assert {key: each["response"] for key, each in found.items()} == {
        "a": "2: What is rain?",
        "1": "1: What is tea?",
    }


def test_an_object_by_ids_needs_ids_that_differ_before_anything_is_paid(program, server, tmp_path):
    write_rows(tmp_path / "in.jsonl", [{"id": 1, "prompt": "x"}, {"prompt": "y"}])
    flags = ("--base-url", server.url, "--model", "stub", "--input", "in.jsonl")
    message = program.fails(*flags, "--output", "out.json")
    assert "in.jsonl: entries 1 and 2 have the id '1'" in message
    message = program.fails(*flags, "--output", "out.json", "--n", 2)
    assert "--output out.json has one response to each prompt" in message
    assert server.requests == [] and list(tmp_path.glob("out*")) == []


def test_what_is_refused_is_said_and_the_same_command_asks_again(program, tmp_path):
    """The answers that are there are in the output, and are not paid for twice."""
    refusing = [True]

    def script(seen):
        tea = "tea" in seen.body["messages"][-1]["content"]
        return Reply(400, error("no tea")) if tea and refusing else None

    with ChatServer(script=script) as server:
        flags = ("--base-url", server.url, "--model", "stub", *FILES)
        message = program.fails(*flags)
        assert "without an answer: 1 of 2, out.jsonl.failed.jsonl says why" in message
        [failed] = rows_in(tmp_path / "out.jsonl.failed.jsonl")
        assert failed["line"] == 2 and "no tea" in failed["reason"]
        assert [r["line"] for r in rows_in(tmp_path / "out.jsonl")] == [1]
        refusing.clear()
        program(*flags)
        assert [r["line"] for r in rows_in(tmp_path / "out.jsonl")] == [1, 2]
        assert not (tmp_path / "out.jsonl.failed.jsonl").exists()
        assert server.paid == 2


def test_a_cut_answer_is_one_and_a_filtered_one_is_none(program, tmp_path):
    def answer(body, seen):
        tea = "tea" in question(body)
        return chat(question(body), finish="content_filter" if tea else "length")

    with ChatServer(answer) as server:
        flags = ("--base-url", server.url, "--model", "stub", *FILES, "--attempts", 2)
        assert "filtered or refused ones need more --attempts" in program.fails(*flags)
        assert [r["stop"] for r in rows_in(tmp_path / "out.jsonl")] == ["length"]
        assert len(server.requests) == 3


def test_a_dry_run_asks_nobody(program, tmp_path):
    flags = ("--base-url", "http://127.0.0.1:9/v1", *FILES, "--dry-run")
    for more in ((), ("--model", "stub")):
        out = program(*flags, *more, "--n", 3, "--price-in", 1, "--price-out", 2)
        assert out.startswith("6 calls, about ") and "about $0.00 at $1 and $2 per million" in out
    write_rows(tmp_path / "in.jsonl", QUESTIONS)
    assert program(*flags, "--benchmark", "mt-bench").startswith("4 calls, about ")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


# Benchmarks


def test_mt_bench_turn_by_turn_with_its_temperatures(asked, server, tmp_path):
    write_rows(tmp_path / "in.jsonl", QUESTIONS)
    out = asked(*FILES, "--benchmark", "mt-bench", "--system", "Be brief.")
    answers = read_answers(tmp_path / "out.jsonl")
    assert answers["81"]["turns"] == ["2: What is 2?", "4: And 3?"]
    assert answers["82"]["turns"] == ["2: Write.", "4: Again."]
    by_question = {question(seen.body): seen.body["temperature"] for seen in server.requests}
    assert by_question == {"What is 2?": 0.0, "And 3?": 0.0, "Write.": 0.7, "Again.": 0.7}
    assert [r["model_id"] for r in rows_in(tmp_path / "out.jsonl")] == ["stub", "stub"]
    assert "4 answers in out.jsonl\n0 of 4 cut at --max-tokens or by the context\n" in out


def test_alpaca_eval(asked, server, tmp_path):
    write_rows(tmp_path / "in.jsonl", [{"instruction": "What is rain?"}, {"instruction": "Tea?"}])
    files = ("--input", "in.jsonl", "--output", "out.json")
    asked(*files, "--benchmark", "alpaca-eval", "--name", "ours")
    records = read_outputs(tmp_path / "out.json")
    assert [r["output"] for r in records] == ["1: What is rain?", "1: Tea?"]
    assert {r["generator"] for r in records} == {"ours"}
    assert {seen.body["temperature"] for seen in server.requests} == {1.0}


def test_a_benchmark_without_all_answers_is_completed(program, tmp_path):
    """A second turn fails; the other questions are in the file of answers."""
    write_rows(tmp_path / "in.jsonl", QUESTIONS)
    refusing = [True]

    def script(seen):
        again = seen.body["messages"][-1]["content"] == "Again."
        return Reply(400, error("no")) if again and refusing else None

    with ChatServer(script=script) as server:
        flags = ("--base-url", server.url, "--model", "stub", *FILES, "--benchmark", "mt-bench")
        assert "without an answer: 1 of 2" in program.fails(*flags)
        assert list(read_answers(tmp_path / "out.jsonl")) == ["81"]
        refusing.clear()
        program(*flags)
        assert list(read_answers(tmp_path / "out.jsonl")) == ["81", "82"]
        assert server.paid == 4


def test_a_prompt_for_toxicity_that_lacks_a_sample_has_the_others(program, tmp_path):
    """Its place is not taken by another one when it comes."""
    write_rows(tmp_path / "in.jsonl", [{"prompt": {"text": text}} for text in ("So", "They")])
    refusing = [True]

    def script(seen):
        about = question(seen.body), seen.body["seed"]
        if about == ("They", 6) and refusing:
            return Reply(200, chat("", finish="content_filter"))
        return Reply(200, chat(" {}, {}".format(*about)))

    with ChatServer(script=script) as server:
        flags = ("--base-url", server.url, "--model", "stub", *FILES, "--benchmark", "toxicity")
        flags = (*flags, "--n", 3, "--seed", 5)
        assert "without an answer: 1 of 6, out.jsonl.failed.jsonl" in program.fails(*flags)
        [failed] = rows_in(tmp_path / "out.jsonl.failed.jsonl")
        assert (failed["sample"], failed["reason"]) == (
            1,
            "after 3 attempts: filtered by the server",
        )
        texts = [[g["text"] for g in r["generations"]] for r in rows_in(tmp_path / "out.jsonl")]
        assert texts == [[" So, 5", " So, 6", " So, 7"], [" They, 5", " They, 7"]]
        refusing.clear()
        program(*flags, "--attempts", 4)
    texts = [[g["text"] for g in r["generations"]] for r in rows_in(tmp_path / "out.jsonl")]
    assert texts == [[" So, 5", " So, 6", " So, 7"], [" They, 5", " They, 6", " They, 7"]]
    assert not (tmp_path / "out.jsonl.failed.jsonl").exists()


# Mistakes


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((*FILES, "--model", "m", "--workers", 4), "--workers needs --base-url: it says how a ser"),
        ((*FILES, "--model", "m", "--attempts", 4), "--attempts needs --base-url"),
        ((*FILES, "--model", "m", "--batch"), "--batch needs --base-url"),
        ((*FILES, "--model", "m", "--extra", "{}"), "--extra needs --base-url"),
        ((*FILES, "--model", "m", "--price-in", 1), "--price-in needs --base-url"),
        (("--prompt", "x", "--key-variable", "K"), "--key-variable needs --base-url"),
    ],
)
def test_flags_of_servers_need_one(program, flags, line):
    assert line in program.fails(*flags)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), "--base-url needs --input FILE and --output FILE"),
        (("--model", "m", "--prompt", "x"), "--base-url needs --input FILE and --output FILE"),
        (("--model", "m", "--chat"), "--base-url needs --input FILE and --output FILE"),
        (FILES, "--base-url needs --model NAME, as the server knows it"),
        ((*FILES, "--model", "m", "--precision", "bf16"), "--precision is for models on this mach"),
        ((*FILES, "--model", "m", "--batch-size", 4), "--batch-size is for models on this machine"),
        (
            (*FILES, "--model", "m", "--reward-model", "rm", "--n", 2),
            "--reward-model is for models on this machine, not for those of --base-url",
        ),
        ((*FILES, "--model", "m", "--reward-model", "rm"), "--reward-model chooses one of several"),
        ((*FILES, "--model", "m", "--system", "x"), "--system needs --prompt, --chat or --benchma"),
        ((*FILES, "--model", "m", "--workers", 0), "--workers is 0, must be 1 to 1024"),
        ((*FILES, "--model", "m", "--extra", "x"), "--extra"),
        ((*FILES, "--model", "m", "--max-cost", 1), "--max-cost needs prices"),
        (("--input", "in.jsonl", "--output", "no/out.jsonl", "--model", "m"), "must be a new file"),
    ],
)
def test_mistakes_with_a_server(program, server, tmp_path, flags, line):
    assert line in program.fails("--base-url", server.url, *flags)
    assert server.requests == [] and not list(tmp_path.glob("out*"))


def test_a_file_of_another_run_is_not_written_over(program, server, tmp_path):
    (tmp_path / "out.jsonl").write_text("mine")
    flags = ("--base-url", server.url, "--model", "stub", *FILES)
    assert "--output out.jsonl must be a new file in an existing folder" in program.fails(*flags)
    assert (tmp_path / "out.jsonl").read_text() == "mine" and server.requests == []


def test_the_key_is_in_no_file(asked, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked(*FILES)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert not any(b"SECRET" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
