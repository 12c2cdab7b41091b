"""Small real things that the tests share: tokenizers, checkpoints, rows."""

import gc
import os
import shutil
import signal
from pathlib import Path

# A shell that starts us in the background has us, and what we start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On tensors this small a second thread only waits. Read by torch, here and in started programs.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are imported, below

import evaluate
import train
from janus_min import client
from janus_min.checkpoint import save_model
from janus_min.config import ModelConfig
from janus_min.model import Policy, RewardModel, initialise
from janus_min.recipes import Recipe
from janus_min.row import Example
from janus_min.tokenizer import Tokenizer
from tests import servers
from tests.programs import Program
from tests.runs import RECIPES, write_data, write_pairs

LONGEST = "main_job resume triton_attention triton_runs ahead_of_time memory train torchrun sharded"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """All tests run in several processes at once; some of them in this one, which starts sooner.
    Three are enough: the main job, which trains in two processes of its own, takes longest."""
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(os.cpu_count(), 3) if everything and not config.option.keyword else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: nobody waits for them in the end."""
    order = {f"test_{name}.py": i for i, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """What is there before a file's tests is left out when Python searches for cycles: the
    libraries alone have half a million objects, and reference.py has it search for each run."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """As Python ends it frees what libraries would otherwise call leaked."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def mistral_tokenizer_file() -> Path:
    """The SentencePiece model of Mistral-7B v0.1 and v0.2, which mistral-common carries."""
    mistral_common = pytest.importorskip("mistral_common")
    return Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


@pytest.fixture(scope="session")
def mistral_tokenizer(mistral_tokenizer_file: Path) -> Tokenizer:
    return Tokenizer(mistral_tokenizer_file)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """The miniature's files, tokenizer included."""
    from janus_min.mini_data import write_world

    directory = tmp_path_factory.mktemp("world")
    write_world(directory)
    return directory


@pytest.fixture
def poison():
    """Memory that nobody has written is NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def tiny_config(**changes) -> ModelConfig:
    values = dict(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        sliding_window=None,
    )
    return ModelConfig(**(values | changes))


def tiny_policy(impl: str = "torch", dtype: torch.dtype = torch.float32, **changes) -> Policy:
    """A random model whose attention is not flat: weights ten times larger than at the start."""
    return _tiny(Policy, impl, dtype, changes)


def tiny_reward_model(
    impl: str = "torch", dtype: torch.dtype = torch.float32, **changes
) -> RewardModel:
    """The same with a head of one number."""
    return _tiny(RewardModel, impl, dtype, changes)


def _tiny(kind: type, impl: str, dtype: torch.dtype, changes: dict) -> Policy | RewardModel:
    model = kind(tiny_config(**changes), impl)
    initialise(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return model.to(dtype)


def random_examples(
    count: int, seed: int = 0, vocabulary: int = 97, longest: int = 12, responses: int = 1
) -> list[Example]:
    """Examples of random ids: prompts and responses of 1 to `longest` tokens."""
    random = np.random.default_rng(seed)
    examples = []
    for line in range(1, count + 1):
        prompt, *own = (
            random.integers(3, vocabulary, n).astype(np.int32)
            for n in random.integers(1, longest + 1, 1 + responses)
        )
        prompt[0] = 1
        for response in own:
            response[-1] = 2
        examples.append(Example(prompt, tuple(own), f"data.jsonl:{line}"))
    return examples


def random_pairs(count: int, seed: int = 0, vocabulary: int = 97, longest: int = 12):
    """Examples with two responses, the chosen and the rejected."""
    return random_examples(count, seed, vocabulary, longest, responses=2)


OWN_FIELDS = {  # what the recipes of each objective must say
    "sft": dict(rows_per_step=4),
    "dpo": dict(pairs_per_step=4, share_prompt=True, beta=0.3),
    "orpo": dict(pairs_per_step=4, share_prompt=True, lambda_or=0.3, nll_on_prompt=False),
    "reward": dict(pairs_per_step=4, share_prompt=True, legacy_space=False, restart_head=True),
}


def tiny_recipe(objective: str, **changes) -> Recipe:
    """A recipe of this objective."""
    return Recipe(objective=objective, **(OWN_FIELDS[objective] | changes))


def save_tiny(path: Path, tokenizer: Path, scale: float = 1.0) -> Path:
    """A random Mistral with the tokenizer of the miniature; `scale` makes it another one."""
    policy = tiny_policy(vocab_size=2048, hidden_size=16, head_dim=4, max_position_embeddings=64)
    policy.lm_head.weight.data.mul_(scale)
    save_model(policy, path, tokenizer, torch.float32)
    return path


@pytest.fixture
def rough(monkeypatch):
    """Faults that take no time, and short waits."""
    monkeypatch.setattr(client, "wait_before", lambda attempt, asked: 0.02)
    monkeypatch.setattr(servers, "FAULTS", {kind: servers.FAULTS[kind] for kind in servers.PASSING})


@pytest.fixture
def program(monkeypatch, capsys, tmp_path) -> Program:
    """train.py in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return Program(train.main, monkeypatch, capsys)


@pytest.fixture
def evaluated(monkeypatch, capsys, tmp_path) -> Program:
    """evaluate.py in a folder of its own, without a key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return Program(evaluate.main, monkeypatch, capsys)


@pytest.fixture
def start(tmp_path, mistral_tokenizer_file) -> Path:
    """A random Mistral with the real tokenizer, in a Hugging Face directory."""
    (tmp_path / "tokenizer").mkdir()
    shutil.copy(mistral_tokenizer_file, tmp_path / "tokenizer" / "tokenizer.model")
    policy = tiny_policy(vocab_size=32000, hidden_size=16, head_dim=4, max_position_embeddings=64)
    save_model(policy, tmp_path / "start", tmp_path / "tokenizer", torch.float32)
    return tmp_path / "start"


@pytest.fixture
def small(start, tmp_path) -> tuple:
    """The arguments of a run of 12 short steps."""
    data = write_data(tmp_path / "data.jsonl")
    flags = ("--row-tokens", 64, "--rows-per-step", 1, "--learning-rate", 1e-2, "--save-every", 2)
    return ("janus-7b", "--model", start, "--data", data, *flags)


@pytest.fixture
def rows_for_ranks(tmp_path, world, monkeypatch):
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
