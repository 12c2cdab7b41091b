"""MT-Bench (2306.05685): a judge rates both answers of conversations of two turns, from 1 to 10.

Of the second turn the judge sees the first one, too. For math, reasoning and coding it sees
reference answers. What ratings add up to is in `ratings.py`.

    Note: the formats of answers, references and judgments are FastChat's. FastChat waits for a
    server that fails, but takes the first reply that comes; so `attempts` is 1. Unlike here, it
    reads replies that were cut short, too, and of two judgments of one turn, both count; here it is
    the first.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from janus_min import judging, judgments, pipeline
from janus_min.answers import model_of, read_answers, read_questions
from janus_min.bench import about_bench, one_name
from janus_min.errors import UserError
from janus_min.files import as_line, replace_file
from janus_min.formats import read_jsonl
from janus_min.judging import Work
from janus_min.judgments import QUESTIONS
from janus_min.ratings import MARK, Rating, rating_in, read_rows, scores
from janus_min.templates import TEMPLATES, Template

KIND = "mt-bench"
JUDGED = "model_judgment.jsonl"  # in the folder of an evaluation, for FastChat's scripts
ERROR = "$ERROR$"  # what FastChat has in the place of a reply that never came
WITH_REFERENCE = ("math", "reasoning", "coding")  # categories
NAMES = {"question": "turns", "answer": "answers", "ref_answer": "references"}  # in templates
SHOWN = 10  # ids that a message names


@dataclass(frozen=True)
class Options(judging.Judged):
    """What is judged, by whom, and where the judgments are kept."""

    bench: Path | None = None  # questions: FastChat's question.jsonl
    responses: Path | None = None  # answers of the evaluated model, in FastChat's format
    name: str | None = None  # of the evaluated model; what its answers say unless given
    references: Path | None = None  # reference answers: FastChat's reference_answer/gpt-4.jsonl
    attempts: int = 1  # replies that a judge may need until one can be read
    max_tokens: int = 2048  # of a reply


@dataclass(frozen=True)
class Sampling(pipeline.Sampling):
    """What is asked of the judge beside the messages."""

    temperature: float = 0.0  # of sampling
    top_p: float = 1.0  # of sampling


def result_of(head: dict, ratings: list[Rating], counts: dict) -> dict:
    """A result; `counts` has what the ratings themselves do not show."""
    ok = sum(rating.value is not None for rating in ratings)
    return head | {"counts": {"ok": ok, "failed": len(ratings) - ok} | counts} | scores(ratings)


# What is judged


def read_items(options: Options) -> list[dict]:
    """The questions: id, source (their category), question_id (as in the file), turns, and
    references: two texts, or none if the category needs none or they are not known.
    """
    given = read_answers(options.references) if options.references else {}
    items = []
    for question in read_questions(options.bench, KIND):
        key, record = question["id"], question["record"]
        texts = given[key]["turns"] if key in given else record.get("reference")
        used = texts if _is_pair(texts) and question["source"] in WITH_REFERENCE else []
        about = {name: question[name] for name in ("id", "source", "turns")}
        items.append(about | {"question_id": record["question_id"], "references": used})
    if given and not given.keys() & {item["id"] for item in items}:
        raise UserError(f"{options.references} answers no question of {options.bench}")
    return items


def answered(items: list[dict], options: Options) -> tuple[list[dict], dict]:
    """The first `limit` items with their "answers", two or fewer, and counts of what is in them.

    Raises UserError for answers to unknown questions, for questions that need references and have
    none, and for missing answers unless they are allowed.
    """
    path, chosen = options.responses, items[: options.limit]
    found = read_answers(path)
    if unknown := found.keys() - {item["id"] for item in items}:
        raise UserError(
            f"{path} answers questions that {options.bench} lacks: {_some(sorted(unknown))}"
        )
    lacking = [i["id"] for i in chosen if i["source"] in WITH_REFERENCE and not i["references"]]
    if lacking:
        raise UserError(
            f"{options.references or options.bench}: two reference answers are needed to each "
            f"question of {', '.join(WITH_REFERENCE)}; {len(lacking):,} have none: "
            f"{_some(lacking)}; give FastChat's reference_answer/gpt-4.jsonl as --references"
        )
    none = {"turns": [], "stop": None}
    own = {item["id"]: found.get(item["id"], none) for item in chosen}
    if more := [key for key, answer in own.items() if len(answer["turns"]) > 2]:
        raise UserError(f"{path}: more than two answers to {_some(more)}; questions have two turns")
    fewer = [key for key, answer in own.items() if len(answer["turns"]) < 2]
    texts = [text for answer in own.values() for text in answer["turns"]]
    if not texts or (fewer and not options.allow_missing):
        raise UserError(
            f"{path}: not two answers to {len(fewer):,} of {len(chosen):,} questions: "
            f"{_some(fewer)}" + ("; --allow-missing judges what there is" if texts else "")
        )
    counts = {
        "missing": 2 * len(chosen) - len(texts),
        "twice": 0,
        "marked": sum(bool(re.search(MARK, text)) for text in texts),
        "cut": sum((answer["stop"] or []).count("length") for answer in own.values()),
        "empty": sum(not text.strip() for text in texts),
    }
    return [item | {"answers": own[item["id"]]["turns"]} for item in chosen], counts


def questions_of(items: Iterable[dict], templates: list[Template]) -> Iterator[dict]:
    """One question for each turn that is answered, with the prompt that the judge gets."""
    named = list(zip(TEMPLATES[KIND], templates))
    for item in items:
        slots = {"question": item["turns"][0], "answer": "".join(item["answers"][:1])}
        for name, key in NAMES.items():
            slots |= {f"{name}_{turn}": text for turn, text in enumerate(item[key], start=1)}
        about = {key: item[key] for key in ("id", "source", "question_id")}
        for turn in range(1, len(item["answers"]) + 1):
            name, template = named[2 * (turn - 1) + bool(item["references"])]
            system, user = template.filled(**slots)
            prompt = {"template": name, "system_prompt": system, "user_prompt": user}
            yield about | {"turn": turn} | prompt


def _is_pair(texts: object) -> bool:
    """FastChat's questions have references of their own, of which some are empty."""
    whole = isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts)
    return whole and len(texts) == 2


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")


