"""Multifaceted Bench: a judge grades each response by each rubric of its item.

    item    mean of the grades of its rubrics, in one run
    model   mean of its items, in one run
    score   mean of the runs, with their standard deviation, and a 95 % interval over items

A judgment that failed is left out and counted: an item that lacks one has the mean of the others,
an item that lacks all of them is left out. Nothing takes the place of a grade that is not there.

    Note: the official script averages in the same order and ends with an error if a judgment
    failed for good. The paper repeats it three times and reports the mean.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from janus_min.bench import about_bench, answered, read_bench, read_records
from janus_min.errors import UserError
from janus_min.formats import read_jsonl
from janus_min.intervals import deviation, half_width, mean
from janus_min.judge import MARK, grade_in, has_mark, rubric_messages
from janus_min.judging import Options, Work, about, ask_judge, estimate, file_model, judge_stage
from janus_min.judgments import (
    QUESTIONS,
    keep,
    other_folder,
    stored_head,
    stored_judgments,
    write_whole,
)


class Judgment(NamedTuple):
    """What one run has of one rubric of one item."""

    id: str
    source: str
    number: int  # of the rubric
    run: int
    grade: int | None  # None: it failed


# Scores


def means_of_items(judgments: Iterable[Judgment]) -> list[dict[str, float]]:
    """For each run that has grades, the mean of each item over its rubrics."""
    grades: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for judgment in judgments:
        if judgment.grade is not None:
            grades[judgment.run][judgment.id].append(judgment.grade)
    return [{key: mean(own) for key, own in grades[run].items()} for run in sorted(grades)]


def over_runs(means: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each item over the runs that have it."""
    keys = dict.fromkeys(key for items in means for key in items)
    return {key: mean(items[key] for items in means if key in items) for key in keys}


def scores(judgments: Iterable[Judgment]) -> dict:
    """Score, runs, their spread, and the interval over items; score is None without any grade."""
    means = means_of_items(judgments)
    items, runs = over_runs(means), [mean(items.values()) for items in means]
    score, half = mean(runs) if runs else None, half_width(list(items.values()))
    return {
        "items": len(items),
        "score": score,
        "runs": runs,
        "spread": deviation(runs),
        "interval": None if half is None else [max(1.0, score - half), min(5.0, score + half)],
    }


def result_of(head: dict, judgments: list[Judgment], counts: dict) -> dict:
    """A result; `counts` has what the judgments themselves do not show."""
    sources = dict.fromkeys(judgment.source for judgment in judgments)
    ok = sum(judgment.grade is not None for judgment in judgments)
    found = scores(judgments)
    del found["items"]
    return (
        head
        | {"counts": {"ok": ok, "failed": len(judgments) - ok} | counts}
        | found
        | {"by_source": {s: scores(j for j in judgments if j.source == s) for s in sources}}
        | {"means": over_runs(means_of_items(judgments))}
    )


# A judge that is asked


def evaluate(work: Work, say: Callable[[str], None] = print) -> dict | None:
    """Has all responses judged. Returns the result, which is in FOLDER/result.json, too.

    Beside it lies an evaluation in the official format for each run. After a dry run there is
    nothing to return.
    """
    options = work.options
    options.require_flags("bench", "responses")
    items = read_bench(options.bench)
    chosen = answered(items, options.responses, options.allow_missing, options.limit)
    template = work.template()

    def tasks(question: dict) -> list[dict]:
        """One for each run."""
        return [question | {"run": run} for run in range(options.runs)]

    def messages(task: dict) -> tuple[str, str]:
        """The prompt of a task."""
        return rubric_messages(template, task, options.show_system)

    stage = judge_stage(tasks, messages, grade_in, options, options.runs)
    if options.dry_run:
        estimate(work, questions_of(chosen), stage, say)
        return None
    options.require_flags("out", "judge")
    head = ask_judge(work, about(work, items), questions_of(chosen), stage, say)
    responses = [item["response"] for item in chosen]
    counts = {
        "missing": head["bench"]["items"] - len(chosen),
        "marked": sum(map(has_mark, responses)),
        "cut": sum(item.get("stop") == "length" for item in chosen),
        "empty": sum(not response.strip() for response in responses),
    }
    return keep(score_folder(options.out, head, counts), options.out)


def questions_of(items: Iterable[dict]) -> Iterator[dict]:
    """One question for each rubric of each item."""
    for item in items:
        about_item = {key: value for key, value in item.items() if key not in ("rubrics", "stop")}
        for number, rubric in enumerate(item["rubrics"]):
            yield about_item | {"number": number, "rubric": rubric}


