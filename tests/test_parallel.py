"""One run on several ranks: real FSDP2 over gloo, in processes that are killed if they hang."""

import json
import os
import re
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train
from janus_min import checkpoint, directories, parallel, resume
from janus_min.checkpoint import load_model, save_model
from janus_min.model import Policy, RewardModel, initialise, initialise_head, set_up_blocks
from janus_min.objectives import OBJECTIVES, Counts
from janus_min.parallel import Ranks, join, local, own_rows, rows_of_shard, whole
from janus_min.row import build_row
from janus_min.sampling import Request, Sampling, generate
from tests.conftest import (
    random_examples,
    random_pairs,
    save_tiny,
    tiny_policy,
    tiny_recipe,
    tiny_reward_model,
)
from tests.programs import Program
from tests.ranks import on_ranks, program_on, train_on
from tests.runs import RECIPES, metrics, write_data, write_pairs


@pytest.fixture
def arguments(tmp_path, world, monkeypatch):
    """The arguments of a run of a few steps of several rows, in a folder of its own. The last step
    of an epoch has fewer rows than there are ranks."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "start", world)

    def arguments(objective):
        write = write_data if objective == "sft" else write_pairs
        data, held_out = write(tmp_path / "data.jsonl", 13), write(tmp_path / "held-out.jsonl", 3)
        flags = ("--max-tokens", 48, "--epochs", 2, "--warmup-steps", 0, "--eval-data", held_out)
        size = ("--row-tokens", 96, "--pairs-per-step", 6)
        if objective == "sft":
            size = ("--row-tokens", 64, "--rows-per-step", 3)
        flags += ("--learning-rate", 1e-3, "--eval-every", 1, "--optimizer", "adamw")
        return (RECIPES[objective], "--model", tmp_path / "start", "--data", data, *flags, *size)

    return arguments


def same_numbers(ours: dict, theirs: dict, rel: float = 1e-5) -> None:
    """Metrics of one step, the same keys and to rounding the same values."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=rel, abs=1e-6), name


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def same_model(ours, theirs, **tolerance) -> None:
    ours, theirs = weights(ours), weights(theirs)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], **tolerance)


# Who does what


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_items_are_dealt_once_equally_many_to_each_and_balanced(size):
    """F11, F12. A rank's k-th item is about as large as the others' k-th: they wait for it."""
    random = np.random.default_rng(size)
    for count in (0, 1, size - 1, size, 5 * size + 1, 64):
        sizes = random.integers(100, 1000, count).tolist()
        hands = [Ranks(rank, size).deal(sizes) for rank in range(size)]
        assert len({len(hand) for hand in hands}) == 1
        assert len(hands[0]) == -(-count // size)
        dealt = [item for hand in hands for item in hand if item is not None]
        assert sorted(dealt) == list(range(count))
        for hand in hands:
            assert [n for n in hand[:-1] if n is None] == []
        if count == 64 and size > 1:
            loads = [sum(sizes[i] for i in hand if i is not None) for hand in hands]
            assert max(loads) - min(loads) < 200
            for together in list(zip(*hands))[:-1]:
                own = [sizes[i] for i in together]
                assert max(own) - min(own) < 250


def test_rows_are_divided_as_fsdp_does():
    for rows in (1, 2, 5, 7, 8, 97):
        for shards in (1, 2, 3, 4, 8):
            ours = [rows_of_shard(rows, shard, shards) for shard in range(shards)]
            pieces = torch.arange(rows).chunk(shards)
            assert [s for s in ours if s.start < s.stop] == [
                slice(int(piece[0]), int(piece[-1]) + 1) for piece in pieces
            ]


# The same numbers


@pytest.mark.parametrize("objective", RECIPES)
def test_any_number_of_ranks_trains_the_same_model(
    objective, arguments, program, tmp_path, monkeypatch
):
    """Losses, metrics, held-out metrics, every gradient of each step, the norm by which it is
    clipped, final weights: one process without FSDP, and 1, 2, 3 and 4 ranks. F01, F02, F06, F07,
    F11, F17, F23, R08: 3 divides neither the vocabulary nor the widths."""
    flags = (*arguments(objective), "--max-grad-norm", 0.5)
    clip, seen = torch.nn.utils.clip_grad_norm_, {}

    def watch(parameters, limit):
        parameters = list(parameters)
        seen["step"] = step = seen.get("step", 0) + 1
        gradients = [whole(p.grad).numpy().copy() for p in parameters]
        if int(os.environ.get("RANK", 0)) == 0:
            np.savez(f"{seen['out']}-{step}.npz", *gradients)
        return clip(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watch)
    outs = ("alone", 1, 2, 3, 4)
    for size in outs:
        seen.clear()
        seen["out"] = size
        if size == "alone":
            program(*flags, "--out", size)
        else:
            ends = on_ranks(size, program_on(*flags, "--out", size))
            assert all(end.status == 0 for end in ends), ends
            assert ends[0].out and not any(end.out or end.err for end in ends[1:])
    straight = metrics(tmp_path / "alone")
    assert len(straight) >= 4 and max(line["grad_norm"] for line in straight) > 0.5
    for size in outs[1:]:
        lines = metrics(tmp_path / str(size))
        assert len(lines) == len(straight)
        for step, (ours, theirs) in enumerate(zip(lines, straight), start=1):
            same_numbers(ours, theirs)
            found, wanted = (np.load(f"{out}-{step}.npz") for out in (size, "alone"))
            assert len(found) == len(wanted) == 21
            for name in wanted:
                scale = np.abs(wanted[name]).max()
                np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5 * scale)
        same_model(tmp_path / str(size), tmp_path / "alone", rtol=1e-5, atol=1e-6)


