"""How a model does in the miniature: what it answers, and how the judge grades that."""

from dataclasses import dataclass
from pathlib import Path

from janus_min.chat import encode_prompts
from janus_min.directories import tensor_files
from janus_min.engine import generate
from janus_min.errors import UserError
from janus_min.mini_data import SPLITS, UNIFORM_SYSTEM, bench, rubric_preference
from janus_min.model import Policy
from janus_min.sampling import Request, Sampling
from janus_min.tokenizer import Tokenizer
from janus_min.world import judge, true_sentences


@dataclass(frozen=True)
class Score:
    """How a model did on the items of one split."""

    split: str
    mean: float  # of the grades, over rubrics, then items
    items: int
    true: int  # sentences that are true of the topic
    sentences: int

    def __str__(self) -> str:
        share = 100 * self.true / max(1, self.sentences)
        return (
            f"{self.split}: {self.mean:.2f} of 5  "
            f"({self.items} answers, {share:.1f} % of their sentences true)"
        )


def newest_model() -> Path:
    """The language model of the miniature run that ended last."""
    configs = [
        path
        for path in Path("runs").glob("mini*/model/config.json")
        if "lm_head.weight" in tensor_files(path.parent)
    ]
    if not configs:
        raise UserError("no miniature model in runs/ yet: run `python train.py`, or give --model")
    return max(configs, key=lambda path: path.stat().st_mtime).parent


def respond(
    policy: Policy, tokenizer: Tokenizer, items: list[dict], system: str | None = None
) -> list[str]:
    """The model's most likely answer to each item, under its system message or another one."""
    prompts = [(item["system"] if system is None else system, item["prompt"]) for item in items]
    requests = [Request(ids) for ids in encode_prompts(tokenizer, prompts)]
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_tokens=256)
    return [tokenizer.decode(completion.ids) for completion in generate(policy, requests, sampling)]


def score(split: str, items: list[dict], responses: list[str]) -> Score:
    """Grades the responses by all rubrics of their items, and checks their sentences."""
    means, true, sentences = [], 0, 0
    for item, response in zip(items, responses, strict=True):
        grades = [judge(rubric_preference(r), item["topic"], response) for r in item["rubrics"]]
        means.append(sum(grades) / len(grades))
        right, total = true_sentences(item["topic"], response)
        true, sentences = true + right, sentences + total
    return Score(split, sum(means) / len(means), len(items), true, sentences)


def score_splits(items: list[dict], responses: list[str]) -> list[Score]:
    """The score on each split."""
    scores = []
    for split in SPLITS:
        chosen = [i for i, item in enumerate(items) if item["source"] == split]
        scores.append(score(split, [items[i] for i in chosen], [responses[i] for i in chosen]))
    return scores


def score_uniform(policy: Policy, tokenizer: Tokenizer) -> Score:
    """The first split once more, under the system message that the uniform model knows."""
    chosen = [item for item in bench() if item["source"] == SPLITS[0]]
    own = respond(policy, tokenizer, chosen, UNIFORM_SYSTEM)
    return score("under its own system message", chosen, own)


def score_model(policy: Policy, tokenizer: Tokenizer, uniform: bool) -> list[Score]:
    """All splits, and for the uniform model what it does under its own system message."""
    items = bench()
    scores = score_splits(items, respond(policy, tokenizer, items))
    return [*scores, score_uniform(policy, tokenizer)] if uniform else scores
