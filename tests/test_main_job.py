"""The miniatures, trained for real, and the paper's tables made of them: what the README says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from janus_min.mini_benches import showcase_sets
from janus_min.mini_data import SPLITS
from janus_min.mini_tables import MODELS
from janus_min.world import judge, true_sentences
from tests.programs import ROOT, environment

UNSEEN = SPLITS[1]


def run_program(directory: Path, *command: object) -> str:
    """Runs Python in a process of its own. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=directory,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The folder of one run of everything."""
    home = tmp_path_factory.mktemp("home")
    run_program(home, "-m", "janus_min.miniature", "--out", "paper")
    assert "2,880 rows: 960 instructions" in (home / "paper/logs/datagen.log").read_text()
    return home / "paper"


@pytest.fixture(scope="module")
def printed(home) -> dict[str, str]:
    """What the training of each miniature printed."""
    logs = {path.stem: path.read_text() for path in (home / "seed-42" / "logs").glob("*.log")}
    return {name: logs[name] for name in (*MODELS, "mini-rm")}


@pytest.fixture(scope="module")
def numbers(home) -> dict:
    """What the tables are made of."""
    [run] = json.loads((home / "tables.json").read_text())["runs"]
    return run


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
    (tmp_path / "runs/mini-sft").symlink_to(home / "seed-42/mini-sft")  # the newest model here
    assert scores(run_program(tmp_path, ROOT / "evaluate.py")) == janus

    answers = re.split(r"\nprompt: (.*)\n\n", run_program(tmp_path, ROOT / "generate.py"))
    responses = [text.split("\nsystem: ")[0].strip() for text in answers[2::2]]
    assert len(set(responses)) == 3
    for response, preferences in zip(responses, showcase_sets(), strict=True):
        grades = [judge(preference, "volcanoes", response) for preference in preferences]
        right, total = true_sentences("volcanoes", response)
        assert sum(grades) >= 18 and right == total, response


def test_one_system_message_does_not_although_that_model_tells_the_truth(printed, numbers):
    uniform = scores(printed["mini-uniform"])
    for split in SPLITS:
        grade, share = uniform[split]
        assert grade <= 3.5 and share >= 90, split
    assert sum(uniform[split][1] for split in SPLITS) / 3 >= 95
    assert uniform["under its own system message"][1] >= 95
    grades = numbers["grades"]
    assert grades["mini-sft"][UNSEEN] >= grades["mini-uniform"][UNSEEN] + 1
    assert numbers["tie_win"]["mini-sft"] >= 0.9


def test_dpo_raises_the_score_of_its_start(printed):
    start, dpo = scores(printed["mini-sft-small"]), scores(printed["mini-dpo"])
    assert 3.5 <= start[UNSEEN][0] <= 4.5  # a sixth of the responses leaves room
    assert dpo[UNSEEN][0] > start[UNSEEN][0] and dpo[UNSEEN][1] >= 95


def test_orpo_is_at_least_sft_on_the_same_chosen_responses(printed):
    orpo, chosen = scores(printed["mini-orpo"]), scores(printed["mini-sft-chosen"])
    assert orpo[UNSEEN][0] >= chosen[UNSEEN][0] >= 3 and orpo[UNSEEN][1] >= 95


def test_dpo_and_orpo_tell_held_out_pairs_apart(home):
    """Those of unseen combinations, after the last step."""
    for name, least in (("mini-dpo", 0.95), ("mini-orpo", 0.9)):
        lines = (home / "seed-42" / name / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["eval_rewards/accuracies"] >= least, name


def test_the_reward_model_ranks_nine_of_ten_held_out_pairs_right(printed):
    right = re.search(r"held-out pairs: ([\d.]+)% of 300 ranked right", printed["mini-rm"])
    assert float(right[1]) >= 90


def test_the_best_of_many_is_better_than_the_only_one(numbers):
    best = numbers["best_of"]
    assert best["4"] > best["1"] and best["16"] > best["1"]


def test_answers_under_different_system_messages_differ_where_they_should(numbers):
    """As much as the teacher's; those of the model of one system message are more alike."""
    alike = {key: found["average"] for key, found in numbers["rouge_l"].items()}
    assert abs(alike["mini-sft"] - alike["teacher"]) < 0.05
    assert alike["mini-uniform"] > alike["mini-sft"] + 0.1


def test_grades_over_http_are_those_that_training_printed(printed, numbers):
    """The same answers, by train.py's own judge and by generate.py and evaluate.py."""
    for key in MODELS:
        found = scores(printed[key])
        assert found.keys() >= {*SPLITS}, key
        for split, (grade, _) in found.items():
            if split in SPLITS:
                assert numbers["grades"][key][split] == pytest.approx(grade, abs=0.0051), key
