"""A file of prompts, answered: what is in the output, what is kept, when a run goes on."""

import json
import os
import re

import pytest
import torch

import generate
from janus_min import offline
from janus_min.checkpoint import save_model
from janus_min.errors import UserError
from janus_min.outputs import Partial, Response
from janus_min.prompt_files import make_request
from janus_min.sampling import Request
from tests.conftest import tiny_policy, tiny_reward_model
from tests.programs import Program
from tests.runs import rows_in, write_rows

LONG = "word " * 70  # more than the context has room for
PROMPTS = [
    {"id": "a", "system": "Be brief.", "prompt": "What is rain?"},
    {"instruction": "What is tea?", "own": [1, None]},
    {"prompt": LONG},
    {"system": "", "prompt": "What is rain?"},
    {"id": "b", "instruction": "What is tea?"},  # the second one again
    {"prompt": "Why 茶?"},
]
FULL = 2  # the place of the one without room
SMALL = dict(vocab_size=2048, hidden_size=16, head_dim=4)


def save_models(folder, world):
    """A policy that ends some of its responses, and a reward model with four times its context."""
    policy = tiny_policy(max_position_embeddings=64, **SMALL)
    policy.lm_head.weight.data[2] *= -8  # so that many end by themselves
    save_model(policy, folder / "model", world, torch.float32)
    scorer = tiny_reward_model(max_position_embeddings=256, **SMALL)
    save_model(scorer, folder / "rm", world, torch.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, world)
    return folder


@pytest.fixture
def folder(tmp_path, models):
    """A folder of its own for a run, with links to the models and PROMPTS as in.jsonl."""
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    write_rows(tmp_path / "in.jsonl", PROMPTS)
    return tmp_path


@pytest.fixture
def program(monkeypatch, capsys, folder):
    monkeypatch.chdir(folder)
    return Program(generate.main, monkeypatch, capsys)


def flags(output="out.jsonl", n=2, scored=False, **changes):
    """Of a run in the folder."""
    given = {"model": "model", "input": "in.jsonl", "output": output, "n": n, "max-tokens": 6}
    given |= {"reward-model": "rm"} if scored else {}
    return [word for name, value in (given | changes).items() for word in (f"--{name}", value)]


@pytest.fixture
def unfinished(program, monkeypatch, folder):
    """Does all of a run but its last step. Returns the bytes that it leaves."""

    def run(*arguments):
        def stop(*_):
            raise UserError("stopped here")

        with monkeypatch.context() as patch:
            patch.setattr(offline, "finish", stop)
            assert "stopped here" in program.fails(*arguments)
        [path] = folder.glob("*.partial-0")
        return path.read_bytes()

    return run


# What is written


def test_records_are_in_the_order_of_the_input(program, folder):
    out = program(*flags(n=3))
    lines = rows_in(folder / "out.jsonl")
    places = [(record["line"], record["sample"]) for record in lines]
    assert places == [(line, sample) for line in range(1, 7) for sample in range(3)]
    for record in lines:
        assert record.items() >= PROMPTS[record["line"] - 1].items()
        assert record.keys() - PROMPTS[record["line"] - 1].keys() == {
            *("line", "sample", "response", "stop", "sampling")
        }
    stops = {record["stop"] for record in lines}
    assert stops == {"eos", "length", "context"}
    assert "18 responses to 6 prompts in out.jsonl\n" in out
    cut = sum(record["stop"] == "length" for record in lines)
    assert f"{cut} of 18 cut at --max-tokens or by the context\n" in out
    assert [path.name for path in folder.glob("out*")] == ["out.jsonl"]


def test_random_numbers_are_those_of_a_prompt_a_number_and_a_seed():
    seeds = [
        make_request(seed, ids, k).seed
        for seed in (0, 1)
        for ids in ([1, 5, 6], [1, 6, 5], [1, 5])
        for k in (0, 1, 2)
    ]
    assert len(set(seeds)) == 18
    assert make_request(1, [1, 5, 6], 2) == Request([1, 5, 6], seed=seeds[11])


