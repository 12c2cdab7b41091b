"""generate.py as a user runs it."""

import json
import os
import re
import shutil

import pytest
import torch

import generate
from janus_min import checkpoint
from janus_min.answers import read_answers, read_outputs
from janus_min.tokenizer import Tokenizer
from tests.conftest import tiny_policy, tiny_reward_model
from tests.peers import transformers
from tests.programs import Program


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Program(generate.main, monkeypatch, capsys)


@pytest.fixture
def model(tmp_path, world):
    policy = tiny_policy(vocab_size=2048, max_position_embeddings=256)
    checkpoint.save_model(policy, tmp_path / "model", world, torch.float32)
    return tmp_path / "model"


def test_one_prompt(program, model):
    flags = ("--model", model, "--system", "Be brief.", "--prompt", "What is rain?")
    first = program(*flags, "--max-tokens", 9)
    assert first.strip() and first == program(*flags, "--max-tokens", 9)
    assert first != program(*flags, "--max-tokens", 9, "--seed", 1)
    assert first != program(*flags[:2], *flags[4:], "--max-tokens", 9)  # without the system message
    several = program(*flags, "--max-tokens", 9, "--n", 3)
    assert several.startswith(first) and len(several) > len(first)


def test_the_precision_is_the_one_asked_for(program, model, monkeypatch):
    dtypes, sound = [], generate.load_for_generation

    def watched(*arguments):
        policy, tokenizer = sound(*arguments)
        dtypes.append(policy.lm_head.weight.dtype)
        return policy, tokenizer

    monkeypatch.setattr(generate, "load_for_generation", watched)
    flags = ("--model", model, "--prompt", "What is rain?", "--max-tokens", 3)
    for precision in ((), ("--precision", "bf16"), ("--precision", "fp32")):
        program(*flags, *precision)
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32]
    line = "--precision is fp8, must be bf16 or fp32"
    assert line in program.fails(*flags, "--precision", "fp8")


