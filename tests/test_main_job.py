"""The miniatures, trained for real: what the README says of them."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from janus_min.mini_data import SPLITS, showcase_sets
from janus_min.world import judge, true_sentences
from tests.programs import ROOT, environment

UNSEEN = SPLITS[1]
# Those of a chain start from one another. The longest come first.
CHAINS = (
    ("mini-sft-small", "mini-dpo"),
    ("mini-sft", "mini-rm"),
    ("mini-base", "mini-orpo", "mini-sft-chosen"),
    ("mini-uniform",),
)
LESS = {"mini-uniform": ("--epochs", 6)}  # three quarters of its recipe show the same


def run_program(directory: Path, name: str, *arguments: object) -> str:
    """Runs a program in a process of its own. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, ROOT / name, *map(str, arguments)],
        cwd=directory,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Where all of them are trained, because some start from others."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def printed(home) -> dict[str, str]:
    """What the training of each miniature printed. Two processes of one thread each do more in the
    same time than one of two threads."""

    def train(chain: tuple[str, ...]) -> dict[str, str]:
        return {name: run_program(home, "train.py", name, *LESS.get(name, ())) for name in chain}

    assert "2,880 rows: 960 instructions" in run_program(home, "datagen.py")
    with ThreadPoolExecutor(2) as pool:
        return {name: out for part in pool.map(train, CHAINS) for name, out in part.items()}


def scores(out: str) -> dict[str, tuple[float, float]]:
    """Of each split: the mean grade, and the share of true sentences in per cent."""
    lines = re.findall(
        r"^([a-z ]+): (\d\.\d\d) of 5 .* ([\d.]+) % of their sentences true", out, re.M
    )
    return {split: (float(grade), float(share)) for split, grade, share in lines}


def test_many_system_messages_make_a_model_follow_ones_that_it_never_saw(home, printed, tmp_path):
    janus = scores(printed["mini-sft"])
    assert janus["trained combinations"][0] >= 4.5 and janus["unseen combinations"][0] >= 4.5
    assert janus["unseen wordings"][0] >= 4
    assert all(share >= 95 for _, share in janus.values())
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mini-sft").symlink_to(home / "runs/mini-sft")  # here it is the newest model
    assert scores(run_program(tmp_path, "evaluate.py")) == janus

    answers = re.split(r"\nprompt: (.*)\n\n", run_program(tmp_path, "generate.py"))
    responses = [text.split("\nsystem: ")[0].strip() for text in answers[2::2]]
    assert len(set(responses)) == 3
    for response, preferences in zip(responses, showcase_sets(), strict=True):
        grades = [judge(preference, "volcanoes", response) for preference in preferences]
        right, total = true_sentences("volcanoes", response)
        assert sum(grades) >= 18 and right == total, response


def test_one_system_message_does_not_although_that_model_tells_the_truth(printed):
    uniform = scores(printed["mini-uniform"])
    for split in SPLITS:
        grade, share = uniform[split]
        assert grade <= 3.5 and share >= 90, split
    assert sum(uniform[split][1] for split in SPLITS) / 3 >= 95
    assert uniform["under its own system message"][1] >= 95


def test_dpo_raises_the_score_of_its_start(printed):
    start, dpo = scores(printed["mini-sft-small"]), scores(printed["mini-dpo"])
    assert 3.5 <= start[UNSEEN][0] <= 4.5  # a third of the responses leaves room
    assert dpo[UNSEEN][0] > start[UNSEEN][0] and dpo[UNSEEN][1] >= 95


def test_orpo_is_at_least_sft_on_the_same_chosen_responses(printed):
    orpo, chosen = scores(printed["mini-orpo"]), scores(printed["mini-sft-chosen"])
    assert orpo[UNSEEN][0] >= chosen[UNSEEN][0] >= 3 and orpo[UNSEEN][1] >= 95


def test_the_reward_model_ranks_nine_of_ten_held_out_pairs_right(printed):
    right = re.search(r"held-out pairs: ([\d.]+)% of 300 ranked right", printed["mini-rm"])
    assert float(right[1]) >= 90