# A judge that is asked


def evaluate(work: Work, say: Callable[[str], None] = print) -> dict | None:
    """Has all answers judged. Returns the result, which is in FOLDER/result.json, too; beside it
    are the judgments in FastChat's format. After a dry run there is nothing to return.
    """
    options = work.options
    options.require_flags("bench", "responses")
    items = read_items(options)
    chosen, counts = answered(items, options)
    questions = list(questions_of(chosen, work.templates()))
    stage = judging.judge_stage(lambda turn: [turn], judging.prompt_of, rating_in, options)
    if options.dry_run:
        judging.estimate(work, questions, stage, say)
        return None
    options.require_flags("out", "judge")
    name = model_of(read_answers(options.responses), options.responses, options.name)
    work = replace(work, options=replace(options, name=name))
    head = judging.ask_judge(work, judging.about(work, items), questions, stage, say)
    return judgments.keep(score_folder(options.out, head, counts), options.out)


def score_folder(folder: Path, head: dict, counts: dict) -> dict:
    """Scores what a folder holds. Writes its result, and its judgments in FastChat's format, where
    all times are 0: equal judgments make equal files.
    """
    records = list(judgments.stored_judgments(folder, rating_in))
    found = {(record["id"], record["turn"]): record for record in records}
    rows = []
    for _, question in read_jsonl(folder / f"{QUESTIONS}.jsonl"):
        record = found[question["id"], question["turn"]]
        row = {"question_id": question["question_id"], "model": head["model"]}
        row |= {"judge": [head["judge"], question["template"]]}
        row |= {"user_prompt": question["user_prompt"], "judgment": record.get("reply", ERROR)}
        row |= {"score": -1 if record["value"] is None else record["value"]}
        rows.append(as_line(row | {"turn": question["turn"], "tstamp": 0}))
    replace_file(folder / JUDGED, b"".join(rows))
    ratings = [Rating(*(r[key] for key in ("id", "source", "turn", "value"))) for r in records]
    unanswered = sum(record.get("unanswered", False) for record in records)
    return result_of(head, ratings, {"unanswered": unanswered} | counts)


# Judgments that there are already


def rescore(options: Options) -> dict:
    """The result of judgments that there are: of a folder of `evaluate`, or of a file in FastChat's
    format. Replies are read once more. Nobody is asked anything.
    """
    return judging.rescored(options, KIND, score_folder, lambda path: score_file(path, options))


def score_file(path: Path, options: Options) -> dict:
    """The result of a file in FastChat's format: of two judgments of one turn, the first one. The
    questions are those of the bench, or without it, all of which there is a judgment.
    """
    rows, found = list(read_rows(path)), {}
    model = one_name((row.model for row in rows), f"{path}: 'model'", options.name, "--name")
    rows = [row for row in rows if row.model == model]
    judge = one_name((row.judge for row in rows), f"{path}: 'judge'", options.judge, "--judge")
    rows = [row for row in rows if row.judge == judge]
    for row in rows:
        found.setdefault((row.id, row.turn), row)
    ids = dict.fromkeys(row.id for row in rows)
    items = read_items(options) if options.bench else [{"id": key} for key in sorted(ids)]
    if unknown := ids.keys() - {item["id"] for item in items}:
        raise UserError(
            f"{path} has questions that {options.bench} lacks: {_some(sorted(unknown))}"
        )
    ratings = [
        Rating(item["id"], item.get("source", ""), turn, found[item["id"], turn].value)
        for item in items
        for turn in (1, 2)
        if (item["id"], turn) in found
    ]
    head = {"kind": KIND, "model": options.name or model, "judge": options.judge or judge}
    head |= {"bench": about_bench(items, options.bench or path), "settings": {"recorded": True}}
    counts = {
        "unanswered": 0,  # none that could be asked for again
        "missing": 2 * len(items) - len(found),
        "twice": len(rows) - len(found),
    }
    return result_of(head, ratings, counts)