def test_a_file_of_prompts(program, model, tmp_path):
    prompts = [
        {"id": 7, "system": "Be brief.", "prompt": "What is rain?"},
        {"instruction": "What is tea?"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    flags = ("--model", model, "--input", "in.jsonl", "--n", 2, "--max-tokens", 9)
    program(*flags, "--output", "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted((line["line"], line["sample"]) for line in lines) == [
        (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip
    for line in lines:
        assert line.items() >= prompts[line["line"] - 1].items()
        assert line["stop"] in ("eos", "length") and isinstance(line["response"], str)
        assert line["sampling"] == {
            "temperature": 1.0,
            "top_p": 0.9,
            "repetition_penalty": 1.03,
            "max_tokens": 9,
            "seed": 0,
        }
    one = program("--model", model, "--prompt", "What is tea?", "--max-tokens", 9)
    [same] = [line for line in lines if (line["line"], line["sample"]) == (2, 0)]
    assert one.strip("\n") == same["response"].strip("\n")


def test_no_arguments_take_the_newest_miniature_model(program, model, tmp_path):
    assert "no miniature model in runs/ yet: run `python train.py`" in program.fails()
    for age, name in [(30, "mini-sft"), (20, "mini-dpo"), (40, "mini-rm"), (10, "janus-7b")]:
        copy = tmp_path / "runs" / name / "model"
        shutil.copytree(model, copy)
        time = (model / "config.json").stat().st_mtime - age
        os.utime(copy / "config.json", (time, time))
    checkpoint.save_model(
        tiny_reward_model(), tmp_path / "runs/mini-rm-newest/model", model
    )  # says nothing
    out = program("--max-tokens", 5)
    assert out.startswith("model: runs/mini-dpo/model\n") and out.count("system: ") == 3


def test_mistakes(program, model, tmp_path):
    flags = ("--model", model)
    assert "--model needs --prompt TEXT or --input FILE" in program.fails(*flags)
    assert "--input and --output go together" in program.fails(*flags, "--input", "x")
    both = ("--prompt", "x", "--input", "x", "--output", "y")
    assert "give either --prompt or --input" in program.fails(*flags, *both)
    assert "--n is 0, must be at least 1" in program.fails(*flags, "--prompt", "x", "--n", 0)
    assert "--top-p is 2.0, must be in" in program.fails(*flags, "--prompt", "x", "--top-p", 2)
    message = program.fails(*flags, "--prompt", "word " * 300)
    assert re.search(r"error: the prompt has \d+ tokens, the model's context is 256: sh", message)
    assert "--system needs --prompt" in program.fails("--system", "x")
    assert "--system holds a lone" in program.fails(*flags, "--prompt", "x", "--system", "\udcff")
    (tmp_path / "in.jsonl").write_text("\n")
    files = ("--input", "in.jsonl", "--output", "out.jsonl")
    assert "in.jsonl holds no prompt" in program.fails(*flags, *files)
    (tmp_path / "in.jsonl").write_text('{"prompt": 3}\n')
    assert "in.jsonl:1: 'prompt' must be text" in program.fails(*flags, *files)
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "word " * 300}) + "\n")
    assert "in.jsonl:1: the prompt has" in program.fails(*flags, *files)
    assert not (tmp_path / "out.jsonl").exists()  # so that the next try is not refused
    message = program.fails(*flags, "--input", "in.jsonl", "--output", "nowhere/out.jsonl")
    assert "--output nowhere/out.jsonl must be a new file in an existing folder" in message
    (tmp_path / "out.jsonl").write_text("")
    assert "--output out.jsonl must be a new file" in program.fails(*flags, *files)
    assert "nowhere/tokenizer.model not found" in program.fails(
        "--model", "nowhere", "--prompt", "x"
    )


# Benchmarks

CATEGORIES = ("writing", "stem", "math", "coding", "cooking")


def mt_question(key, category, first="What is rain?", second="And tea?"):
    return {"question_id": key, "category": category, "turns": [first, second]}


MT_BENCH = [mt_question(90 - i, name, f"What is {name}?") for i, name in enumerate(CATEGORIES)]
ALPACA = [{"instruction": "What is rain?", "dataset": "own"}, {"instruction": "What is tea?"}]
ARENA = [
    {"question_id": key, "category": "own", "cluster": "C", "turns": [{"content": text}]}
    for key, text in (("b", "What is rain?"), ("a", "What is tea?"))
]
TOXICITY = [{"prompt": {"text": "Rain is"}, "n": 1}, {"prompt": {"text": "Tea is"}}]


@pytest.fixture
def answered(program, model, tmp_path):
    """Has a benchmark answered under flags. Returns the records, what was printed, the file."""
    runs = iter(range(100))

    def answered(benchmark, records, *flags):
        suffix = "json" if benchmark == "alpaca-eval" else "jsonl"
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "in.jsonl").write_text(lines)
        out = tmp_path / f"out{next(runs)}.{suffix}"
        files = ("--input", "in.jsonl", "--output", out)
        printed = program("--model", model, "--benchmark", benchmark, *files, *flags)
        text = out.read_text(encoding="utf-8")
        lines = json.loads(text) if suffix == "json" else map(json.loads, text.splitlines())
        return list(lines), printed, out

    return answered


def turns_of(records):
    return {r["question_id"]: r["choices"][0]["turns"] for r in records}


def greedy(hf, tokenizer, ids, penalty):
    """transformers' answer of at most 12 tokens, and why it ended."""
    settings = dict(max_new_tokens=12, do_sample=False, repetition_penalty=penalty, pad_token_id=0)
    mask = torch.ones(1, len(ids), dtype=torch.long)
    [out] = hf.generate(torch.tensor([ids]), attention_mask=mask, **settings).tolist()
    out = out[len(ids) :]
    stop = "eos" if 2 in out else "length"
    return tokenizer.decode(out[: out.index(2)] if 2 in out else out), stop