def test_equal_prompts_get_equal_samples_that_differ(program, folder):
    program(*flags(n=3))
    lines = rows_in(folder / "out.jsonl")
    texts = [[r["response"] for r in lines if r["line"] == line] for line in range(1, 7)]
    assert texts[1] == texts[4] and len(set(texts[1])) == 3
    assert len({tuple(own) for own in texts}) == 5


@pytest.mark.parametrize("scored", [False, True])
def test_a_response_depends_on_its_prompt_alone(program, folder, scored):
    """Neither on its place nor on the others, nor on how many are computed at a time."""
    program(*flags(scored=scored))
    wanted = rows_in(folder / "out.jsonl")
    for size in (1, 3):
        program(*flags(f"{size}.jsonl", scored=scored), "--batch-size", size)
        assert (folder / f"{size}.jsonl").read_bytes() == (folder / "out.jsonl").read_bytes()
    write_rows(folder / "in.jsonl", PROMPTS[::-1])
    program(*flags("reverse.jsonl", scored=scored))
    own = "response", "stop", "sample", "reward"
    by_prompt = {
        json.dumps([r.get("id"), r.get("system"), r.get("prompt"), r["sample"]]): r for r in wanted
    }
    for record in rows_in(folder / "reverse.jsonl"):
        key = json.dumps([*map(record.get, ("id", "system", "prompt")), record["sample"]])
        assert [by_prompt[key].get(k) for k in own] == [record.get(k) for k in own]


def test_a_prompt_without_room_in_the_middle_is_counted(program, folder):
    out = program(*flags())
    lines = [record for record in rows_in(folder / "out.jsonl") if record["line"] == FULL + 1]
    assert [(r["response"], r["stop"], r["sample"]) for r in lines] == [
        ("", "context", 0),
        ("", "context", 1),
    ]
    assert "2 of 12 empty, as their prompts fill the context\n" in out


def test_nothing_but_prompts_without_room(program, folder):
    write_rows(folder / "in.jsonl", [{"prompt": LONG}] * 2)
    out = program(*flags(scored=True))
    assert "4 of 4 empty" in out and "too long: 2; the first stands" in out
    lines = rows_in(folder / "out.jsonl")
    assert [(line["best"], line["stop"]) for line in lines] == [(None, "context")] * 2


def test_with_a_reward_model_a_prompt_has_one_record(program, folder):
    out = program(*flags(n=4, scored=True))
    lines = rows_in(folder / "out.jsonl")
    assert [record["line"] for record in lines] == [1, 2, 3, 4, 5, 6]
    for record in lines[:FULL] + lines[FULL + 1 :]:
        candidates, rewards = record["candidates"], [c["reward"] for c in record["candidates"]]
        assert len(set(rewards)) == len({c["response"] for c in candidates}) > 1
        assert record["best"] == record["sample"] == rewards.index(max(rewards))
        assert candidates[record["best"]].items() <= record.items()
        assert {c["stop"] for c in candidates} <= {"eos", "length"}
        assert record["reward_model"] == "rm" and record["sampling"]["n"] == 4
    assert len({record["best"] for record in lines}) > 2
    assert lines[1]["candidates"] == lines[4]["candidates"]
    empty = {"response": "", "stop": "context", "reward": None}
    assert lines[FULL]["best"] is None and lines[FULL]["candidates"] == [empty] * 4
    assert lines[FULL].items() >= empty.items()
    assert "the best of 4 by rm; all candidates are kept\n" in out
    assert "prompts without a reward, as they are too long: 1; the first stands\n" in out
    # The candidates are the responses of a run without a reward model.
    program(*flags("all.jsonl", n=4))
    every = [(r["response"], r["stop"]) for r in rows_in(folder / "all.jsonl")]
    assert every == [(c["response"], c["stop"]) for r in lines for c in r["candidates"]]


def test_candidates_too_long_for_the_reward_model_are_kept(program, folder, world):
    """Of a prompt all of whose candidates are, the first stands."""
    scorer = tiny_reward_model(max_position_embeddings=26, **SMALL)
    (folder / "rm").unlink()
    save_model(scorer, folder / "rm", world, torch.float32)
    write_rows(folder / "in.jsonl", [{"prompt": "What is rain? " * 3}, {"prompt": "Why?"}])
    out = program(*flags(n=3, scored=True))
    first, second = rows_in(folder / "out.jsonl")
    assert first["best"] is None and first["sample"] == 0
    assert first["response"] == first["candidates"][0]["response"] != ""
    assert [c["reward"] for c in first["candidates"]] == [None] * 3
    assert second["best"] is not None
    assert "prompts without a reward, as they are too long: 1; the first stands\n" in out


