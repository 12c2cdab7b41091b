"""The general benchmarks from their questions to their results: a tiny random model answers, a
judge by rule replies over HTTP, and the files in between are those of upstream's own programs.

With recorded data beside the clone, all 80 questions of MT-Bench and 200 instructions of AlpacaEval
are used; else a few questions made up here.
"""

import hashlib
import json
import math
import shutil
from collections import defaultdict
from itertools import islice
from statistics import fmean

import pytest
import torch

import evaluate
import generate
from janus_min.checkpoint import save_model
from janus_min.formats import read_jsonl
from janus_min.mt_bench import WITH_REFERENCE
from tests.conftest import tiny_policy
from tests.programs import Program
from tests.recorded import recorded
from tests.runs import write_rows
from tests.servers import ChatServer, question
from tests.test_alpaca_eval import preferring
from tests.test_judging import NOBODY

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem")
SHORT = ("--max-tokens", 12)


@pytest.fixture
def answered(monkeypatch, capsys, tmp_path, mistral_tokenizer_file):
    """generate.py in a folder of its own, with a tiny random model and the real tokenizer."""
    (tmp_path / "tokenizer").mkdir()
    shutil.copy(mistral_tokenizer_file, tmp_path / "tokenizer" / "tokenizer.model")
    policy = tiny_policy(vocab_size=32000, hidden_size=16, head_dim=4, max_position_embeddings=8192)
    save_model(policy, tmp_path / "random", tmp_path / "tokenizer", torch.float32)
    monkeypatch.chdir(tmp_path)
    program = Program(generate.main, monkeypatch, capsys)
    return lambda *arguments: program("--model", "random", *SHORT, *arguments)


