"""The kernels within the model: training, several ranks, compilation, memory, generation."""

import json
from collections import defaultdict

import pytest
import torch

from janus_min import device
from janus_min import model as model_module
from janus_min.allocations import WORKSPACES, Tracker
from janus_min.checkpoint import load_model, save_model
from janus_min.engine import generate
from janus_min.errors import UserError
from janus_min.model import Policy, set_up_blocks
from janus_min.row import Example, build_row
from janus_min.sampling import Request, Sampling
from kernels import attention as attention_module
from kernels import launch
from kernels import linear_cross_entropy as head
from kernels.launch import Launch, Launches
from tests.conftest import random_examples, random_pairs, tiny_policy, tiny_reward_model
from tests.peers import transformers
from tests.ranks import train_on
from tests.runs import RECIPES, metrics, same_model, same_numbers
from tests.test_triton_attention import DEVICE, LAYOUTS, random_inputs
from tests.test_triton_head import random_head

WIDE = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=64)
EXACT = DEVICE == "cpu"  # on a GPU runs compute in bf16


@pytest.fixture
def wide(rows_for_ranks, tmp_path, world):
    """The arguments of a run that starts from a model with heads of 64."""
    policy = tiny_policy(vocab_size=2048, hidden_size=32, max_position_embeddings=64, **WIDE)
    save_model(policy, tmp_path / "wide", world, torch.float32)
    return lambda objective: (*rows_for_ranks(objective), "--model", tmp_path / "wide")


@pytest.mark.parametrize("objective", RECIPES)
def test_a_run_is_the_same_with_either_implementation(objective, wide, program, tmp_path):
    """Losses, metrics and gradient norms of each step, held-out ones too, and the final weights."""
    for impl in ("torch", "triton"):
        out = program(*wide(objective), "--impl", impl, "--out", impl)
        assert f"on {DEVICE}, kernels: {impl}, out: {impl}\n" in out
        assert json.loads((tmp_path / impl / "recipe.json").read_text())["kernels"] == impl
    assert len(metrics(tmp_path / "torch")) >= 4
    for ours, theirs in zip(metrics(tmp_path / "triton"), metrics(tmp_path / "torch")):
        same_numbers(ours, theirs, rel=2e-5 if EXACT else 2e-2)
    if EXACT:
        same_model(tmp_path / "triton", tmp_path / "torch", rtol=1e-4, atol=5e-5)


@pytest.mark.skipif(DEVICE == "cuda", reason="the ranks of the tests are on a CPU")
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_two_ranks_with_checkpointing_train_the_same_model(objective, wide, program, tmp_path):
    """Under FSDP2 the kernels get gathered weights, and activations that are computed again."""
    program(*wide(objective), "--out", "one")
    assert json.loads((tmp_path / "one" / "recipe.json").read_text())["kernels"] == "torch"
    flags = ("--impl", "triton", "--checkpointing", "full", "--out", "two")
    train_on(2, *wide(objective), *flags)
    for ours, theirs in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one")):
        same_numbers(ours, theirs, rel=2e-5)
    same_model(tmp_path / "two", tmp_path / "one", rtol=1e-4, atol=5e-5)


def test_kernels_run_where_they_are_asked_for(monkeypatch):
    """Both kernels, and no other implementation; tables are built once for all layers."""
    policy = tiny_policy("triton", num_hidden_layers=3, **WIDE).to(DEVICE)
    row = build_row(random_pairs(2), 7).to(DEVICE)
    made = []
    make = model_module.tile_tables
    monkeypatch.setattr(model_module, "tile_tables", lambda *a: made.append(a) or make(*a))
    for module in (attention_module, head):
        others = dict.fromkeys(module.IMPLEMENTATIONS.keys() - {"triton"})
        monkeypatch.setattr(module, "IMPLEMENTATIONS", module.IMPLEMENTATIONS | others)
    policy(row).sum().backward()
    assert len(made) == 1
    assert all(p.grad.abs().sum() > 0 for p in policy.parameters())