# Going on


@pytest.mark.parametrize("scored", [False, True])
def test_a_run_goes_on_from_any_byte(program, unfinished, folder, scored):
    arguments = flags(scored=scored)
    whole = unfinished(*arguments)
    program(*arguments)
    wanted, partial = (folder / "out.jsonl").read_bytes(), folder / "out.jsonl.partial-0"
    assert not partial.exists()
    edges = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    cuts = {0, 1, len(whole)} | {e + d for e in edges[::3] for d in (-1, 0, 1)}
    cuts |= set(range(7, len(whole), len(whole) // 7))
    for cut in sorted(cuts):
        (folder / "out.jsonl").unlink()
        partial.write_bytes(whole[:cut])
        out = program(*arguments)
        assert (folder / "out.jsonl").read_bytes() == wanted
        there = sum(b'"sample"' in line for line in whole[:cut].split(b"\n")[:-1])
        assert (f"{there} of 12 responses are there already" in out) == (there > 0)
        assert ("12 of 12" in out) or "memory in GiB" in out
        assert not partial.exists()


def test_what_is_there_is_not_computed_again(program, unfinished, folder, monkeypatch):
    arguments = flags(scored=True)
    whole = unfinished(*arguments)
    lines = whole.splitlines(keepends=True)
    asked, sound = [], offline.generate

    def watched(model, requests, *rest, **more):
        asked.extend(requests)
        return sound(model, requests, *rest, **more)

    monkeypatch.setattr(offline, "generate", watched)
    (folder / "out.jsonl.partial-0").write_bytes(b"".join(lines[:1] + lines[3:13]))
    program(*arguments)
    assert len(asked) == 2
    (folder / "out.jsonl").unlink()
    (folder / "out.jsonl.partial-0").write_bytes(b"".join(lines[:-1]))
    scored, sound_score = [], offline.score
    monkeypatch.setattr(offline, "score", lambda *a: scored.append(a) or sound_score(*a))
    program(*arguments)
    assert len(asked) == 2 and len(scored) == 1


def test_damage_in_the_middle_is_a_mistake(program, unfinished, folder):
    lines = unfinished(*flags()).splitlines(keepends=True)
    for wrong in (b"{\n", b"\x00\x00\n", b"3\n", b"{}\n"):
        for place in (0, 2):
            content = lines[:place] + [wrong] + lines[place + 1 :]
            (folder / "out.jsonl.partial-0").write_bytes(b"".join(content))
            message = program.fails(*flags())
            other = place == 0 and wrong == b"{}\n"
            assert ("with other settings (model was None" if other else "is damaged") in message
            assert not (folder / "out.jsonl").exists()


def retrain(folder):
    """The same weights, written later."""
    path = folder / "model" / "model.safetensors"
    os.utime(path, (path.stat().st_mtime + 5,) * 2)


def edit(folder):
    write_rows(folder / "in.jsonl", PROMPTS[1:])


@pytest.mark.parametrize(
    ("change", "changes", "name"),
    [
        (retrain, {}, "model was '[^']*written [^']*', is '[^']*written [^']*'"),
        (edit, {}, "input was '[0-9a-f]{16}', is '[0-9a-f]{16}'"),
        (None, {"n": 3}, "n was 2, is 3"),
        (None, {"seed": 1}, "seed was 0, is 1"),
        (None, {"temperature": 0.5}, "temperature was 1.0, is 0.5"),
        (None, {"top-p": 0.5}, "top_p was 0.9, is 0.5"),
        (None, {"repetition-penalty": 1}, "repetition_penalty was 1.03, is 1.0"),
        (None, {"max-tokens": 7}, "max_tokens was 6, is 7"),
        (None, {"precision": "bf16"}, "precision was 'fp32', is 'bf16'"),
        (None, {"scored": True}, "reward_model was None, is '[^']*rm, written [^']*'"),
        (None, {"n": 3, "seed": 1}, "n was 2, is 3; seed was 0, is 1"),
    ],
)
def test_other_settings_are_named(program, unfinished, folder, models, change, changes, name):
    before = (models / "model" / "model.safetensors").stat()
    left = unfinished(*flags())
    try:
        if change:
            change(folder)
        message = program.fails(*flags(**changes))
    finally:
        os.utime(
            models / "model" / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns)
        )
    assert re.search(
        rf"partial-0 was begun with other settings \({name}\): give these, or", message
    )
    assert (folder / "out.jsonl.partial-0").read_bytes() == left
    assert not (folder / "out.jsonl").exists()


def test_another_reward_model_is_another_run(program, unfinished, folder, world):
    left = unfinished(*flags(scored=True))
    save_model(tiny_reward_model(**SMALL), folder / "other", world, torch.float32)
    message = program.fails(*flags(scored=True, **{"reward-model": "other"}))
    assert re.search("settings \\(reward_model was '[^']*/rm, .*', is '[^']*/other, ", message)
    assert (folder / "out.jsonl.partial-0").read_bytes() == left


def test_the_size_of_batches_may_change(program, unfinished, folder):
    left = unfinished(*flags()).splitlines(keepends=True)
    (folder / "out.jsonl.partial-0").write_bytes(b"".join(left[:5]))
    assert "4 of 12 responses are there" in program(*flags(), "--batch-size", 1)


def test_files_of_other_outputs_are_left_alone(program, folder):
    """Their names begin alike, or look like patterns of this one's."""
    others = ["out.jsonl.partial-x", "out.jsonl2.partial-0", "o.partial-0", "ou2.jsonl.partial-0"]
    for name in others:
        (folder / name).write_text("?")
    program(*flags("out.jsonl"))
    program(*flags("o[u]*.jsonl"))
    assert all((folder / name).read_text() == "?" for name in others)
    assert (folder / "out.jsonl").read_bytes() == (folder / "o[u]*.jsonl").read_bytes()
    assert {path.name for path in folder.glob("*partial*")} == set(others)


def test_a_partial_file_keeps_what_it_is_given(tmp_path):
    """Also through a second one that reads it."""
    settings = {"model": "x", "seed": 0, "top_p": 0.9}
    partial = Partial(tmp_path / "out", settings)
    partial.open()
    partial.add(3, 1, Response([5, 6], "eos"))
    partial.add(0, 0, Response([], "context"))
    partial.add_rewards(3, [0.1 + 0.2, None])
    other = Partial(tmp_path / "out", settings, rank=1)  # while it is still open
    partial.close()
    assert other.responses == {(3, 1): ([5, 6], "eos"), (0, 0): ([], "context")}
    assert other.rewards == {3: [0.1 + 0.2, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial-0"]


# In the official format


def test_an_object_by_ids_needs_ids_that_differ(program, folder):
    records = [{"id": 1, "prompt": "What is tea?"}, {"prompt": "Why?"}]  # whose id is 1, too
    write_rows(folder / "in.jsonl", records)
    message = program.fails(*flags("out.json", n=1))
    assert "in.jsonl: entries 1 and 2 have the id '1', and out.json is an object by ids" in message
    assert list(folder.glob("out*")) == []
    program(*flags("out.jsonl", n=1))
    assert len(rows_in(folder / "out.jsonl")) == 2


def test_one_line_says_what_a_dry_run_would_take(program, folder, models):
    """It reads config.json and the tokenizer; there may be no weights."""
    (folder / "empty").mkdir()
    for name in ("config.json", "tokenizer.model"):
        (folder / "empty" / name).write_bytes((models / "model" / name).read_bytes())
    changes = {"model": "empty"}
    out = program(*flags(n=3, **changes), "--dry-run")
    assert out.startswith("18 responses to 6 prompts; memory in GiB: weights 0.0, cache 0.0 (15 ")
    assert "together" in out and out.count("\n") == 1
    program(*flags(n=3, scored=True, **changes), "--dry-run")
    assert list(folder.glob("out*")) == []
    message = program.fails(*flags(n=3, **changes))
    assert "empty: neither model.safetensors nor" in message