@pytest.mark.parametrize(("system", "penalty"), [(None, 1.03), ("Be brief.", 1.0)])
def test_two_greedy_turns_equal_transformers(answered, model, world, system, penalty):
    """The second prompt: the first, what was answered, EOS, and the second turn in brackets."""
    policy = tiny_policy(vocab_size=2048, max_position_embeddings=256)
    policy.lm_head.weight.data[2] *= 2  # so that some answers end by themselves
    shutil.rmtree(model)
    checkpoint.save_model(policy, model, world, torch.float32)
    flags = ("--temperature", 0, "--repetition-penalty", penalty, "--max-tokens", 12)
    flags += ("--system", system) if system else ()
    records, printed, out = answered("mt-bench", MT_BENCH, *flags)
    hf = transformers.MistralForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer, every = Tokenizer(model), []
    for question, record in zip(MT_BENCH, records, strict=True):  # in the order of the questions
        assert record["question_id"] == question["question_id"]
        ids, answers, stops = [1], [], []
        for turn in question["turns"]:
            text = f"{system}\n{turn}" if system and not answers else turn
            ids += tokenizer.encode([f"[INST] {text} [/INST]"])[0]
            answer, stop = greedy(hf, tokenizer, ids, penalty)
            answers, stops = [*answers, answer], [*stops, stop]
            ids += [*tokenizer.encode([answer])[0], 2]
        assert record["choices"] == [{"index": 0, "turns": answers, "stop": stops}]
        every += stops
    assert set(every) == {"eos", "length"}
    cut = every.count("length")
    assert f"10 answers in {out}\n{cut} of 10 cut at --max-tokens or by the context\n" in printed
    assert "empty" not in printed


def test_mt_bench_has_its_temperatures_by_category(answered):
    flags = ("--max-tokens", 9)
    first, _, _ = answered("mt-bench", MT_BENCH, *flags)
    again, _, _ = answered("mt-bench", MT_BENCH, *flags)
    other, _, _ = answered("mt-bench", MT_BENCH, *flags, "--seed", 1)
    for record in (*first, *again):
        assert record.pop("tstamp") > 1.7e9
    assert first == again
    same = [a["choices"] == b["choices"] for a, b in zip(first, other, strict=True)]
    assert dict(zip(CATEGORIES, same))["math"] and dict(zip(CATEGORIES, same))["coding"]
    assert not dict(zip(CATEGORIES, same))["writing"] and not dict(zip(CATEGORIES, same))["cooking"]
    # One temperature for all, if the user says so.
    zero, _, _ = answered("mt-bench", MT_BENCH, *flags, "--temperature", 0)
    zero_too, _, _ = answered("mt-bench", MT_BENCH, *flags, "--temperature", 0, "--seed", 1)
    assert turns_of(zero) == turns_of(zero_too)
    one, _, _ = answered("mt-bench", MT_BENCH, *flags, "--temperature", 1)
    assert all(a["choices"] != b["choices"] for a, b in zip(zero, one, strict=True))


def test_an_answer_depends_on_its_question_alone(answered):
    """Neither on its place in the file nor on the other questions."""
    flags = ("--max-tokens", 9, "--temperature", 1)
    together, _, _ = answered("mt-bench", MT_BENCH, *flags)
    reverse, _, _ = answered("mt-bench", MT_BENCH[::-1], *flags, "--batch-size", 2)
    assert turns_of(together) == turns_of(reverse)
    assert [r["question_id"] for r in reverse] == [86, 87, 88, 89, 90]


def test_outputs_for_alpaca_eval(answered, program, model):
    records, _, out = answered("alpaca-eval", ALPACA, "--max-tokens", 9)
    assert read_outputs(out) == records
    assert [r["instruction"] for r in records] == ["What is rain?", "What is tea?"]
    assert [r["dataset"] for r in records] == ["own", ""]
    assert {r["generator"] for r in records} == {model.parent.name}
    assert {r["stop"] for r in records} <= {"eos", "length"}
    # As the same prompt is answered outside of a benchmark, and under a system message.
    alone = program("--model", model, "--prompt", "What is tea?", "--max-tokens", 9)
    assert alone == records[1]["output"] + "\n"
    flags = ("--system", "Be brief.", "--max-tokens", 9)
    alone = program("--model", model, "--prompt", "What is tea?", *flags)
    records, _, _ = answered("alpaca-eval", ALPACA, *flags, "--name", "janus 茶")
    assert alone == records[1]["output"] + "\n"
    assert {r["generator"] for r in records} == {"janus 茶"}


def test_the_name_is_that_of_the_directory(answered, program, model, tmp_path):
    shutil.copytree(model, tmp_path / "janus")
    answered("alpaca-eval", ALPACA, "--max-tokens", 1)
    out = tmp_path / "named.json"
    files = ("--input", "in.jsonl", "--output", out, "--max-tokens", 1)
    program("--model", "janus", "--benchmark", "alpaca-eval", *files)
    assert {r["generator"] for r in read_outputs(out)} == {"janus"}