def test_random_weights_are_those_of_one_process():
    """Each rank keeps its own rows of them."""
    wanted = tiny_reward_model()
    initialise(wanted, 7)
    initialise_head(wanted, 8)

    def work():
        with torch.device("meta"):
            model = RewardModel(wanted.config, "torch")
        join("cpu").prepare(model)
        initialise(model, 7)
        initialise_head(model, 8)
        for own, theirs in zip(model.parameters(), wanted.parameters(), strict=True):
            assert torch.equal(whole(own), theirs)

    ends = on_ranks(3, work)
    assert all(end.status == 0 for end in ends), ends


def test_replicas_train_the_same_model(arguments, program, tmp_path):
    """Two groups of two: weights are divided by two, gradients are summed over four."""
    flags = arguments("orpo")
    program(*flags, "--out", "alone")
    end = train_on(4, *flags, "--out", "hsdp", "--replicas", 2)
    assert "on 4 x cpu" in end.out
    for ours, theirs in zip(metrics(tmp_path / "hsdp"), metrics(tmp_path / "alone")):
        same_numbers(ours, theirs)
    same_model(tmp_path / "hsdp", tmp_path / "alone", rtol=1e-5, atol=1e-6)
    [*_, state] = sorted((tmp_path / "hsdp/state").iterdir())
    assert {p.name for p in state.glob("shard-*")} == {"shard-00000", "shard-00001"}
    program(*flags, "--out", "hsdp", "--resume")  # one group has saved all of it


@pytest.mark.parametrize("kind", [Policy, RewardModel])
def test_checkpointing_changes_nothing_but_memory(kind):
    """F10: only what enters a block is kept, by the layer and not by its parts."""
    tiny = tiny_policy if kind is Policy else tiny_reward_model
    pairs, recipe = random_pairs(8), tiny_recipe("orpo" if kind is Policy else "reward")
    objective, results = OBJECTIVES[recipe.objective], []
    for checkpointing in (False, True):
        model, kept = tiny(), []
        set_up_blocks(model, checkpointing=checkpointing, compile=False)

        def keep(tensor, kept=kept):
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = objective(model, build_row(pairs, None), Counts.of(pairs), recipe)
        loss.backward()
        size = sum({t.untyped_storage().data_ptr(): t.nbytes for t in kept}.values())
        results.append((loss.item(), [p.grad for p in model.parameters()], size))
    (loss, gradients, size), (again, others, less) = results
    assert loss == again and all(torch.equal(a, b) for a, b in zip(gradients, others))
    assert less < 0.5 * size


def test_compiled_and_checkpointed_blocks_train_the_same_model(arguments, program, tmp_path):
    flags = (*arguments("sft"), "--steps", 1)
    program(*flags, "--out", "plain")
    both = ("--compile", "--checkpointing", "full")
    train_on(1, *flags, "--out", "compiled", *both, seconds=300)
    for ours, theirs in zip(metrics(tmp_path / "compiled"), metrics(tmp_path / "plain")):
        same_numbers(ours, theirs, rel=1e-4)
    same_model(tmp_path / "compiled", tmp_path / "plain", rtol=1e-4, atol=1e-5)


