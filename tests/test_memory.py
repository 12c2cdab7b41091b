"""Memory per GPU: the estimate beside real ranks, and what people are told."""

import json
import re

import numpy as np
import pytest
import torch

from janus_min import memory
from janus_min.allocations import PARTS, Tracker
from janus_min.memory import GIB, Job, estimate, report, table, total
from janus_min.model import Policy, RewardModel, set_up_blocks
from janus_min.optim import make_optimizer
from janus_min.parallel import join, local
from janus_min.recipes import MISTRAL_7B, RECIPES
from janus_min.row import Example, build_row
from tests.conftest import tiny_config
from tests.ranks import on_ranks

CONFIG = tiny_config(
    vocab_size=1000,
    hidden_size=128,
    intermediate_size=320,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=64,
    num_hidden_layers=4,
)
TOKENS = 384


def measured(job):
    """The same parts, of two rows and an update of a real model on each of two real ranks."""

    def work():
        ranks, tracker = join("cpu"), Tracker()
        with torch.device("meta"):
            model = (RewardModel if job.reward else Policy)(job.config, "triton")
        ranks.prepare(model)
        for parameter in model.parameters():
            torch.nn.init.normal_(local(parameter), std=0.02)
        set_up_blocks(model, checkpointing=job.checkpointing == "full", compile=False)
        optimizer = make_optimizer(job.optimizer, model, weight_decay=0.0, beta2=0.999)
        parameters = list(model.parameters())
        ids = np.random.default_rng(0).integers(3, job.config.vocab_size, job.row_tokens)
        row = build_row([Example(ids[:1], (ids[1:],), "-")], None)
        tracker.claim([local(p) for p in parameters], "weights")
        with tracker:
            for _ in range(2):
                model(row).sum().backward()
                tracker.claim([local(p.grad) for p in parameters], "gradients")
        optimizer.step()
        states = [value for state in optimizer.state.values() for value in state.values()]
        size = {part: size / GIB for part, size in tracker.peak.items()}
        print(json.dumps(size | {"optimizer": sum(local(v).nbytes for v in states) / GIB}))

    ends = on_ranks(2, work)
    assert [end.status for end in ends] == [0, 0], ends
    return json.loads(ends[0].out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the ranks of the tests are on a CPU")
@pytest.mark.parametrize(
    ("reward", "checkpointing", "optimizer"),
    [(False, "none", "adamw"), (False, "full", "adamw8bit"), (True, "none", "adamw8bit")],
)
def test_the_estimate_is_what_two_real_ranks_allocate(reward, checkpointing, optimizer):
    """With the real kernels, interpreted, and gloo: each part within a few per cent."""
    job = Job(CONFIG, reward, TOKENS, optimizer, 2, 1, checkpointing, torch.float32)
    ours, theirs = estimate(job), measured(job)
    assert ours.keys() == theirs.keys() == set(PARTS)
    assert sum(ours.values()) == pytest.approx(sum(theirs.values()), rel=0.01)
    for part in ("weights", "gradients", "optimizer"):
        assert ours[part] == pytest.approx(theirs[part], rel=0.001), part
    assert ours["gathered"] == pytest.approx(theirs["gathered"], rel=0.05)
    assert ours["activations"] == pytest.approx(theirs["activations"], rel=0.03)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.2, abs=1e-7)


def test_parts_that_can_be_computed_by_hand():
    """Mistral-7B: 7.24 billion parameters of 4 bytes, divided among the ranks of one replica."""
    count = 7_241_732_096
    four = estimate(Job(MISTRAL_7B, False, 8192, "adamw", 4))
    assert four["weights"] == four["gradients"] == pytest.approx(count * 4 / 4 / GIB, rel=1e-3)
    assert four["optimizer"] == pytest.approx(count * 8 / 4 / GIB, rel=1e-3)
    # In bf16, embedding and head, and of one block or two the weights; in fp32 one's gradients.
    root, block = 2 * 32000 * 4096 / GIB, (four["weights"] - 2 * 32000 * 4096 / GIB) / 32
    assert 2 * root + 2 * block < four["gathered"] < 2 * root + 8 * block
    replicas = estimate(
        Job(MISTRAL_7B, False, 8192, "adamw8bit", 8, replicas=2, checkpointing="full")
    )
    assert replicas["weights"] == pytest.approx(four["weights"], rel=1e-3)
    assert 3.6 < four["optimizer"] / replicas["optimizer"] < 4  # norms and embedding are 32-bit
    # A block's input of 8,192 tokens in bf16 for each of 32 blocks, and one block's insides.
    inputs = 32 * 8192 * 4096 * 2 / GIB
    assert inputs < replicas["activations"] < inputs + 0.1 * four["activations"]
    assert replicas["activations"] < 0.1 * four["activations"]


