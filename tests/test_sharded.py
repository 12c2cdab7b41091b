"""What ranks read and write: their own rows of a model, and states that move between them."""

import json
import time
from pathlib import Path

import pytest
import torch

from janus_min import checkpoint
from janus_min.checkpoint import load_model, save_model
from janus_min.model import Policy, RewardModel
from janus_min.parallel import join, local, own_rows, whole
from janus_min.row import build_row
from tests.conftest import (
    random_examples,
    tiny_policy,
    tiny_reward_model,
)
from tests.peers import transformers
from tests.programs import Program
from tests.ranks import on_ranks, train_on
from tests.runs import metrics, same_model, same_numbers

# Loading and saving


def test_each_rank_reads_its_own_rows_and_writes_a_whole_model(tmp_path, world):
    """4 ranks, 2,049 rows and 1 row; nothing of a rank's is left unfilled, no piece that is read is
    larger than its share."""
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
    objective, optimizer, rows_for_ranks, program, tmp_path
):
    """Two ranks, one process, four ranks, three: the same data in order, and equal weights."""
    flags = (*rows_for_ranks(objective), "--save-every", 2, "--optimizer", optimizer)
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


# A state becomes a model directory


@pytest.mark.parametrize(("objective", "size"), [("sft", 3), ("reward", 2), ("dpo", None)])
def test_a_state_of_any_number_of_ranks_is_exported(
    objective, size, rows_for_ranks, program, tmp_path, monkeypatch, capsys
):
    """Without the start model or the run: bf16 weights and tokenizer, as a run itself exports."""
    flags = (*rows_for_ranks(objective), "--out", "o")
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
    if objective == "sft":  # what transformers makes of it
        hf = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "exported", dtype=torch.float32
        )
        row = build_row(random_examples(1), None)
        logits = hf(row.inputs[None]).logits[0].log_softmax(-1)
        scored = row.targets >= 0
        logps = logits.gather(1, row.targets.clamp(min=0)[:, None])[:, 0]
        policy = load_model(Policy, tmp_path / "exported", impl="torch")
        torch.testing.assert_close(policy(row)[scored], logps[scored], rtol=1e-5, atol=1e-5)
    written, wanted = (tmp_path / name / tokenizer for name in ("exported", "start"))
    assert written.read_bytes() == wanted.read_bytes()


def test_what_cannot_be_exported(rows_for_ranks, program, tmp_path, monkeypatch, capsys):
    program(*rows_for_ranks("sft"), "--out", "o")
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


def test_a_state_of_another_architecture_is_not_resumed(rows_for_ranks, program, world):
    flags = rows_for_ranks("sft")
    program(*flags, "--out", "o", "--steps", 1)
    other = tiny_policy(vocab_size=2048, hidden_size=32, head_dim=8, max_position_embeddings=64)
    save_model(other, Path("other"), world, torch.float32)
    flags = [*flags, "--out", "o", "--resume", "--model", "other"]
    assert "the config differs, the start model differs" in program.fails(*flags)