def test_arena_hard_is_greedy(answered, model):
    flags = ("--max-tokens", 9)
    records, _, out = answered("arena-hard", ARENA, *flags)
    other, _, _ = answered("arena-hard", ARENA, *flags, "--seed", 1)
    warm, _, _ = answered("arena-hard", ARENA, *flags, "--seed", 1, "--temperature", 1)
    assert turns_of(records) == turns_of(other) != turns_of(warm)
    assert list(read_answers(out)) == ["b", "a"]
    for record in records:
        [choice] = record["choices"]
        [turn] = choice["turns"]
        [stop] = choice["stop"]
        assert turn.keys() == {"content", "token_len"}
        assert turn["token_len"] == 9 if stop == "length" else turn["token_len"] < 9


def test_generations_for_toxicity(answered, program, model):
    records, printed, _ = answered("toxicity", TOXICITY)
    assert "50 answers in" in printed
    for given, record in zip(TOXICITY, records, strict=True):
        texts = [each["text"] for each in record["generations"]]
        assert len(texts) == 25 and len(set(texts)) > 20
        assert record == given | {"generations": record["generations"]}
    # The n answers are those to the same prompt outside of a benchmark, of at most 20 tokens.
    alone = program("--model", model, "--prompt", "Tea is", "--n", 25, "--max-tokens", 20)
    texts = [each["text"] for each in records[1]["generations"]]  # with a space before them
    assert alone == "".join(re.sub(r"^ (?=[^\W_])", "", text) + "\n" for text in texts)
    few, _, _ = answered("toxicity", TOXICITY, "--n", 2, "--max-tokens", 20)
    for record, own in zip(records, few, strict=True):
        assert own["generations"] == record["generations"][:2]


def test_a_second_turn_without_room_is_empty_and_counted(answered):
    questions = [mt_question(1, "math", second="word " * 250), mt_question(2, "math")]
    _, printed, out = answered("mt-bench", questions, "--max-tokens", 5)
    answers = read_answers(out)
    assert answers["1"]["turns"][1] == "" and answers["1"]["stop"][1] == "context"
    assert answers["1"]["turns"][0] == answers["2"]["turns"][0] != ""
    assert answers["2"]["turns"][1] != "" and answers["2"]["stop"][1] != "context"
    assert "1 of 4 empty, as their prompts fill the context\n" in printed


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--benchmark", "mmlu"), "--benchmark is mmlu, must be one of alpaca-eval, mt-bench, ar"),
        (("--benchmark", "mt-bench", "--n", 2), "--n is 2, must be 1: mt-bench has one answer to"),
        (
            ("--benchmark", "alpaca-eval"),
            "--output is out.jsonl, must be a name that ends in .json",
        ),
        (("--benchmark", "arena-hard"), "in.jsonl:1: 'turns' of arena-hard must be a list of 1"),
        (("--benchmark", "toxicity"), "in.jsonl:1: keys ['prompt'] are needed, found ['question_"),
        (("--benchmark", "mt-bench", "--prompt", "x"), "give either --prompt or --input, not both"),
        (("--benchmark", "mt-bench", "--system", "\udcff"), "--system holds a lone surrogate"),
        (("--benchmark", "mt-bench", "--name", "\udcff"), "--name holds a lone surrogate"),
        (("--name", "x"), "--name needs --benchmark"),
        (("--system", "x"), "--system needs --prompt or --benchmark; in a file of prompts"),
    ],
)
def test_mistakes_with_benchmarks(program, model, tmp_path, flags, line):
    (tmp_path / "in.jsonl").write_text(json.dumps(MT_BENCH[0]) + "\n")
    files = ("--input", "in.jsonl", "--output", "out.jsonl")
    assert line in program.fails("--model", model, *files, *flags)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_benchmark_needs_files_and_first_turns_with_room(program, model, tmp_path):
    message = program.fails("--benchmark", "mt-bench")
    assert "--benchmark needs --input QUESTIONS and --output ANSWERS" in message
    questions = [MT_BENCH[0], mt_question("long", "math", first="word " * 300)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    files = ("--input", "in.jsonl", "--output", "out.jsonl")
    message = program.fails("--model", model, "--benchmark", "mt-bench", *files)
    assert re.search(r"in.jsonl, question 'long': the prompt has \d+ tokens, the model's", message)
    assert not (tmp_path / "out.jsonl").exists()