def score_folder(folder: Path, head: dict, counts: dict) -> dict:
    """The result of what a folder holds. Writes its evaluations."""
    records = list(stored_judgments(folder, grade_in))
    keys = ("id", "source", "number", "run", "value")
    judgments = [Judgment(*(record[key] for key in keys)) for record in records]
    unanswered = sum(record.get("unanswered", False) for record in records)
    result = result_of(head, judgments, {"unanswered": unanswered} | counts)
    write_evaluations(folder, records)
    return result


def write_evaluations(folder: Path, records: list[dict]) -> None:
    """Writes one file for each run, in the official format: items by id, with response, feedback
    and score as lists over their rubrics, null where a judgment failed.
    """
    found = {(record["id"], record["run"], record["number"]): record for record in records}
    runs = sorted({record["run"] for record in records})
    contents: list[dict] = [{} for _ in runs]
    for _, question in read_jsonl(folder / f"{QUESTIONS}.jsonl"):
        key, number, rubric = (question.pop(key) for key in ("id", "number", "rubric"))
        answer = {"response": question.pop("response")}
        for content, run in zip(contents, runs):
            lists = {"feedback": [], "score": []}
            item = content.setdefault(
                key, {"id": key, **question, "rubrics": [], **answer, **lists}
            )
            record = found[key, run, number]
            item["rubrics"].append(rubric)
            item["feedback"].append(feedback_in(record["reply"]) if "reply" in record else None)
            item["score"].append(record["value"])
    for number, content in enumerate(contents, start=1):
        write_whole(folder / f"evaluation-{number}.json", content)
    for number in count(len(runs) + 1):  # of more runs, earlier
        if not (path := folder / f"evaluation-{number}.json").exists():
            break
        path.unlink()


def feedback_in(reply: str) -> str:
    """What a judge wrote before its grade."""
    marks = list(re.finditer(MARK, reply, re.IGNORECASE))
    return (reply[: marks[-1].start()] if marks else reply).strip()


# Judgments that there are already


def rescore(options: Options) -> dict:
    """The result of stored judgments: of one folder of `evaluate`, whose replies are read once
    more, or of official evaluation files, one for each run. Nobody is asked anything.
    """
    paths = options.rescore
    out = other_folder(options.out, paths[0])
    if len(paths) == 1 and paths[0].is_dir():
        head = stored_head(paths[0], "rubric", model=options.name, judge=options.judge)
        return keep(score_folder(paths[0], *head), out or paths[0])
    if any(path.is_dir() for path in paths):
        raise UserError("--rescore takes one folder, or evaluation files")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("--rescore: a file is given twice; each is a run of its own")
    judgments, first = [], {}
    for run, path in enumerate(paths):
        items = read_bench(path)
        records = dict(zip((item["id"] for item in items), read_records(path)))
        answers = {key: record.get("response") for key, (_, _, record) in records.items()}
        what = {"items": about_bench(items, path)["hash"], "responses": answers}
        first = first or what
        if differing := [key for key in what if what[key] != first[key]]:
            raise UserError(f"{path} and {paths[0]} are evaluations of different {differing[0]}")
        for item in items:
            where, _, record = records[item["id"]]
            judgments += recorded_judgments(item, where, record, run)
    names = {"model": options.name or file_model(paths[0]), "judge": options.judge or "unknown"}
    head = {"kind": "rubric", **names, "bench": about_bench(items, paths[0])}
    texts = [response for response in answers.values() if isinstance(response, str)]
    counts = {"unanswered": 0, "missing": 0, "marked": sum(map(has_mark, texts))}
    counts["empty"] = sum(not text.strip() for text in texts)
    result = result_of(head | {"settings": {"recorded": True}}, judgments, counts)
    return keep(result, out)


def recorded_judgments(item: dict, where: str, record: dict, run: int) -> list[Judgment]:
    """The judgments of one item of an official evaluation file."""
    grades, count = record.get("score"), len(item["rubrics"])
    grades = grades if isinstance(grades, list) else [grades]
    if "score" not in record or len(grades) != count:
        found = f"{len(grades)} of them" if "score" in record else f"{sorted(record)}"
        raise UserError(f"{where}: 'score' must have {count} grades, one a rubric; found {found}")
    for grade in grades:
        if grade is not None and (type(grade) is not int or not 1 <= grade <= 5):
            raise UserError(
                f"{where}: grades are integers from 1 to 5, or null for one that failed; found "
                f"{json.dumps(grade)}"
            )
    return [
        Judgment(item["id"], item["source"], number, run, grade)
        for number, grade in enumerate(grades)
    ]