# bf16, as on a GPU


@pytest.mark.parametrize("objective", RECIPES)
def test_bf16_rows_of_a_fixed_length_as_on_a_gpu(objective, tmp_path, world, monkeypatch):
    """F19, M04, O06, R05: what a GPU run uses, through the real FSDP: blocks, embedding and head in
    bf16, rotary tables, losses, gradients and weights in fp32. Padding changes nothing."""
    reward = objective == "reward"
    kind = RewardModel if reward else Policy
    own = (tiny_reward_model if reward else tiny_policy)(hidden_size=64, head_dim=16)
    save_model(own, tmp_path / "model", world, torch.float32)
    examples = random_examples(4, responses=1 if objective == "sft" else 2)
    recipe, counts = tiny_recipe(objective), Counts.of(examples)

    def share(model, pad_to):
        row = build_row(examples, None, pad_to)
        row = row._replace(reference_logps=torch.full((len(row.ends),), -40.0))
        loss, values = OBJECTIVES[objective](model, row, counts, recipe)
        loss.backward()
        return loss, values, whole(model.model.layers[0].mlp.up_proj.weight.grad)

    def on_a_gpu():
        seen = {}

        def look(name):
            return lambda module, inputs, output: seen.update({name: (inputs, output)})

        monkeypatch.setattr(parallel, "compute_dtype", lambda device: torch.bfloat16)
        model = load_model(kind, tmp_path / "model", impl="torch", ranks=join("cpu"))
        model.model.embed_tokens.register_forward_hook(look("embedding"))
        model.model.layers[1].register_forward_hook(look("block"))
        loss, values, gradient = share(model, 200)
        assert loss.dtype == gradient.dtype == torch.float32
        assert all(value.dtype == torch.float32 for value in values.values())
        assert seen["embedding"][1].dtype == seen["block"][1].dtype == torch.bfloat16
        assert all(table.dtype == torch.float32 for table in seen["block"][0][1])
        assert all(p.dtype == torch.float32 for p in model.parameters())
        torch.testing.assert_close(gradient, exact[2], rtol=1, atol=0.1 * exact[2].norm().item())
        assert (gradient - exact[2]).norm() < 0.1 * exact[2].norm()
        print(json.dumps(loss.item()))
        # Two ranks' gradients are added in fp32: bf16 does not hold their mean.
        model.zero_grad()
        rank = int(os.environ["RANK"])
        row = build_row(examples[rank::2], None)._replace(reference_logps=torch.zeros(4))
        loss, _ = OBJECTIVES[objective](model, row, counts, recipe)
        loss.backward()
        mean = local(model.model.layers[0].mlp.up_proj.weight.grad)
        assert (mean.bfloat16().float() != mean).any()

    exact = share(own, None)
    ends = on_ranks(2, on_a_gpu)
    assert [end.status for end in ends] == [0, 0], ends
    rounded = json.loads(ends[0].out)
    assert rounded != exact[0].item()
    assert rounded == pytest.approx(exact[0].item(), rel=3e-2, abs=1e-2)


def test_a_model_that_is_divided_does_not_generate(tmp_path, world):
    """F13: one rank would wait for another's longer answer."""
    save_tiny(tmp_path / "model", world)

    def work():
        policy = load_model(Policy, tmp_path / "model", impl="torch", ranks=join("cpu"))
        with pytest.raises(ValueError, match="divided among ranks"):
            generate(policy, [Request(np.array([1, 5]), 0)], Sampling())

    assert [end.status for end in on_ranks(1, work)] == [0]


# Loading and saving