def test_a_compiled_block_is_one_graph():
    """Without a graph break, and with the results of the block that is not compiled."""
    row = build_row(random_examples(3), None).to(DEVICE)
    results = []
    for compiled in (False, True):
        policy = tiny_policy("triton", **WIDE).to(DEVICE)
        set_up_blocks(policy, checkpointing=False, compile=False)
        if compiled:
            for block in policy.model.layers:
                block.compute = torch.compile(block.compute, backend="aot_eager", fullgraph=True)
        loss = policy(row).sum()
        loss.backward()
        results.append((loss.item(), [p.grad for p in policy.parameters()]))
    (loss, gradients), (again, others) = results
    assert again == pytest.approx(loss, rel=1e-6)
    for ours, theirs in zip(others, gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_rows_of_all_lengths_share_a_compiled_graph(monkeypatch):
    """Nor does it depend on how many tiles there are."""
    blocks = Launch(16, 16, 4, 2)
    monkeypatch.setattr(launch, "LARGE", Launches(blocks, blocks, blocks))
    policy = tiny_policy("triton", num_hidden_layers=1, **WIDE).to(DEVICE)
    [block] = policy.model.layers
    torch._dynamo.reset()
    block.compute = torch.compile(block.compute, backend="aot_eager", fullgraph=True)
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for tokens in (20, 27, 35, 50, 70, 81, 100):
        ids = torch.arange(3, tokens) % 90 + 3
        row = build_row([Example(ids[:1].numpy(), (ids[1:].numpy(),), "-")], None).to(DEVICE)
        policy(row).sum().backward()
    assert graphs["unique_graphs"] - before <= 3


def test_set_up_blocks_compiles_attention_too():
    """With other implementations it is left out: they depend on where documents end."""
    for impl, attends in [("triton", True), ("torch", False)]:
        policy = tiny_policy(impl, **WIDE)
        set_up_blocks(policy, checkpointing=False, compile=True)
        attention = policy.model.layers[0].self_attn.attention
        assert (attention is attention_module.attention) == attends


@pytest.mark.parametrize("make", [tiny_policy, tiny_reward_model])
@pytest.mark.parametrize("window", [None, 6])
def test_models_agree_with_the_specification(make, window):
    row = build_row(random_pairs(4), window).to(DEVICE)
    results = []
    for impl in ("reference", "triton"):
        model = make(impl, sliding_window=window, **WIDE).to(DEVICE)
        out = model(row)
        out.square().sum().backward()
        results.append([out.detach(), *[p.grad for p in model.parameters()]])
    for ours, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("window", [None, 9])
def test_log_probabilities_and_gradients_are_those_of_transformers(window, tmp_path, world):
    """The same checkpoint, and two packed documents there one by one."""
    policy = tiny_policy(vocab_size=2048, sliding_window=window, **WIDE)
    save_model(policy, tmp_path / "saved", world, torch.float32)
    theirs = transformers.MistralForCausalLM.from_pretrained(
        tmp_path / "saved", dtype=torch.float32, attn_implementation="eager"
    )
    ours = load_model(Policy, tmp_path / "saved", impl="triton").to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 2048, (n,), generator=generator) for n in (25, 14)]
    examples = [Example(t[:1].numpy(), (t[1:].numpy(),), "-") for t in texts]
    logps = ours(build_row(examples, window).to(DEVICE)).cpu()
    logps[logps != 0].sum().backward()
    wanted = []
    for text in texts:
        all_logps = theirs(text[None]).logits[0, :-1].log_softmax(-1)
        wanted.append(all_logps.gather(1, text[1:, None])[:, 0])
    torch.cat(wanted).sum().backward()
    torch.testing.assert_close(logps[logps != 0], torch.cat(wanted), rtol=1e-5, atol=1e-5)
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        found = gradients[name].grad.cpu()
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-4)


def test_generation_fills_its_cache_with_the_kernels():
    """The same tokens; decoding, where there is no row, has no tables."""
    requests = [Request([1, 5, 9, 33]), Request([1, 7]), Request([1, 80, 3, 2, 11, 40])]
    sampling = Sampling(temperature=0.0, max_tokens=8)
    policies = [tiny_policy(impl, **WIDE).to(DEVICE) for impl in ("torch", "triton")]
    answers = [generate(policy, requests, sampling) for policy in policies]
    assert [a.ids for a in answers[0]] == [a.ids for a in answers[1]]