def test_the_tracker_counts_each_storage_once_while_it_lives():
    tracker = Tracker()
    with tracker:
        first = torch.zeros(1000)
        assert tracker.now["activations"] == 4000
        view, second = first[:500], first + 1
        assert tracker.now["activations"] == 8000
        del first
        assert tracker.now["activations"] == 8000  # the view keeps it
        del view
        assert tracker.now["activations"] == 4000 and tracker.peak["activations"] == 8000
        second.untyped_storage().resize_(0)  # as FSDP empties gathered weights
        assert tracker.now["activations"] == 0
        second.untyped_storage().resize_(40_000)
        assert tracker.now["activations"] == tracker.peak["activations"] == 40_000
        tracker.claim([second], "weights")
        assert tracker.now["weights"] == 40_000 and tracker.now["activations"] == 0
    resize = torch.UntypedStorage.resize_
    assert resize.__name__ == "resize_"  # not watched any more


def test_what_a_dry_run_says(program):
    """Without data and model, memory alone; a flag that makes it fit, if it does not."""
    out = program("janus-7b", "--dry-run", "--world-size", 4)
    assert re.search(r"memory per GPU, in GiB: weights 6.7, gradients 6.7, optimizer 3.6, ", out)
    assert "on each of 4 GPUs (--checkpointing none, --optimizer adamw8bit)" in out
    assert "80 GB: fits" in out and "141 GB: fits" in out
    out = program("janus-rm-7b", "--dry-run", "--optimizer", "adamw8bit")
    assert re.search(r"80 GB: does not fit; with --checkpointing full it takes \d\d\.\d\n", out)


def test_what_makes_a_job_fit(monkeypatch):
    """The first of: checkpointing, 8-bit moments, both, more GPUs, shorter rows."""

    def pretend(job):
        size = 200.0 if job.checkpointing == "none" else 100.0
        size *= 1 if job.optimizer == "adamw" else 0.5
        return dict.fromkeys(PARTS, 0.0) | {"weights": size + 100 / job.world_size}

    monkeypatch.setattr(memory, "estimate", pretend)
    job = Job(CONFIG, False, TOKENS, "adamw", world_size=4)
    assert total(job) == 225 + memory.OVERHEAD
    assert memory.advice(job, 190) == "with --checkpointing full it takes 127.5"
    both = "with --checkpointing full --optimizer adamw8bit it takes 77.5"
    assert memory.advice(job, 80) == both
    more = "16 GPUs with --checkpointing full --optimizer adamw8bit need 58.8 each"
    assert memory.advice(job, 60) == more
    assert memory.advice(job, 50) == "fewer --row-tokens than 384 are needed"
    full = "with --checkpointing full it takes 127.5"
    assert report(job)[-2:] == [f"80 GB: does not fit; {both}", f"141 GB: does not fit; {full}"]


def test_the_table_has_every_7b_recipe(monkeypatch):
    monkeypatch.setattr(memory, "estimate", lambda job: {"weights": 96.0 / job.world_size})
    lines = table(MISTRAL_7B)
    names = [name for name, recipe in RECIPES.items() if not recipe.miniature]
    assert [re.match(r"\| `([\w-]+)`", line)[1] for line in lines[2:]] == names
    assert lines[0] == "| recipe | 1 GPU | 4 GPUs | 8 GPUs | 64 GPUs |"
    assert lines[2] == "| `janus-7b`, adamw8bit | 98 / 98 | 26 / 26 | 14 / 14 | 4 / 4 |"


def test_what_computes_nothing_is_gone_after_an_estimate(program):
    program("mini-sft", "--dry-run")
    assert torch.nn.functional.rms_norm.__module__ == "torch.nn.functional"


def test_wrong_sizes(program, start):
    flags = ("janus-7b", "--dry-run", "--world-size", 4, "--replicas", 3)
    assert "--replicas is 3, must divide --world-size, 4" in program.fails(*flags)
    line = "--world-size goes with --dry-run; torchrun says how many processes train"
    assert line in program.fails("janus-7b", "--world-size", 4)
    assert "--world-size is 0, must be at least 1" in program.fails("janus-7b", "--world-size", 0)
    assert "needs --model DIR" in program.fails("janus-7b", "--dry-run", "--show-rows", 2)
    out = program("janus-7b", "--dry-run", "--model", start, "--world-size", 2)
    assert "weights 0.0," in out  # the start model's shapes, not Mistral's
    (start / "config.json").write_text("{")
    assert "config.json is not valid JSON" in program.fails(
        "janus-7b", "--dry-run", "--model", start
    )