def test_each_rank_reads_its_own_rows_and_writes_a_whole_model(tmp_path, world):
    """F08, F09, F16, M09: 4 ranks, 97 rows and 1 row; nothing of a rank's is left unfilled, no
    piece that is read is larger than its share."""
    own = tiny_reward_model(vocab_size=2049)
    save_model(own, tmp_path / "model", world, torch.float32)
    wanted = dict(own.named_parameters())

    def work():
        ranks = join("cpu")
        largest = 0

        class Watched:
            def __init__(self, file):
                self.file = file

            def __enter__(self):
                self.open = self.file.__enter__()
                return self

            def __exit__(self, *error):
                return self.file.__exit__(*error)

            def get_slice(self, name):
                return Piece(self.open.get_slice(name))

        class Piece:
            def __init__(self, whole):
                self.whole = whole

            def __getitem__(self, rows):
                nonlocal largest
                tensor = self.whole[rows]
                largest = max(largest, tensor.nbytes)
                return tensor

        sound = checkpoint.safe_open
        checkpoint.safe_open = lambda *a, **b: Watched(sound(*a, **b))
        model = load_model(RewardModel, tmp_path / "model", impl="torch", ranks=ranks)
        assert 0 < largest <= -(-2049 // 4) * 48 * 4
        for name, parameter in model.named_parameters():
            assert torch.equal(local(parameter), wanted[name][own_rows(parameter)]), name
            assert torch.equal(whole(parameter), wanted[name]), name
        commit = checkpoint.commit
        checkpoint.commit = lambda *paths: (time.sleep(0.5), commit(*paths))
        save_model(model, tmp_path / "again", world, torch.bfloat16, 60_000, ranks)
        assert (tmp_path / "again/config.json").exists()  # on every rank, at once
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())

    ends = on_ranks(4, work)
    assert all(end.status == 0 for end in ends), ends
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 2
    again = load_model(RewardModel, tmp_path / "again", impl="torch")
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, wanted[name].bfloat16().float()), name


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("objective", ["sft", "dpo", "reward"])
def test_a_run_goes_on_with_another_number_of_ranks(
    objective, optimizer, arguments, program, tmp_path
):
    """Two ranks, one process, four ranks: the same data in the same order, and equal weights."""
    flags = (*arguments(objective), "--save-every", 2, "--optimizer", optimizer)
    program(*flags, "--out", "straight")
    train_on(2, *flags, "--out", "moved", "--steps", 1)
    program(*flags, "--out", "moved", "--resume", "--steps", 2)
    train_on(4, *flags, "--out", "moved", "--resume", "--steps", 3)
    train_on(3, *flags, "--out", "moved", "--resume")
    moved, straight = metrics(tmp_path / "moved"), metrics(tmp_path / "straight")
    assert len(moved) == len(straight) > 3
    for ours, theirs in zip(moved, straight):
        assert ours["tokens"] == theirs["tokens"] and ours["lr"] == theirs["lr"]
        same_numbers(ours, theirs)
    loose = optimizer == "adamw8bit"  # a moment on the edge of two codes may fall on either side
    tolerance = dict(rtol=1e-4, atol=2e-5) if loose else dict(rtol=1e-6, atol=2e-7)
    same_model(tmp_path / "moved", tmp_path / "straight", **tolerance)


# Mistakes and failures


def ends_with(message: str, size: int, *flags: object) -> None:
    """The run ends on all ranks with one line on the first one's stderr."""
    ends = on_ranks(size, program_on(*flags))
    assert [end.status for end in ends] == [2] * size, ends
    assert ends[0].err.startswith("error: ") and message in ends[0].err, ends
    assert ends[0].err.count("\n") == 1 and not any(end.err for end in ends[1:]), ends


def test_wrong_numbers_of_ranks(arguments, program, monkeypatch):
    flags = arguments("sft")
    ends_with("--replicas is 3, must divide the number of processes, 4", 4, *flags, "--replicas", 3)
    line = "--device is cuda, but PyTorch finds no GPU; leave it out, or say cpu"
    assert line in program.fails(*flags, "--device", "cuda")
    assert "--device is tpu, must be cuda or cpu" in program.fails(*flags, "--device", "tpu")
    line = "--checkpointing is some, must be none or full"
    assert line in program.fails(*flags, "--checkpointing", "some")


