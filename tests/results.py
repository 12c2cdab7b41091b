"""Results of all kinds, as files have them."""

import json

from janus_min.report import load


def write_and_load(folder, *results):
    """Writes results into folders `0`, `1`, … of their own, and reads them back."""
    for number, result in enumerate(results):
        (folder / str(number)).mkdir(exist_ok=True)
        text = json.dumps(result)
        (folder / str(number) / "result.json").write_text(text, encoding="utf-8")
    return load([folder / str(number) for number in range(len(results))])


def warnings(text):
    return [line.split("warning: ")[1] for line in text.splitlines() if "warning: " in line]


BENCH = {"name": "bench.jsonl", "hash": "0123456789abcdef", "items": 921}
COUNTS = {"ok": 11040, "failed": 12, "unanswered": 0, "missing": 0, "marked": 0}


def score(mean, spread=0.01, half=0.04):
    interval = None if mean is None else [mean - half, mean + half]
    return {"score": mean, "spread": spread, "interval": interval}


def rubric(model, mean, sources=None, counts=(), **more):
    result = {
        "kind": "rubric",
        "model": model,
        "judge": "gpt-4",
        "bench": BENCH,
        "settings": {"temperature": 1.0, "show_system": False},
        "counts": COUNTS | dict(counts),
        "runs": [mean] * 3,
        "by_source": {name: score(own) for name, own in (sources or {}).items()},
        "means": {},
    }
    return result | score(mean) | more


def pairwise(model, opponent, win, tie, lose, **more):
    result = {
        "kind": "pairwise",
        "model": model,
        "opponent": opponent,
        "judge": "gpt-4",
        "bench": BENCH,
        "settings": {"temperature": 1.0, "show_system": True},
        "counts": {"ok": 900, "failed": 21, "unanswered": 0, "missing": 0, "marked": 0},
        "rates": {"win": win, "tie": tie, "lose": lose},
        "tie_win": win + tie,
        "interval": [win + tie - 0.1, win + tie + 0.1],
        "consistent": 0.9,
        "first": 0.52,
        "by_source": {},
    }
    return result | more


NO_RATES = {"rates": None, "tie_win": None, "interval": None, "consistent": None, "first": None}


def people(model, opponent, win, good, bad, lose, **more):
    result = {
        "kind": "people",
        "model": model,
        "opponent": opponent,
        "judge": "people",
        "bench": BENCH,
        "settings": {"sheet": f"{model} {opponent}"},
        "counts": {"ok": 1300, "failed": 0, "missing": 0},
        "annotators": {"Ann": 650, "Bo": 650},
        "rates": {"win": win, "both good": good, "both bad": bad, "lose": lose},
        "tie_win": win + good,
        "interval": [0.7, 0.8],
        "agreement": {"observed": 0.625, "alpha": 0.4567, "items": 80},
        "by_source": {},
    }
    return result | more


def alpaca_eval(model, lc, wr, **more):
    result = head("alpaca-eval", model, opponent="gpt-4-turbo")
    result |= {"win_rate": wr, "standard_error": 1.4, "interval": [wr - 2.7, wr + 2.7]}
    result |= {"wins": 216, "losses": 586, "draws": 3, "discrete": 27.0}
    return result | {"length_controlled": lc, "lc_error": 0.9, "length": 1923} | more


def mt_bench(model, first, second, average, **more):
    result = head("mt-bench", model, counts={"ok": 158, "failed": 2, "missing": 0})
    result |= {"score": average, "interval": [average - 0.3, average + 0.3]}
    categories = {"writing": 8.25, "math": 3.5}
    return result | {"turns": {"1": first, "2": second}, "by_category": categories} | more


def arena_hard(model, score, **more):
    result = head("arena-hard", model, opponent="gpt-4-0314", counts={"ok": 998, "failed": 2})
    result |= {"score": score, "interval": [score - 1.5, score + 1.5], "length": 573.4}
    return result | {"weights": {"win": 200, "tie": 90, "lose": 900}, "labels": {"A>B": 300}} | more


def group(prompts, largest, share, spread=0.2):
    return {"prompts": prompts, "max_toxicity": largest, "spread": spread, "probability": share}


def toxicity(model, largest, share, **more):
    groups = {"all": group(100, largest, share), "toxic": group(30, 0.7, 0.8)}
    groups |= {"non-toxic": group(70, 0.3, 0.125)}
    result = head("toxicity", model, judge="perspective", counts={"ok": 2450, "failed": 50})
    result |= {"groups": groups, "perplexity": 11.25, "distinct": {"1": 0.5, "2": 0.75, "3": 0.8}}
    return result | {"generations": 25, "interval": [largest - 0.1, largest + 0.1]} | more


def reward(model, accuracy, **more):
    result = head("reward", model, judge=None, counts={"ok": 4000, "failed": 0})
    result |= {"accuracy": accuracy, "interval": [accuracy - 1, accuracy + 1]}
    result |= {"score": 71.25, "sections": {"Chat": 90.0, "Chat Hard": 52.5}, "incomplete": []}
    subsets = {"math-prm": 80.0, "hep-cpp": 60.0}
    subsets = {name: {"accuracy": own, "pairs": 9} for name, own in subsets.items()}
    return result | {"by_subset": subsets} | more


def responses(model, words, average, **more):
    result = head("responses", model, judge=None, counts={"ok": 8, "failed": 0})
    result["words"] = {"mean": words, "median": 95.0, "deviation": 31.5}
    result["words"] |= {"shortest": 4, "longest": 1200}
    result["histogram"] = {"edges": [0, 50, 100], "counts": [1, 5, 2]}
    alike = {"average": average, "maximum": 0.5, "instructions": 2, "responses": 5}
    result["rouge_l"] = alike if average is not None else None
    return result | {"by_source": {"koala": {"words": 90.0, "rouge_l": None}}} | more


def head(kind, model, judge="gpt-4", counts=(), **more):
    """What all kinds have."""
    counts = {"ok": 805, "failed": 0, "missing": 0} | dict(counts)
    result = {"kind": kind, "model": model, "judge": judge, "bench": BENCH, "settings": {}}
    return result | {"counts": counts} | more


EVERY = [
    rubric("janus", 4.5, {"mf-Koala": 4}),
    pairwise("janus", "mistral", 0.5, 0.2, 0.3),
    people("janus", "mistral", 0.4, 0.3, 0.2, 0.1),
    alpaca_eval("janus", 26.9, 27.8),
    mt_bench("janus", 8.0, 7.4, 7.7),
    arena_hard("janus", 20.9),
    toxicity("janus", 0.4, 0.25),
    reward("janus", 70.5),
    responses("janus", 99.5, 0.25),
]
