"""AlpacaEval 2.0 (arXiv 2404.04475): a judge compares a model's outputs with those of a baseline,
instruction by instruction. What follows from its answers is in `win_rates.py`.

    Note: of rows that are there twice, the first counts, where upstream takes both.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from janus_min import judging, pipeline
from janus_min.answers import read_outputs, read_questions
from janus_min.bench import about_bench, read_records
from janus_min.errors import UserError, require
from janus_min.files import replace_file
from janus_min.formats import read_jsonl, text_field
from janus_min.intervals import mean
from janus_min.judging import QUESTIONS, Work, write_whole
from janus_min.kinds import RESULT
from janus_min.length_control import QUESTIONS as BY_QUESTIONS
from janus_min.length_control import ROWS as BY_ROWS
from janus_min.win_rates import (
    Control,
    Row,
    as_preference,
    first_preferred,
    is_switched,
    length_controlled,
    preference_of,
    scores,
)

KIND, ANNOTATIONS = "alpaca-eval", "annotations.json"
TOKENS = {"logprobs": True, "top_logprobs": 5}  # asked of the server
TEXTS = ("instruction", "output_1", "generator_1", "output_2", "generator_2")  # 1 is the baseline


@dataclass(frozen=True)
class Sampling(pipeline.Sampling):
    """What is asked of the judge beside the messages. Its tokens are not used."""

    top_p: float = 1.0  # of sampling


@dataclass(frozen=True)
class Options(judging.Judged):
    """What is compared, by whom, and where the judgments are kept."""

    bench: Path | None = None  # instructions; those of --against, in its order, unless given
    responses: Path | None = None  # outputs of the model, as alpaca_eval has them
    against: Path | None = None  # outputs of the baseline, as alpaca_eval has them
    against_name: str | None = None  # of the baseline, for tables; its generator unless given
    name: str | None = None  # of the model, for tables; its generator unless given
    annotations: Path | None = None  # judgments to score, as alpaca_eval keeps them
    weights: Path | None = None  # published weights of models, for length control
    df_gamed: Path | None = None  # judgments of the gamed models: new weights, for length control
    difficulty: Path | None = None  # of the instructions; those in --df-gamed unless given
    difficulty_by: str = BY_QUESTIONS  # or "rows" of --annotations, as upstream does
    attempts: int = 1  # replies that a judge may need until one can be read
    max_tokens: int = 1  # of a reply

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (BY_QUESTIONS, BY_ROWS)
        require(self.difficulty_by in known, self, "difficulty_by", " or ".join(known))
        if self.weights and self.df_gamed:
            raise UserError("--weights are published ones, --df-gamed makes new ones: give one")
        if self.weights and not self.difficulty:
            raise UserError("--weights needs --difficulty")
        if self.difficulty and not (self.weights or self.df_gamed):
            raise UserError("--difficulty needs --weights or --df-gamed")
        if self.annotations and self.rescore:
            raise UserError("--annotations and --rescore do not go together")


def result_of(head: dict, options: Options, rows: list[Row], counts: dict) -> dict:
    """A result; `counts` has what the rows do not show."""
    ok = sum(row.preference is not None for row in rows)
    control = Control(options.weights, options.df_gamed, options.difficulty, options.difficulty_by)
    controlled = length_controlled(control, rows, head["model"], head["opponent"])
    return (
        head
        | {"counts": {"ok": ok, "failed": len(rows) - ok} | counts}
        | scores(rows)
        | controlled
        | {"length": int(mean(row.lengths[1] for row in rows))}
    )


# A judge that is asked


def read_pairs(options: Options) -> tuple[list[dict], list[dict], dict]:
    """The instructions that are taken, those of them that both models answered, and counts."""
    options.require_flags("responses", "against")
    ours, theirs = (by_instruction(path) for path in (options.responses, options.against))
    bench = options.bench or options.against
    asked = [question["turns"][0] for question in read_questions(bench, KIND)]
    for path, outputs in ((options.responses, ours), (options.against, theirs)):
        if unknown := [text for text in outputs if text not in set(asked)]:
            raise UserError(
                f"{path}: {len(unknown):,} instructions are not in {bench}, such as "
                f"{unknown[0][:60]!r}"
            )
    items = [{"id": str(i), "prompt": text} for i, text in enumerate(asked)][: options.limit]
    both = [item for item in items if item["prompt"] in ours and item["prompt"] in theirs]
    if not both or (len(both) < len(items) and not options.allow_missing):
        raise UserError(
            f"{options.responses}: no outputs to {len(items) - len(both):,} of {len(items):,} "
            f"instructions of {bench}" + ("; --allow-missing compares the others" if both else "")
        )
    pairs = []
    for item in both:
        own, other = ours[item["prompt"]], theirs[item["prompt"]]
        pairs.append(
            {
                "id": item["id"],
                "source": str(other.get("dataset") or bench.stem),
                "instruction": item["prompt"],
                "output_1": other["output"],
                "generator_1": options.against_name or other["generator"],
                "output_2": own["output"],
                "generator_2": options.name or own["generator"],
            }
        )
    stops = [ours[item["prompt"]].get("stop") for item in both]
    counts = {
        "missing": len(items) - len(both),
        "same": sum(pair["output_1"] == pair["output_2"] for pair in pairs),
        "cut": stops.count("length"),
        "empty": sum(not pair["output_2"].strip() for pair in pairs),
    }
    return items, pairs, counts


def by_instruction(path: Path) -> dict[str, dict]:
    """Outputs by their instructions. Raises UserError if one is there twice, or of two models."""
    found: dict[str, dict] = {}
    for number, record in enumerate(read_outputs(path)):
        if record["instruction"] in found:
            start = record["instruction"][:60]
            raise UserError(f"{path}, entry {number}: {start!r} has an output already")
        found[record["instruction"]] = record
    one_name(path, (record["generator"] for record in found.values()))
    return found


def one_name(path: Path, names: Iterable[str]) -> str:
    """The only name among these. Raises UserError if there are others."""
    found = list(dict.fromkeys(names))
    if len(found) > 1:
        names = ", ".join(map(repr, found[:3])) + (", …" if len(found) > 3 else "")
        raise UserError(f"{path} is of {len(found):,} models: {names}; needed is one")
    return found[0]


def evaluate(work: Work, say: Callable[[str], None] = print) -> dict | None:
    """Has all outputs compared. Returns the result, which is in FOLDER/result.json, too; beside it
    are the judgments in upstream's format. After a dry run there is nothing to return.
    """
    options, template = work.options, work.template()
    items, pairs, counts = read_pairs(options)
    names = {"model": pairs[0]["generator_2"], "opponent": pairs[0]["generator_1"]}
    if names["model"] == names["opponent"] and options.responses != options.against:
        raise UserError("both models have one name; give --name and --against-name")
    for pair in pairs:
        switched = is_switched(pair["instruction"])
        shown = [pair["output_2"], pair["output_1"]][:: 1 if switched else -1]
        slots = {"instruction": pair["instruction"], "output_1": shown[0], "output_2": shown[1]}
        system, user = template.filled(**slots)
        pair |= {"switched": switched, "system_prompt": system, "user_prompt": user}

    stage = judging.judge_stage(tasks, messages, first_preferred, options, extra=TOKENS, whole=True)
    if options.dry_run:
        judging.estimate(work, pairs, stage, say)
        return None
    options.require_flags("out", "judge")
    options = replace(options, bench=options.bench or options.against, name=names["model"])
    work = replace(work, options=options)
    head = judging.about(work, items, opponent=names["opponent"])
    head = judging.ask_judge(work, head, pairs, stage, say)
    return score_folder(options.out, options, head, counts)


def tasks(pair: dict) -> list[dict]:
    """What is asked about a pair: nothing if the outputs are equal."""
    return [pair] if pair["output_1"] != pair["output_2"] else []


def messages(pair: dict) -> tuple[str, str]:
    """The prompt of a pair."""
    return pair["system_prompt"], pair["user_prompt"]


# Judgments that there are


def score_folder(folder: Path, options: Options, head: dict, counts: dict) -> dict:
    """Scores what a folder holds. Writes its result and its judgments in upstream's format."""
    found = {record["id"]: record for record in judging.stored_judgments(folder, first_preferred)}
    rows, annotations = [], []
    for _, pair in read_jsonl(folder / f"{QUESTIONS}.jsonl"):
        record = found.get(pair["id"], {})
        p, x = record.get("value"), None
        if pair["output_1"] == pair["output_2"]:
            x = 1.5
        elif p is not None:
            x = preference_of(p, pair["switched"])
        lengths = len(pair["output_1"]), len(pair["output_2"])
        rows.append(Row(int(pair["id"]), lengths, x))
        if x is not None:  # as upstream, which keeps no others
            texts = {key: pair[key] for key in TEXTS} | {"dataset": pair["source"]}
            judged = {"annotator": head["judge"], "preference": x}
            annotations.append(texts | judged | {"raw_completion": record.get("reply")})
    unanswered = sum(record.get("unanswered", False) for record in found.values())
    result = result_of(head, options, rows, {"unanswered": unanswered} | counts)
    text = json.dumps(annotations, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / ANNOTATIONS, text.encode("utf-8", "replace"))
    write_whole(folder / RESULT, result)
    return result