# Choosing


def test_the_implementation_is_chosen_by_device_and_head_width(monkeypatch):
    assert device.pick_impl("cuda", 128) == device.pick_impl("cuda", 64) == "triton"
    assert device.pick_impl("cuda", 32) == device.pick_impl("cpu", 128) == "torch"
    assert device.pick_impl("cuda", 128, "reference") == "reference"
    with pytest.raises(UserError, match="needs heads of 64 or 128; the model's are 32 wide"):
        device.pick_impl("cuda", 32, "triton")
    monkeypatch.setattr(device, "INTERPRETED", False)
    with pytest.raises(UserError, match="--impl is triton, which needs a GPU; leave it out, or"):
        device.pick_impl("cpu", 128, "triton")
    monkeypatch.setattr(device, "triton", None)
    assert device.pick_impl("cuda", 128) == "torch"
    with pytest.raises(UserError, match="but the package triton is not installed"):
        device.pick_impl("cuda", 128, "triton")


def test_train_says_in_one_line_why_there_are_no_kernels(rows_for_ranks, program, monkeypatch):
    flags = (*rows_for_ranks("sft"), "--device", "cpu", "--impl")
    assert "which needs heads of 64 or 128; the model's are 4 wide" in program.fails(
        *flags, "triton"
    )
    monkeypatch.setattr(device, "INTERPRETED", False)
    assert "--impl is triton, which needs a GPU" in program.fails(*flags, "triton")
    assert "--impl is flash, must be reference or torch or triton" in program.fails(*flags, "flash")


# Memory


def test_an_estimate_counts_what_kernels_say():
    """The results of the head and what it needs besides, as the loss's."""
    (hidden, weight), _, targets = random_head(40)
    tracker = Tracker()
    tracker.claim([hidden, weight, targets], "weights")
    with torch.no_grad(), tracker:
        results = head._token_logps(hidden, weight, targets)
    said = WORKSPACES[head._token_logps._opoverload](hidden, weight, targets)
    assert tracker.peak["loss"] == said + sum(result.nbytes for result in results)
    assert tracker.peak["activations"] == 0
    assert tracker.now["loss"] == sum(result.nbytes for result in results)


def test_kernels_allocate_what_they_say(monkeypatch):
    """What they need besides their results, seen from within: one slice of logits at a time.

    Nothing is launched: the interpreter keeps what it was given until Python collects its cycles.
    """
    idle = defaultdict(lambda: lambda *arguments, **options: None)
    for module, names in (
        (head, ("_absorb", "_differentiate")),
        (attention_module, ("_forward", "_backward_q", "_backward_kv")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, idle)
    monkeypatch.setattr(head, "SLICE_LOGITS", 200 * 8064)
    (hidden, weight), upstream, _ = random_head(200, 64, 32_000, torch.float16)
    targets = torch.arange(200, device=DEVICE)
    _, lse = head._token_logps(hidden, weight, targets)
    inputs, do = random_inputs(150)
    tables = attention_module.tile_tables(LAYOUTS["window"].to(DEVICE), do.dtype)
    o, base = attention_module._attention(*inputs, *tables)
    calls = [
        (head._token_logps, (hidden, weight, targets)),
        (head._token_logps_backward, (upstream, hidden, weight, targets, lse)),
        (attention_module._attention_backward, (do, *inputs, o, base, *tables)),
    ]
    for operation, arguments in calls:
        tracker = Tracker()
        tracker.claim(list(arguments), "weights")
        with torch.no_grad(), tracker:
            results = operation._init_fn(*arguments)
        outside = sum(tensor.nbytes for tensor in (*arguments, *results))
        within = sum(tracker.peak.values()) - outside
        said = WORKSPACES[operation._opoverload](*arguments)
        assert said == pytest.approx(within, rel=0.03), operation
