"""generate.py as a user runs it."""

import io
import json
import os
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import generate
from janus_min import checkpoint, offline
from janus_min.answers import read_answers, read_outputs
from janus_min.bench import answered as with_responses
from janus_min.bench import read_bench, read_responses
from janus_min.best_of_n import load_reward_model, rewards_of
from janus_min.prompt_files import Prompt, encode
from janus_min.tokenizer import Tokenizer
from tests.conftest import tiny_policy, tiny_reward_model
from tests.peers import transformers
from tests.programs import Program
from tests.runs import rows_in


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
        dtypes.append(policy.dtype)
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
    lines = rows_in(tmp_path / "out.jsonl")
    places = [(line["line"], line["sample"]) for line in lines]
    assert places == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for line in lines:
        assert line.items() >= prompts[line["line"] - 1].items()
        assert line["stop"] in ("eos", "length") and isinstance(line["response"], str)
        assert line["sampling"] == {
            "temperature": 1.0,
            "top_p": 0.9,
            "repetition_penalty": 1.03,
            "max_tokens": 9,
            "seed": 0,
            "n": 2,
            "model": str(model),
            "precision": "fp32",
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
    assert "--model needs --prompt TEXT, --chat or --input FILE" in program.fails(*flags)
    assert "--input and --output go together" in program.fails(*flags, "--input", "x")
    both = ("--prompt", "x", "--input", "x", "--output", "y")
    assert "give either --prompt or --input" in program.fails(*flags, *both)
    assert "--n is 0, must be at least 1" in program.fails(*flags, "--prompt", "x", "--n", 0)
    assert "--top-p is 2.0, must be in" in program.fails(*flags, "--prompt", "x", "--top-p", 2)
    message = program.fails(*flags, "--prompt", "word " * 300)
    assert re.search(r"error: the prompt has \d+ tokens, the model's context is 256: sh", message)
    assert "--system needs --prompt, --chat or --ben" in program.fails("--system", "x")
    assert "--system holds a lone" in program.fails(*flags, "--prompt", "x", "--system", "\udcff")
    (tmp_path / "in.jsonl").write_text("\n")
    files = ("--input", "in.jsonl", "--output", "out.jsonl")
    assert "in.jsonl holds no prompt" in program.fails(*flags, *files)
    (tmp_path / "in.jsonl").write_text('{"prompt": 3}\n')
    assert "in.jsonl:1: 'prompt' must be text" in program.fails(*flags, *files)
    assert sorted(path.name for path in tmp_path.glob("out*")) == []  # the next try is not refused
    message = program.fails(*flags, "--input", "in.jsonl", "--output", "nowhere/out.jsonl")
    assert "--output nowhere/out.jsonl must be a new file in an existing folder" in message
    (tmp_path / "out.jsonl").write_text("")
    assert "--output out.jsonl must be a new file" in program.fails(*flags, *files)
    assert "nowhere/tokenizer.model not found" in program.fails(
        "--model", "nowhere", "--prompt", "x"
    )


# The best of n


@pytest.fixture
def scorer(tmp_path, world):
    policy = tiny_reward_model(vocab_size=2048, max_position_embeddings=256)
    checkpoint.save_model(policy, tmp_path / "rm", world, torch.float32)
    return tmp_path / "rm"


@pytest.fixture
def idle(monkeypatch):
    """Nothing may be generated."""
    monkeypatch.delattr(generate, "generate")
    monkeypatch.delattr(offline, "generate")


def test_all_responses_are_kept_without_a_reward_model(program, model, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "What is rain?"}\n')
    files = ("--input", "in.jsonl", "--output", "out.jsonl")
    out = program("--model", model, *files, "--n", 3, "--max-tokens", 4)
    assert "all 3 responses to each prompt are kept: --reward-model chooses one\n" in out
    assert (tmp_path / "out.jsonl").read_text().count("\n") == 3
    out = program("--model", model, *files[:3], "one.jsonl", "--max-tokens", 4)
    assert "kept" not in out


def test_the_best_response_is_that_of_the_highest_reward(
    program, model, scorer, tmp_path, monkeypatch
):
    """The same one of a prompt on the command line and of one in a file."""
    found, sound = [], generate.generate

    def watched(*arguments):
        found.extend(sound(*arguments))
        return found

    monkeypatch.setattr(generate, "generate", watched)
    flags = ("--model", model, "--max-tokens", 4, "--n", 5, "--reward-model", scorer)
    printed = program(*flags, "--prompt", "What is rain?")
    tokenizer = Tokenizer(model)
    [prompt] = encode([Prompt("", "What is rain?", {}, 1)], tokenizer)
    candidates = [completion.ids for completion in found]
    rewards = rewards_of(load_reward_model(scorer, tokenizer), prompt, candidates, 4096)
    best = rewards.index(max(rewards))
    assert printed == tokenizer.decode(candidates[best]) + "\n" and best != 0
    (tmp_path / "in.jsonl").write_text('{"prompt": "What is rain?"}\n')
    program(*flags, "--input", "in.jsonl", "--output", "out.jsonl")
    record = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert record["best"] == best and record["response"] + "\n" == printed
    assert [each["reward"] for each in record["candidates"]] == pytest.approx(rewards, abs=1e-5)
    assert [each["stop"] for each in record["candidates"]] == [each.stop for each in found]


def test_of_equal_candidates_the_first_is_chosen(program, model, scorer, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "What is rain?"}\n')
    flags = ("--n", 4, "--reward-model", scorer, "--temperature", 0, "--max-tokens", 4)
    for precision in ("fp32", "bf16"):
        files = ("--input", "in.jsonl", "--output", f"{precision}.jsonl")
        program("--model", model, *files, *flags, "--precision", precision)
        record = json.loads((tmp_path / f"{precision}.jsonl").read_text())
        assert record["best"] == record["sample"] == 0
        assert all(each == record["candidates"][0] for each in record["candidates"])


def broken(scorer, path, name="model.layers.1.mlp.up_proj.weight"):
    """A copy of a model with one number in that tensor that is none."""
    shutil.copytree(scorer, path)
    tensors = load_file(scorer / "model.safetensors")
    tensors[name].view(-1)[-1] = float("nan")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_a_wrong_reward_model_is_found_before_anything_is_generated(
    program, model, scorer, tmp_path, mistral_tokenizer_file, idle
):
    shutil.copytree(scorer, tmp_path / "other")
    shutil.copy(mistral_tokenizer_file, tmp_path / "other" / "tokenizer.model")
    damaged = broken(scorer, tmp_path / "damaged")
    (tmp_path / "in.jsonl").write_text('{"prompt": "What is rain?"}\n')
    files = ("--input", "in.jsonl", "--output", "out.jsonl")
    for directory, line in [
        (tmp_path / "other", "tokenizer.model differ: a reward model scores only responses of a"),
        (model, "is a language model (it has lm_head.weight), needed is a reward model"),
        (damaged, "up_proj.weight is not finite: the reward model is damaged"),
        (tmp_path / "nowhere", "nowhere"),
    ]:
        flags = ("--model", model, "--n", 2, "--reward-model", directory)
        assert line in program.fails(*flags, "--prompt", "What is rain?")
        assert line in program.fails(*flags, *files)
    assert list(tmp_path.glob("out*")) == []


def test_a_reward_model_needs_something_to_choose_from(program, model):
    flags = ("--model", model, "--reward-model", "rm")
    line = "--reward-model chooses one of several responses: it needs --n above 1"
    assert line in program.fails(*flags, "--prompt", "x")
    line = "--reward-model is for --prompt and files of prompts"
    assert line in program.fails(*flags, "--chat", "--n", 2)
    files = ("--input", "in.jsonl", "--output", "out.jsonl", "--n", 2)
    assert line in program.fails(*flags, "--benchmark", "toxicity", *files)


# In the official format


def test_the_official_format_is_read_by_evaluations(program, model, scorer, tmp_path):
    """With ids of the file, and where it has none with those that the bench gives."""
    items = [{"system": "Be brief.", "prompt": "What is rain?"}, {"prompt": "What is tea?"}]
    for ids in (("x", 7), (None, None)):
        records = [dict(item) | ({"id": key} if key else {}) for item, key in zip(items, ids)]
        keys = [str(key or number) for number, key in enumerate(ids)]
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        (tmp_path / "in.json").write_text(json.dumps(dict(zip(keys, items))))
        best = ("--n", 3, "--reward-model", scorer)
        for source, flags in (("in.jsonl", ()), ("in.jsonl", best), ("in.json", ())):
            out = tmp_path / "out.json"
            files = ("--input", source, "--output", out, "--max-tokens", 4)
            program("--model", model, *files, *flags)
            content = json.loads(out.read_text(encoding="utf-8"))
            assert list(content) == keys
            responses = read_responses(out)
            assert {k: r["response"] for k, r in responses.items()} == {
                key: record["response"] for key, record in content.items()
            }
            bench = read_bench(tmp_path / source, rubrics=False)
            own = with_responses(bench, out, allow_missing=False)
            assert [item["id"] for item in own] == keys and all("stop" in item for item in own)
            assert all(("candidates" in record) == bool(flags) for record in content.values())
            out.unlink()


def test_the_official_format_has_no_room_for_several(program, model, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "What is rain?"}\n')
    message = program.fails("--model", model, "--input", "in.jsonl", "--output", "o.json", "--n", 2)
    line = "--output o.json has one response to each prompt: name it .jsonl for all 2, or give --re"
    assert line in message


def test_a_dry_run_is_for_files(program, model, tmp_path):
    line = "--dry-run needs --input FILE and --output FILE, or --base-url"
    for flags in (("--prompt", "x"), ("--chat",), ()):
        flags = ("--model", model, *flags) if flags else ()
        assert line in program.fails(*flags, "--dry-run")
    (tmp_path / "in.jsonl").write_text(json.dumps(MT_BENCH[0]) + "\n")
    files = ("--input", "in.jsonl", "--output", "out.jsonl")
    assert line in program.fails("--model", model, "--benchmark", "mt-bench", *files, "--dry-run")


# A chat


@pytest.fixture
def chat(program, model, monkeypatch):
    """What a chat prints that reads these lines from a pipe."""

    def chat(lines, *flags):
        content = io.BytesIO(
            "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        )
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content, encoding="utf-8"))
        return program("--model", model, "--chat", "--max-tokens", 5, *flags)

    return chat