def rescore(options: Options) -> dict:
    """The result of judgments that there are: of a folder of `evaluate`, whose replies are read
    once more, or of a file of upstream's. Nobody is asked anything.
    """
    [path, *others] = options.rescore or (options.annotations,)
    if others:
        raise UserError("--rescore: one folder or file at a time")
    out = judging.other_folder(options.out, path)
    if path.is_dir():
        names = {"model": options.name, "opponent": options.against_name, "judge": options.judge}
        head, counts = judging.stored_head(path, KIND, **names)
        return judging.keep(score_folder(path, options, head, counts), out)
    return judging.keep(score_annotations(path, options), out)


def score_annotations(path: Path, options: Options) -> dict:
    """The result of a file of judgments in upstream's format, of one model."""
    records = list(read_annotations(path))
    models = dict.fromkeys(record["generator_2"] for record in records)
    chosen = options.name if options.name in models else one_name(path, models)  # or a new name
    own = {}
    for record in (record for record in records if record["generator_2"] == chosen):
        own.setdefault(record["instruction"], record)
    twice = sum(record["generator_2"] == chosen for record in records) - len(own)
    if options.bench:
        asked = [question["turns"][0] for question in read_questions(options.bench, KIND)]
        numbers = {text: number for number, text in enumerate(asked)}
        if unknown := [text for text in own if text not in numbers]:
            raise UserError(f"{path}: {unknown[0][:60]!r} is not in {options.bench}")
    else:
        asked = list(own)
        numbers = {text: number for number, text in enumerate(asked)}
    rows = [
        Row(
            numbers[text],
            (len(record["output_1"]), len(record["output_2"])),
            as_preference(record["preference"]),
        )
        for text, record in own.items()
    ]
    head = {
        "kind": KIND,
        "model": options.name or chosen,
        "opponent": options.against_name
        or one_name(path, (r["generator_1"] for r in own.values())),
        "judge": options.judge or str(next(iter(own.values())).get("annotator") or "unknown"),
        "bench": about_bench(
            [{"id": str(i), "prompt": text} for i, text in enumerate(asked)], options.bench or path
        ),
        "settings": {"recorded": True},
    }
    counts = {
        "unanswered": 0,
        "missing": len(asked) - len(rows),
        "twice": twice,
        "same": sum(record["output_1"] == record["output_2"] for record in own.values()),
        "empty": sum(not record["output_2"].strip() for record in own.values()),
    }
    return result_of(head, options, rows, counts)


def read_annotations(path: Path) -> Iterator[dict]:
    """The records of a file of judgments. Raises UserError that names the entry and the keys."""
    empty = True
    for where, _, record in read_records(path):
        if missing := [key for key in (*TEXTS, "preference") if key not in record]:
            raise UserError(
                f"{where}: keys {[*TEXTS, 'preference']} are needed, found {sorted(record)}, "
                f"without {missing[0]!r}"
            )
        empty = False
        yield record | {key: text_field(record, (key,), where) for key in TEXTS}
    if empty:
        raise UserError(f"{path} has no judgment")
