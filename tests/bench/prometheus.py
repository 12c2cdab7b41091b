"""Recorded judgments of GPT-4 through the whole of `evaluate.py rubric`.

python -m tests.bench.prometheus vicuna_eval.json

The file is from the repository prometheus-eval/prometheus-eval (eval/benchmark/data, Apache-2.0):
320 prompts in the form of Janus's judge, each with three grades and their feedback. The prompts are
taken apart into a bench, responses and a judge prompt; put together again by our code they must be
the recorded ones, letter by letter. A server replies what the judge replied. The means of the runs
must be those of the recorded numbers.
"""

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from janus_min.connection import Connection
from janus_min.judging import Options, Work
from janus_min.loopback import served
from janus_min.pipeline import Sampling
from janus_min.rubric import evaluate, rescore

HEADINGS = {
    "###The instruction to evaluate:\n": "{instruction}",
    "###Response to evaluate:\n": "{response}",
    "###Reference Answer (Score 5):\n": "{reference_answer}",
    "###Score Rubrics:\n": "{score_rubric}",
}
END = "\n\n###Feedback: "


def taken_apart(prompt: str) -> tuple[str, list[str]]:
    """The template of a prompt and what was filled in."""
    template, *rest = prompt.partition(next(iter(HEADINGS)))
    rest, values = "".join(rest), []
    for heading, following in zip(HEADINGS, [*list(HEADINGS)[1:], None]):
        end = f"\n\n{following}" if following else END
        assert rest.startswith(heading) and rest.count(end) == 1
        value, _, rest = rest.removeprefix(heading).partition(end)
        template += heading + HEADINGS[heading] + end.removesuffix(following or "")
        rest = (following or "") + rest
        values.append(value)
    assert rest == ""
    return template, values


def main() -> None:
    records = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    items, responses, templates, replies = [], {}, set(), defaultdict(list)
    for record in records:
        template, values = taken_apart(record["instruction"])
        templates.add(template)
        item = dict(zip(("prompt", "response", "reference_answer", "rubric"), values))
        key = f"{record['response_source']}-{record['idx']}"
        responses[key] = {"response": item.pop("response")}
        items.append({"id": key, "source": record["response_source"], **item})
        for feedback, grade in zip(record["gpt4_feedback"], record["gpt4_score"]):
            text = f"Feedback: {feedback} [RESULT] {grade}"
            replies[record["instruction"].strip()].append(text)
    [template] = templates
    assert len(replies) == len(records), "two prompts are equal"

    def judge(messages: list[dict]) -> str:
        """The next recorded reply to exactly this prompt."""
        return replies[messages[-1]["content"]].pop(0)

    with tempfile.TemporaryDirectory() as folder, served(judge) as url:
        folder = Path(folder)
        paths = [folder / name for name in ("bench.json", "model_responses.json", "template.txt")]
        for path, content in zip(paths, (items, responses)):
            path.write_text(json.dumps(content))
        paths[2].write_text(template)
        out = folder / "out"
        options = Options(
            paths[0], paths[1], out=out, judge="gpt-4-0613", judge_prompt=paths[2], attempts=1
        )
        # One worker: replies to one prompt come in the order of the runs.
        work = Work(options, Sampling(), Connection(url, workers=1), "rubric")
        result = evaluate(work)
        again = rescore(Options(rescore=(out,)))
        files = tuple(out / f"evaluation-{run}.json" for run in (1, 2, 3))
        official = rescore(Options(rescore=files))
    assert not any(replies.values()), "a recorded reply was not asked for"
    grades = np.array([record["gpt4_score"] for record in records])
    sources = np.array([record["response_source"] for record in records])
    assert np.allclose(result["runs"], grades.mean(0), rtol=0, atol=1e-12)
    assert result["counts"]["ok"] == grades.size and result["counts"]["failed"] == 0
    for source, found in result["by_source"].items():
        assert np.allclose(found["runs"], grades[sources == source].mean(0), rtol=0, atol=1e-12)
    for other in (again, official):
        assert all(other[key] == result[key] for key in ("score", "runs", "spread", "interval"))
        assert other["by_source"] == result["by_source"]
    print(f"{len(records)} prompts equal the recorded ones, {grades.size} replies were read")
    print("means of the runs: " + ", ".join(f"{run:.4f}" for run in result["runs"]))
    interval = " to ".join(f"{end:.4f}" for end in result["interval"])
    print(f"score {result['score']:.4f} ± {result['spread']:.4f}, 95 % interval {interval}")
    for source, found in result["by_source"].items():
        runs = ", ".join(f"{run:.4f}" for run in found["runs"])
        print(f"{source}: {found['score']:.4f} ({runs})")


if __name__ == "__main__":
    main()
