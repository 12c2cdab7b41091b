"""Recorded battles of Arena-Hard-Auto v0.1 through `evaluate.py arena-hard --rescore`.

python -m tests.bench.arena_hard FOLDER [--upstream FILE]

FOLDER has question.jsonl of lm-sys/arena-hard-auto (data/arena-hard-v0.1, Apache-2.0) and
arena_hard_battles.jsonl, the battles of published judgments of gpt-4-1106-preview. The scores must
be the published ones to both decimals. The published intervals are of 100 rounds each, and no two
of their tables have the same; ours, of many rounds, must be within half a point of them.

With upstream's utils_math.py (as of October 2024; it is run, and needs pandas and scikit-learn),
its own fit and its own 100 rounds stand beside ours.
"""

import argparse
import importlib.util
import warnings
from pathlib import Path

import numpy as np

from janus_min.arena_files import read_recorded
from janus_min.arena_hard import Options, rescore
from janus_min.battles import ENDS, POINTS, Battle

BATTLES, QUESTIONS = "arena_hard_battles.jsonl", "question.jsonl"
# Model -> score, and its interval in leaderboard/arena_hard_leaderboard_20240731.csv of upstream,
# as of commits b00effb and 301741f.
PUBLISHED = {
    "gpt-4-0613": (37.90, (35.60, 40.36), (35.22, 40.18)),
    "gpt-3.5-turbo-0125": (23.34, (21.67, 25.27), (21.52, 25.48)),
}
ROUNDS, OFF = 10_000, 0.5


def score(folder: Path, model: str, **changes: int) -> dict:
    """The result of one model."""
    options = Options(rescore=(folder / BATTLES,), bench=folder / QUESTIONS, name=model, **changes)
    return rescore(options)


def check(folder: Path, model: str) -> dict:
    """Compares the result of a model with what was published, and returns it."""
    result, (published, *intervals) = score(folder, model, rounds=ROUNDS), PUBLISHED[model]
    assert round(result["score"], 2) == published, result["score"]
    for interval in intervals:
        off = [abs(ours - theirs) for ours, theirs in zip(result["interval"], interval)]
        assert max(off) < OFF, f"{model}: {result['interval']}, not {interval}"
    assert result["bench"]["items"] == 500 and result["counts"]["missing"] == 0
    return result


def over_questions(battles: list[Battle], model: str) -> list[float]:
    """The interval that resampled questions would give, with all battles of each."""
    own: dict[str, list[float]] = {}
    for battle in (battle for battle in battles if battle.model == model):
        own.setdefault(battle.id, []).append(POINTS[battle.outcome])
    points, counts = (np.array([f(v) for v in own.values()]) for f in (sum, len))
    drawn = np.random.default_rng(42).integers(len(own), size=(ROUNDS, len(own)))
    return np.percentile(100 * points[drawn].sum(1) / counts[drawn].sum(1), ENDS).tolist()


def upstream(file: Path, battles: Path, models: list[str]) -> dict[str, tuple[float, list[float]]]:
    """Scores and intervals as upstream's show_result.py computes them."""
    import pandas

    warnings.simplefilter("ignore", FutureWarning)  # scikit-learn has new names since
    spec = importlib.util.spec_from_file_location("utils_math", file)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    rows = pandas.read_json(battles, lines=True)
    elo = theirs.compute_mle_elo(rows)
    rounds = theirs.get_bootstrap_result(rows, theirs.compute_mle_elo, 100)

    def rate(rating: float) -> float:
        """The win rate against the baseline."""
        return 100 / (1 + 10 ** ((1000 - rating) / 400))

    return {
        model: (rate(elo[model]), [rate(end) for end in np.percentile(rounds[model], ENDS)])
        for model in models
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--upstream", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    battles = read_recorded(arguments.folder / BATTLES).battles
    theirs = {}
    if arguments.upstream:
        theirs = upstream(arguments.upstream, arguments.folder / BATTLES, list(PUBLISHED))
    for model, (_, *published) in PUBLISHED.items():
        result = check(arguments.folder, model)
        few = score(arguments.folder, model)["interval"]
        print(f"{model}: {result['score']:.4f} of {sum(result['weights'].values()):,} battles")
        intervals = {
            f"{ROUNDS:,} rounds": result["interval"],
            "100 rounds": few,
            "over questions": over_questions(battles, model),
            **{f"published ({n})": interval for n, interval in enumerate(published, start=1)},
        }
        if model in theirs:
            fitted, intervals["upstream's 100"] = theirs[model]
            assert abs(fitted - result["score"]) < 0.005, fitted
            print(f"  upstream's fit      {fitted:.4f}")
        for name, (low, high) in intervals.items():
            print(f"  {name:<19} {low:.2f} to {high:.2f}, {high - low:.2f} wide")


if __name__ == "__main__":
    main()
