"""One run on several ranks: real FSDP2 over gloo, in processes that are killed if they hang."""

import json
import os
import re

import numpy as np
import pytest
import torch

from janus_min import parallel
from janus_min.checkpoint import load_model, save_model
from janus_min.engine import generate
from janus_min.model import Policy, RewardModel, initialise, initialise_head, set_up_blocks
from janus_min.objectives import OBJECTIVES, Counts
from janus_min.parallel import Ranks, join, local, rows_of_shard, whole
from janus_min.row import build_row
from janus_min.sampling import Request, Sampling
from tests.conftest import (
    random_examples,
    random_pairs,
    save_tiny,
    tiny_policy,
    tiny_recipe,
    tiny_reward_model,
)
from tests.ranks import on_ranks, program_on, train_on
from tests.runs import RECIPES, metrics, same_model, same_numbers, write_data

# Who does what


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_items_are_dealt_once_equally_many_to_each_and_balanced(size):
    """A rank's k-th item is about as large as the others' k-th: they wait for it."""
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
    objective, rows_for_ranks, program, tmp_path, monkeypatch
):
    """Losses, metrics, held-out metrics, every gradient of each step, the norm by which it is
    clipped, final weights: one process without FSDP, and 1, 2, 3 and 4 ranks; 3 divides neither
    the vocabulary nor the widths."""
    flags = (*rows_for_ranks(objective), "--max-grad-norm", 0.5)
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


def test_replicas_train_the_same_model(rows_for_ranks, program, tmp_path):
    """Two groups of two: weights are divided by two, gradients are summed over four."""
    flags = rows_for_ranks("orpo")
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
    """Only what enters a block is kept, by the layer and not by its parts."""
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


def test_compiled_and_checkpointed_blocks_train_the_same_model(
    rows_for_ranks, program, tmp_path, world
):
    """Code is compiled once for all nine blocks, and not for each layout of a row."""
    sizes = dict(vocab_size=2048, hidden_size=16, head_dim=4, max_position_embeddings=64)
    save_model(tiny_policy(num_hidden_layers=9, **sizes), tmp_path / "deep", world, torch.float32)
    flags = (*rows_for_ranks("sft"), "--model", tmp_path / "deep", "--steps", 2)
    flags += ("--row-tokens", 64, "--rows-per-step", 20, "--max-tokens", 64)
    write_data(tmp_path / "data.jsonl", 40)
    program(*flags, "--out", "plain")
    both = ("--compile", "--checkpointing", "full")

    def compiled():
        try:
            program_on(*flags, "--out", "compiled", *both)()
        finally:
            print(f"graphs: {torch._dynamo.utils.counters['stats']['unique_graphs']}")

    [end] = on_ranks(1, compiled, seconds=300)
    assert end.status == 0, end
    # Before and behind attention, with a gradient and without, for one length and then for any: 12
    # in torch 2.13. With attention compiled for each layout they are 36.
    assert 2 <= int(re.search(r"graphs: (\d+)", end.out)[1]) < 24
    for ours, theirs in zip(metrics(tmp_path / "compiled"), metrics(tmp_path / "plain")):
        same_numbers(ours, theirs, rel=1e-4)
    same_model(tmp_path / "compiled", tmp_path / "plain", rtol=1e-4, atol=1e-5)


# bf16, as on a GPU


@pytest.mark.parametrize("objective", RECIPES)
def test_bf16_rows_of_a_fixed_length_as_on_a_gpu(objective, tmp_path, world, monkeypatch):
    """What a GPU run uses, through the real FSDP: blocks, embedding and head in
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
    """One rank would wait for another's longer answer."""
    save_tiny(tmp_path / "model", world)

    def work():
        policy = load_model(Policy, tmp_path / "model", impl="torch", ranks=join("cpu"))
        with pytest.raises(ValueError, match="divided among ranks"):
            generate(policy, [Request(np.array([1, 5]), 0)], Sampling())

    assert [end.status for end in on_ranks(1, work)] == [0]
