"""The miniatures, trained for real: what the README says of them."""

import re
import subprocess
import sys

from janus_min.miniature import SPLITS, showcase_sets
from janus_min.world import judge, true_sentences
from tests.programs import ROOT, environment


def run_program(directory, name, *arguments):
    """Runs a program in a process of its own. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, ROOT / name, *arguments],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def scores(out):
    """Of each split: the mean grade, and the share of true sentences in per cent."""
    lines = re.findall(
        r"^([a-z ]+): (\d\.\d\d) of 5 .* ([\d.]+) % of their sentences true", out, re.M
    )
    return {split: (float(grade), float(share)) for split, grade, share in lines}


def test_the_main_job(tmp_path):
    """Training on many system messages makes a model follow ones that it never saw; training on
    one does not, although that model tells the truth."""
    assert "2,880 rows: 960 instructions" in run_program(tmp_path, "datagen.py")
    janus = scores(run_program(tmp_path, "train.py"))
    assert janus["trained combinations"][0] >= 4.5 and janus["unseen combinations"][0] >= 4.5
    assert janus["unseen wordings"][0] >= 4
    assert all(share >= 95 for _, share in janus.values())
    assert scores(run_program(tmp_path, "evaluate.py")) == janus

    answers = re.split(r"\nprompt: (.*)\n\n", run_program(tmp_path, "generate.py"))
    responses = [text.split("\nsystem: ")[0].strip() for text in answers[2::2]]
    assert len(set(responses)) == 3
    for response, preferences in zip(responses, showcase_sets(), strict=True):
        grades = [judge(preference, "volcanoes", response) for preference in preferences]
        right, total = true_sentences("volcanoes", response)
        assert sum(grades) >= 18 and right == total, response

    # Three quarters of its recipe show the same.
    uniform = scores(run_program(tmp_path, "train.py", "mini-uniform", "--epochs", "6"))
    for split in SPLITS:
        grade, share = uniform[split]
        assert grade <= 3.5 and share >= 90, split
    assert sum(uniform[split][1] for split in SPLITS) / 3 >= 95
    assert uniform["under its own system message"][1] >= 95