def answers_of(text):
    """The answers in a transcript, by the place of their questions among all lines read."""
    blocks = [block for block in re.split(r"^> ", text, flags=re.M)[1:]]
    return [block.partition("\n")[2] for block in blocks]


def test_a_chat_is_read_from_a_pipe(chat):
    lines = (
        "What is rain?",
        "/system Be brief.",
        "And tea?",
        "/reset",
        "What is rain?",
        "/quit",
        "No?",
    )
    text = chat(lines)
    assert text.startswith("/help shows the commands, Ctrl-D ends\n> What is rain?\n")
    first, system, second, reset, third, quit = answers_of(text)
    assert system == "the system message is: Be brief.\n" and quit == ""
    assert reset == "the turns are forgotten, the system message stays\n"
    assert "No?" not in text
    assert answers_of(chat(["What is rain?"]))[0].strip() == first.strip() != ""
    assert answers_of(chat(["What is rain?"], "--system", "Be brief."))[0].strip() == third.strip()
    assert first != third != second
    assert answers_of(chat(["What is rain?"], "--seed", 1))[0].strip() != first.strip()
    assert text == chat(lines)


def test_a_chat_survives_what_it_cannot_take(chat):
    text = chat(["/nonsense", "word " * 300, "\udcff", "/reset", "What is rain?"])
    nonsense, long, _, _, rain = answers_of(text)
    assert "no such command: /nonsense" in nonsense
    assert "the model's context is 256: shorten it" in long
    assert rain.strip() == answers_of(chat(["What is rain?"]))[0].strip()


def test_a_chat_has_one_answer_to_each_message(program, model):
    message = program.fails("--model", model, "--chat", "--n", 2)
    assert "--n is 2, must be 1: a chat has one answer to each message" in message
    both = ("--prompt", "x", "--chat")
    assert "give either --prompt or --chat, not both" in program.fails("--model", model, *both)
    files = ("--input", "x", "--output", "y", "--chat")
    assert "give either --input or --chat, not both" in program.fails("--model", model, *files)
    assert "--benchmark needs --input" in program.fails("--chat", "--benchmark", "mt-bench")


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
        (("--system", "x"), "--system needs --prompt, --chat or --benchmark; in a file of"),
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