def test_a_rank_without_a_gpu_says_so_itself(arguments, monkeypatch):
    """The first rank may have one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def second_rank():
        os.environ |= {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
        program_on(*arguments("sft"), "--out", "o")()

    [end] = on_ranks(1, second_rank)
    assert end.status == 2
    assert end.err == "error: rank 1: this machine has 1 GPUs, use --nproc-per-node 1\n"


def test_ranks_that_cannot_meet(arguments):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def work():
            os.environ["MASTER_PORT"] = str(taken.getsockname()[1])
            program_on(*arguments("sft"), "--out", "o")()

        [end] = on_ranks(1, work)
    assert end.status == 2 and end.err.splitlines()[-1].startswith("error: the ranks cannot meet: ")
    assert "address already in use" in end.err.lower()


def test_mistakes_and_a_dry_run_are_printed_once(arguments):
    ends = on_ranks(2, program_on("mini-sft", "--epochs", "none"))
    assert [end.status for end in ends] == [2, 2] and ends[0].err.count("\n") == 1
    ends += on_ranks(2, program_on("mini-sft", "--dry-run"))
    assert "memory per GPU" in ends[2].out
    assert not any(end.out or end.err for end in (ends[1], ends[3]))


def test_idle_ranks_are_named(arguments, tmp_path):
    end = train_on(4, *arguments("sft"), "--out", "o", "--steps", 1)
    steps, rows = map(int, re.search(r"plan: (\d+) steps, (\d+) rows", end.out).groups())
    assert steps * 3 - 2 <= rows <= steps * 3  # of four places each
    share = f"{1 - rows / (steps * 4):.0%}"
    assert f"warning: {share} of the work is empty rows, because 4 processes share steps" in end.out
    end = train_on(1, *arguments("sft"), "--out", "p", "--steps", 1)
    assert "warning" not in end.out
    end = train_on(4, *arguments("orpo"), "--out", "q", "--steps", 1)
    assert re.search(r"warning: .* of about \d.\d rows; --row-tokens cuts it into more", end.out)


def on_rank(number: int, work) -> None:
    """Does something on one rank only."""
    if int(os.environ.get("RANK", 0)) == number:
        work()


def test_a_loss_that_is_not_finite_on_one_rank_ends_all(arguments, monkeypatch):
    """F20: each of them knows the row, whoever computed it."""
    sound = OBJECTIVES["sft"]

    def poisoned(model, row, counts, recipe):
        loss, values = sound(model, row, counts, recipe)
        on_rank(1, lambda: loss.data.fill_(float("nan")))
        return loss, values

    monkeypatch.setitem(OBJECTIVES, "sft", poisoned)
    ends_with("loss is nan in step 1, row ", 2, *arguments("sft"), "--out", "o")


def test_weights_that_are_not_finite_on_one_rank_end_all(arguments, monkeypatch):
    sound = train.require_finite_weights

    def poison(run, model, done):
        on_rank(1, lambda: local(model.lm_head.weight).data.fill_(float("inf")))
        sound(run, model, done)

    monkeypatch.setattr(train, "require_finite_weights", poison)
    flags = (*arguments("sft"), "--out", "o", "--save-every", 2)
    ends_with("rank 1: lm_head.weight is not finite after step 2; no state had been", 2, *flags)


def test_a_rank_that_cannot_read_the_weights_ends_all(arguments, monkeypatch):
    def broken(*settings, **more):
        on_rank(1, lambda: (_ for _ in ()).throw(OSError(5, "Input/output error", "model.st")))
        return sound(*settings, **more)

    sound = resume.load_model
    monkeypatch.setattr(resume, "load_model", broken)
    line = "rank 1: [Errno 5] Input/output error: 'model.st'"
    ends_with(line, 2, *arguments("sft"), "--out", "o")


def test_a_full_disk_on_one_rank_ends_all_and_spares_the_older_state(
    arguments, program, tmp_path, monkeypatch
):
    flags = (*arguments("sft"), "--save-every", 1)
    program(*flags, "--out", "straight")
    sound = directories.save_file

    def full(tensors, path, metadata):
        def fail():
            if "step-00000003.tmp" in str(path):
                raise directories.SafetensorError("No space left on device (os error 28)")

        on_rank(1, fail)
        sound(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(directories, "save_file", full)
        line = "shard-00001/model.safetensors could not be written: No space left on device"
        ends_with(line, 2, *flags, "--out", "o")
    assert {p.name for p in (tmp_path / "o/state").iterdir()} == {
        "step-00000001",
        "step-00000002",
        "step-00000003.tmp",
    }
    train_on(2, *flags, "--out", "o", "--resume")
    same_model(tmp_path / "o", tmp_path / "straight", rtol=1e-6, atol=1e-7)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(arguments, program, tmp_path):
    flags = (*arguments("sft"), "--save-every", 50)
    program(*flags, "--out", "straight")
    import signal

    def stopped():
        write = train.Records.write

        def write_and_signal(records, values):
            write(records, values)
            if values["step"] == 2:
                on_rank(1, lambda: signal.raise_signal(signal.SIGINT))

        train.Records.write = write_and_signal
        program_on(*flags, "--out", "o")()

    ends = on_ranks(2, stopped)
    assert [end.status for end in ends] == [128 + signal.SIGTERM, 128 + signal.SIGINT], ends
    assert "interrupted after step 3, which is saved" in ends[0].err
    assert [p.name for p in (tmp_path / "o/state").iterdir()] == ["step-00000003"]
    train_on(2, *flags, "--out", "o", "--resume")
    same_model(tmp_path / "o", tmp_path / "straight", rtol=1e-6, atol=1e-7)


# A state becomes a model directory


@pytest.mark.parametrize(("objective", "size"), [("sft", 3), ("reward", 2), ("dpo", None)])
def test_a_state_of_any_number_of_ranks_is_exported(
    objective, size, arguments, program, tmp_path, monkeypatch, capsys
):
    """Without the start model or the run: bf16 weights and tokenizer, as a run itself exports."""
    flags = (*arguments(objective), "--out", "o")
    program(*flags) if size is None else train_on(size, *flags)
    newest = max((tmp_path / "o/state").iterdir())
    (tmp_path / "moved").mkdir()
    newest.rename(tmp_path / "moved" / newest.name)
    export = Program(checkpoint.main, monkeypatch, capsys)
    out = export(tmp_path / "moved", tmp_path / "exported")  # the newest one in it
    assert f"{newest.name} is now" in out
    assert ("rewards are not normalised" in out) == (objective == "reward")
    kind = RewardModel if objective == "reward" else Policy
    ours, theirs = (
        dict(load_model(kind, tmp_path / name, impl="torch").named_parameters())
        for name in ("exported", "o/model")
    )
    for name, parameter in theirs.items():
        assert torch.equal(ours[name], parameter.bfloat16().float()), name
    assert json.loads((tmp_path / "exported/config.json").read_text())["dtype"] == "bfloat16"
    tokenizer = "tokenizer.model"
    written, wanted = (tmp_path / name / tokenizer for name in ("exported", "start"))
    assert written.read_bytes() == wanted.read_bytes()


def test_what_cannot_be_exported(arguments, program, tmp_path, monkeypatch, capsys):
    program(*arguments("sft"), "--out", "o")
    export = Program(checkpoint.main, monkeypatch, capsys)
    state = max((tmp_path / "o/state").iterdir())
    assert "start is already there; name another OUT_DIR" in export.fails(state, "start")
    assert "nowhere holds no saved state; a run keeps them" in export.fails("nowhere", "out")
    assert "arguments are required: out" in export.fails(state)
    content = json.loads((state / "state.json").read_text())
    (state / "state.json").write_text(json.dumps(content | {"config": None}))
    assert "state.json is damaged: 'recipe' and 'config' must be" in export.fails(state, "out")
    content["config"]["num_hidden_layers"] += 1
    (state / "state.json").write_text(json.dumps(content))
    line = "is the state of another model: model.layers.2.self_attn.q_proj.weight is missing"
    assert line in export.fails(state, "out")
    for name, value, found in [
        ("vocab_size", 96, "embed_tokens.weight is (2048, 16) in shard 0, needed is (96, 16)"),
        ("hidden_size", 8, "embed_tokens.weight is (2048, 16) in shard 0, needed is (2048, 8)"),
    ]:
        config = content["config"] | {"num_hidden_layers": 2, name: value}
        (state / "state.json").write_text(json.dumps(content | {"config": config}))
        assert found in export.fails(state, "out")
    assert not (tmp_path / "out").exists()


def test_a_state_of_another_architecture_is_not_resumed(arguments, program, world):
    flags = arguments("sft")
    program(*flags, "--out", "o", "--steps", 1)
    other = tiny_policy(vocab_size=2048, hidden_size=32, head_dim=8, max_position_embeddings=64)
    save_model(other, Path("other"), world, torch.float32)
    flags = [*flags, "--out", "o", "--resume", "--model", "other"]
    assert "the config differs, the start model differs" in program.fails(*flags)
