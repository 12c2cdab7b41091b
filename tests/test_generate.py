"""generate.py as a user runs it."""

import json
import os
import re
import shutil

import pytest
import torch

import generate
from janus_min import checkpoint
from tests.conftest import tiny_policy, tiny_reward_model
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