@pytest.fixture
def evaluated(monkeypatch, capsys):
    """evaluate.py there."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return Program(evaluate.main, monkeypatch, capsys)


def records(path):
    return [record for _, record in read_jsonl(path)]


def digit(text, count):
    """A number from 1 to `count` that looks random, and is a function of the text."""
    return 1 + hashlib.sha256(text.encode()).digest()[0] % count


# MT-Bench


def mt_questions(source):
    if source == "recorded":
        return records(recorded("mt_bench", "question.jsonl"))
    return [
        {"question_id": n, "category": category, "turns": [f"What is {category}?", "Why?"]}
        for n, category in enumerate(CATEGORIES, start=81)
    ]


def rating(body, seen):
    """The reply of a judge that rates by the prompt; one in nine of its replies has no rating."""
    score = digit(question(body), 9)
    return "I cannot say." if score == 9 else f"It is so. Rating: [[{score + 0.5:g}]]"


def show_result(path, model):
    """What FastChat's show_result prints of a file in mode "single": rows with -1 are dropped, then
    there are means by turn, and a mean of all rows."""
    scores = defaultdict(list)
    for row in records(path):
        if row["score"] != -1:
            scores[row["model"], row["turn"]].append(row["score"])
    turns = {str(turn): fmean(scores[model, turn]) for turn in (1, 2)}
    return turns, fmean(scores[model, 1] + scores[model, 2])


@pytest.mark.parametrize("source", ["made up", "recorded"])
def test_mt_bench_from_its_questions_to_its_scores(answered, evaluated, tmp_path, source):
    questions = mt_questions(source)
    write_rows(tmp_path / "question.jsonl", questions)
    needed = [q for q in questions if q["category"] in WITH_REFERENCE]
    write_rows(
        tmp_path / "gpt-4.jsonl",
        [
            {"question_id": q["question_id"], "answer_id": "r", "model_id": "gpt-4",
             "choices": [{"index": 0, "turns": ["The first is 4.", "The second is 5."]}]}
            for q in needed
        ],
    )  # fmt: skip
    out = answered("--benchmark", "mt-bench", "--input", "question.jsonl",
                   "--output", "tiny.jsonl", "--name", "tiny")  # fmt: skip
    assert f"{2 * len(questions)} answers in tiny.jsonl" in out
    answers = records(tmp_path / "tiny.jsonl")
    assert [a["question_id"] for a in answers] == [q["question_id"] for q in questions]
    assert all(len(a["choices"][0]["turns"]) == 2 and a["model_id"] == "tiny" for a in answers)

    files = ("--bench", "question.jsonl", "--responses", "tiny.jsonl", "--references",
             "gpt-4.jsonl", "--judge", "rule", "--out", "MT")  # fmt: skip
    with ChatServer(rating) as server:
        table = evaluated("mt-bench", *files, "--base-url", server.url)
    assert len(server.requests) == 2 * len(questions)
    prompts = [question(seen.body) for seen in server.requests]
    assert sum("The first is 4." in prompt for prompt in prompts) == 2 * len(needed)
    assert sum("The second is 5." in prompt for prompt in prompts) == len(needed)

    result = json.loads((tmp_path / "MT" / "result.json").read_text())
    turns, average = show_result(tmp_path / "MT" / "model_judgment.jsonl", "tiny")
    assert result["turns"] == pytest.approx(turns, rel=1e-12)
    assert result["score"] == pytest.approx(average, rel=1e-12)
    assert f"{average:.2f}" in table
    failed = sum(digit(prompt, 9) == 9 for prompt in prompts)
    assert result["counts"]["failed"] == failed and result["counts"]["ok"] == len(prompts) - failed

    again = evaluated("mt-bench", "--rescore", "MT", "--base-url", NOBODY)
    assert again == table[table.index("MT-Bench:") :]
    assert json.loads((tmp_path / "MT" / "result.json").read_text()) == result
    evaluated("mt-bench", "--rescore", "MT/model_judgment.jsonl", "--bench", "question.jsonl",
              "--out", "FILE")  # fmt: skip
    recorded_result = json.loads((tmp_path / "FILE" / "result.json").read_text())
    for key in ("score", "turns", "by_category", "interval"):
        assert recorded_result[key] == result[key], key


# AlpacaEval


@pytest.mark.parametrize("source", ["made up", "recorded"])
def test_alpaca_eval_from_its_instructions_to_its_win_rates(answered, evaluated, tmp_path, source):
    asked = [{"instruction": f"What is thing {n}?", "dataset": "made up"} for n in range(12)]
    if source == "recorded":
        path = recorded("prompts", "alpaca_eval_805.json")
        asked = list(islice(json.loads(path.read_text(encoding="utf-8")), 200))
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(asked))
    for name, seed in (("tiny", 0), ("other", 1)):
        answered("--benchmark", "alpaca-eval", "--input", "alpaca_eval.json", "--seed", seed,
                 "--output", f"{name}.json", "--name", name)  # fmt: skip
    ours, theirs = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("tiny", "other"))
    assert [row["instruction"] for row in ours] == [row["instruction"] for row in asked]
    files = ("--bench", "alpaca_eval.json", "--responses", "tiny.json", "--against", "other.json",
             "--judge", "rule", "--out", "AE")  # fmt: skip
    with ChatServer(preferring) as server:
        table = evaluated("alpaca-eval", *files, "--base-url", server.url)
    result = json.loads((tmp_path / "AE" / "result.json").read_text())
    same = sum(own["output"] == other["output"] for own, other in zip(ours, theirs))
    assert len(server.requests) == len(asked) - same and result["counts"]["ok"] == len(asked)
    rows = json.loads((tmp_path / "AE" / "annotations.json").read_text())
    y = [row["preference"] - 1 for row in rows]  # upstream's numbers, by its rules
    mean = fmean(y)
    error = math.sqrt(sum((v - mean) ** 2 for v in y) / (len(y) - 1) / len(y))
    assert result["win_rate"] == pytest.approx(100 * mean, rel=1e-12)
    assert result["standard_error"] == pytest.approx(100 * error, rel=1e-12)
    assert f"{100 * mean:.1f}" in table
    for path in ("AE", "AE/annotations.json"):
        again = evaluated("alpaca-eval", "--rescore", path, "--base-url", NOBODY)
        assert f"{100 * mean:.1f} ± {100 * error:.1f}" in again, path


# Arena-Hard


LABELS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")


def label(body, seen):
    """The reply of a judge that goes by the prompt, and forgets its label once in eleven times,
    until it is asked to go on."""
    if len(body["messages"]) > 2:
        return "So my final verdict is [[A=B]]."
    number = digit(question(body), 11)
    return "Both are good." if number == 11 else f"I think: [[{LABELS[number % 5]}]]"


def test_arena_hard_from_its_questions_to_its_score(answered, evaluated, tmp_path):
    asked = [
        {"question_id": f"q{n}", "category": "arena-hard-v0.1", "cluster": "things",
         "turns": [{"content": f"What is thing {n}?"}]}
        for n in range(20)
    ]  # fmt: skip
    write_rows(tmp_path / "question.jsonl", asked)
    for name, prompt in (("tiny", ()), ("base", ("--system", "Be brief."))):
        answered("--benchmark", "arena-hard", "--input", "question.jsonl", *prompt,
                 "--output", f"answers-{name}.jsonl", "--name", name)  # fmt: skip
    files = ("--bench", "question.jsonl", "--responses", "answers-tiny.jsonl", "--against",
             "answers-base.jsonl",
             "--judge", "rule", "--out", "AH")  # fmt: skip
    with ChatServer(label) as server:
        table = evaluated("arena-hard", *files, "--base-url", server.url)
    result = json.loads((tmp_path / "AH" / "result.json").read_text())
    points = weight = 0
    for row in records(tmp_path / "AH" / "model_judgment.jsonl"):
        for game, side in zip(row["games"], ("B", "A")):  # the model is B in the first game
            times = 3 if ">>" in game["score"] else 1
            won = game["score"].startswith(f"{side}>")
            points += times * (0.5 if game["score"] == "A=B" else won)
            weight += times
    assert (result["model"], result["opponent"]) == ("tiny", "base")  # as their answers say
    assert result["score"] == pytest.approx(100 * points / weight)
    assert result["interval"][0] < result["score"] < result["interval"][1]
    assert f"{100 * points / weight:.1f} %" in table
    for path in ("AH", "AH/model_judgment.jsonl", "AH/battles.jsonl"):
        name = () if path == "AH" else ("--name", "tiny")
        again = evaluated("arena-hard", "--rescore", path, *name, "--base-url", NOBODY)
        assert f"{100 * points / weight:.1f} %" in again, path
