"""What ends a run on several ranks ends all of them, with one message."""

import os
import re
import signal
import socket

import torch

import train
from janus_min import directories, resume
from janus_min.objectives import OBJECTIVES
from janus_min.parallel import local
from tests.ranks import on_ranks, program_on, train_on
from tests.runs import same_model

# Mistakes and failures


def ends_with(message: str, size: int, *flags: object) -> None:
    """The run ends on all ranks with one line on the first one's stderr."""
    ends = on_ranks(size, program_on(*flags))
    assert [end.status for end in ends] == [2] * size, ends
    assert ends[0].err.startswith("error: ") and message in ends[0].err, ends
    assert ends[0].err.count("\n") == 1 and not any(end.err for end in ends[1:]), ends


def test_wrong_numbers_of_ranks(rows_for_ranks, program):
    flags = rows_for_ranks("sft")
    ends_with("--replicas is 3, must divide the number of processes, 4", 4, *flags, "--replicas", 3)
    line = "--device is cuda, but PyTorch finds no GPU; leave it out, or say cpu"
    assert line in program.fails(*flags, "--device", "cuda")
    assert "--device is tpu, must be cuda or cpu" in program.fails(*flags, "--device", "tpu")
    line = "--checkpointing is some, must be none or full"
    assert line in program.fails(*flags, "--checkpointing", "some")


def test_a_rank_without_a_gpu_says_so_itself(rows_for_ranks, monkeypatch):
    """The first rank may have one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def second_rank():
        os.environ |= {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
        program_on(*rows_for_ranks("sft"), "--out", "o")()

    [end] = on_ranks(1, second_rank)
    assert end.status == 2
    assert end.err == "error: rank 1: this machine has 1 GPUs, use --nproc-per-node 1\n"


def test_ranks_that_cannot_meet(rows_for_ranks):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def work():
            os.environ["MASTER_PORT"] = str(taken.getsockname()[1])
            program_on(*rows_for_ranks("sft"), "--out", "o")()

        [end] = on_ranks(1, work)
    assert end.status == 2 and end.err.splitlines()[-1].startswith("error: the ranks cannot meet: ")
    assert "address already in use" in end.err.lower()


def test_mistakes_and_a_dry_run_are_printed_once(rows_for_ranks):
    ends = on_ranks(2, program_on("mini-sft", "--epochs", "none"))
    assert [end.status for end in ends] == [2, 2] and ends[0].err.count("\n") == 1
    ends += on_ranks(2, program_on("mini-sft", "--dry-run"))
    assert "memory per GPU" in ends[2].out
    ends += on_ranks(2, program_on("mini-dpo", "--resume"))  # before its start is trained
    assert [end.status for end in ends[4:]] == [2, 2]
    assert ends[4].err == "error: runs/mini-dpo holds no run to resume\n"
    assert not any(end.out or end.err for end in ends[1::2])


def test_idle_ranks_are_named(rows_for_ranks):
    end = train_on(4, *rows_for_ranks("sft"), "--out", "o", "--steps", 1)
    steps, rows = map(int, re.search(r"plan: (\d+) steps, (\d+) rows", end.out).groups())
    assert steps * 3 - 2 <= rows <= steps * 3  # of four places each
    share = f"{1 - rows / (steps * 4):.0%}"
    assert f"warning: {share} of the work is empty rows, because 4 processes share steps" in end.out
    end = train_on(1, *rows_for_ranks("sft"), "--out", "p", "--steps", 1)
    assert "warning" not in end.out
    end = train_on(4, *rows_for_ranks("orpo"), "--out", "q", "--steps", 1)
    assert re.search(r"warning: .* of about \d.\d rows; --row-tokens cuts it into more", end.out)


def on_rank(number: int, work) -> None:
    """Does something on one rank only."""
    if int(os.environ.get("RANK", 0)) == number:
        work()


def test_a_loss_that_is_not_finite_on_one_rank_ends_all(rows_for_ranks, monkeypatch):
    """Each of them knows the row, whoever computed it."""
    sound = OBJECTIVES["sft"]

    def poisoned(model, row, counts, recipe):
        loss, values = sound(model, row, counts, recipe)
        on_rank(1, lambda: loss.data.fill_(float("nan")))
        return loss, values

    monkeypatch.setitem(OBJECTIVES, "sft", poisoned)
    ends_with("loss is nan in step 1, row ", 2, *rows_for_ranks("sft"), "--out", "o")


def test_weights_that_are_not_finite_on_one_rank_end_all(rows_for_ranks, monkeypatch):
    sound = train.require_finite_weights

    def poison(run, model, done):
        on_rank(1, lambda: local(model.lm_head.weight).data.fill_(float("inf")))
        sound(run, model, done)

    monkeypatch.setattr(train, "require_finite_weights", poison)
    flags = (*rows_for_ranks("sft"), "--out", "o", "--save-every", 2)
    ends_with("rank 1: lm_head.weight is not finite after step 2; no state had been", 2, *flags)


def test_a_rank_that_cannot_read_the_weights_ends_all(rows_for_ranks, monkeypatch):
    def broken(*settings, **more):
        on_rank(1, lambda: (_ for _ in ()).throw(OSError(5, "Input/output error", "model.st")))
        return sound(*settings, **more)

    sound = resume.load_model
    monkeypatch.setattr(resume, "load_model", broken)
    line = "rank 1: [Errno 5] Input/output error: 'model.st'"
    ends_with(line, 2, *rows_for_ranks("sft"), "--out", "o")


def test_a_full_disk_on_one_rank_ends_all_and_spares_the_older_state(
    rows_for_ranks, program, tmp_path, monkeypatch
):
    flags = (*rows_for_ranks("sft"), "--save-every", 1)
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


def test_a_signal_to_one_rank_stops_all_after_the_same_step(rows_for_ranks, program, tmp_path):
    flags = (*rows_for_ranks("sft"), "--save-every", 50)
    program(*flags, "--out", "straight")

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
