"""AlpacaEval 2.0 (arXiv 2404.04475): a judge compares a model's outputs with those of a baseline,
instruction by instruction. What follows from its answers is in `win_rates.py`.

    Note: of two judgments of an instruction the first counts, where upstream takes both. A failed
    one stays in our file of judgments, without a preference, so that rows keep their numbers.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from janus_min import judging, judgments, pipeline
from janus_min.answers import read_outputs, read_questions
from janus_min.bench import about_bench, one_name, read_records
from janus_min.errors import UserError, require
from janus_min.files import read_json, replace_file
from janus_min.formats import read_jsonl, text_field
from janus_min.intervals import mean
from janus_min.judging import Work
from janus_min.judgments import QUESTIONS
from janus_min.kinds import RESULT
from janus_min.length_control import QUESTIONS as BY_QUESTIONS
from janus_min.length_control import ROWS as BY_ROWS
from janus_min.length_control import read_difficulty
from janus_min.win_rates import (
    Control,
    Row,
    all_same,
    as_preference,
    first_preferred,
    is_switched,
    length_controlled,
    lengths_of,
    preference_of,
    scores,
)

KIND, ANNOTATIONS = "alpaca-eval", "annotations.json"
TOKENS = {"logprobs": True, "top_logprobs": 5}  # asked of the server
FILES = Control._fields[:3]  # what of a control is a path
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
    annotations: Path | None = None  # file of judgments to score, as alpaca_eval keeps them
    weights: Path | None = None  # published weights of models, for length control
    df_gamed: Path | None = None  # judgments of the gamed models: new weights, for length control
    difficulty: Path | None = None  # of the instructions; those in --df-gamed unless given
    difficulty_by: str | None = None  # questions have difficulties; or rows of judgments, upstream
    attempts: int = 1  # replies that a judge may need until one can be read
    max_tokens: int = 1  # of a reply

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (BY_QUESTIONS, BY_ROWS)
        valid = self.difficulty_by in (None, *known)
        require(valid, self, "difficulty_by", " or ".join(known))
        if self.weights and self.df_gamed:
            raise UserError("--weights are published ones, --df-gamed makes new ones: give one")
        if self.weights and not self.difficulty:
            raise UserError("--weights needs --difficulty")
        if self.difficulty and not (self.weights or self.df_gamed):
            raise UserError("--difficulty needs --weights or --df-gamed")


def control_of(options: Options, before: dict | None = None) -> Control:
    """By what length is controlled: by the files that are given, or else as it was before."""
    by = options.difficulty_by or (before or {}).get("by", BY_QUESTIONS)
    given = Control(options.weights, options.df_gamed, options.difficulty, by)
    if before is None or given.weights or given.gamed:
        return given
    paths = [before[key] and Path(before[key]) for key in FILES]
    if lost := [path for path in paths if path and not path.is_file()]:
        raise UserError(
            f"length was controlled by {lost[0]}, which is not there any more: give --weights and "
            "--difficulty, or --df-gamed"
        )
    return Control(*paths, by)


def result_of(head: dict, control: Control, rows: list[Row], itself: bool, counts: dict) -> dict:
    """A result; `itself`: the model is the baseline. `counts` has what the rows do not show."""
    if head["model"] == head["opponent"] and not itself:
        raise UserError("both models have one name; give --name and --against-name")
    ok = sum(row.preference is not None for row in rows)
    paths = {key: getattr(control, key) for key in FILES}
    absolute = {key: str(path.resolve()) if path else None for key, path in paths.items()}
    return (
        head
        | {"counts": {"ok": ok, "failed": len(rows) - ok} | counts}
        | scores(rows)
        | length_controlled(control, rows, head["model"], itself)
        | {"control": absolute | {"by": control.by}}
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
    one_name((record["generator"] for record in found.values()), f"{path}: 'generator'")
    return found


def evaluate(work: Work, say: Callable[[str], None] = print) -> dict | None:
    """Has all outputs compared. Returns the result, which is in FOLDER/result.json, too; beside it
    are the judgments in upstream's format. After a dry run there is nothing to return.
    """
    options, template = work.options, work.template()
    items, pairs, counts = read_pairs(options)
    names = {"model": pairs[0]["generator_2"], "opponent": pairs[0]["generator_1"]}
    control, itself = control_of(options), all_same(pairs)
    ties = [Row(int(pair["id"]), lengths_of(pair), 1.5) for pair in pairs]
    result_of(names, control, ties, itself, {})  # what is wrong with files fails before it costs
    for pair in pairs:
        switched = is_switched(pair["instruction"])
        shown = [pair["output_2"], pair["output_1"]][:: 1 if switched else -1]
        slots = {"instruction": pair["instruction"], "output_1": shown[0], "output_2": shown[1]}
        system, user = template.filled(**slots)
        pair |= {"switched": switched, "system_prompt": system, "user_prompt": user}

    more = {"extra": TOKENS, "whole": True}
    stage = judging.judge_stage(tasks, judging.prompt_of, first_preferred, options, **more)
    if options.dry_run:
        judging.estimate(work, pairs, stage, say)
        return None
    options.require_flags("out", "judge")
    options = replace(options, bench=options.bench or options.against, name=names["model"])
    work = replace(work, options=options)
    head = judging.about(work, items, opponent=names["opponent"])
    head = judging.ask_judge(work, head, pairs, stage, say)
    return judgments.keep(score_folder(options.out, head, counts, control), options.out)


def tasks(pair: dict) -> list[dict]:
    """What is asked about a pair: nothing if the outputs are equal."""
    return [pair] if pair["output_1"] != pair["output_2"] else []


# Judgments that there are


def score_folder(folder: Path, head: dict, counts: dict, control: Control) -> dict:
    """The result of what a folder holds. Writes its judgments in upstream's format."""
    found = {record["id"]: record for record in judgments.stored_judgments(folder, first_preferred)}
    pairs = [pair for _, pair in read_jsonl(folder / f"{QUESTIONS}.jsonl")]
    rows, annotations = [], []
    for pair in pairs:
        record = found.get(pair["id"], {})
        p, x = record.get("value"), None
        if pair["output_1"] == pair["output_2"]:
            x = 1.5
        elif p is not None:
            x = preference_of(p, pair["switched"])
        rows.append(Row(int(pair["id"]), lengths_of(pair), x))
        texts = {key: pair[key] for key in TEXTS} | {"dataset": pair["source"]}
        judged = {
            "annotator": head["judge"],
            "preference": x,
            "raw_completion": record.get("reply"),
        }
        annotations.append(texts | judged)
    unanswered = sum(record.get("unanswered", False) for record in found.values())
    counts = {"unanswered": unanswered} | counts
    result = result_of(head, control, rows, all_same(pairs), counts)
    text = json.dumps(annotations, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / ANNOTATIONS, text.encode("utf-8", "replace"))
    return result


def rescore(options: Options) -> dict:
    """The result of judgments that there are: of a folder of `evaluate`, whose replies are read
    once more, or of a file of upstream's. Nobody is asked anything.
    """
    if options.annotations:
        options = replace(options, annotations=None, rescore=(options.annotations,))

    def of_folder(folder: Path, head: dict, counts: dict) -> dict:
        """With the names of the result in the folder, and length controlled as there."""
        control = control_of(options, read_json(folder / RESULT).get("control"))
        return score_folder(folder, head, counts, control)

    return judging.rescored(options, KIND, of_folder, lambda path: score_file(path, options))


def score_file(path: Path, options: Options) -> dict:
    """The result of a file of judgments in upstream's format, of one model."""
    records = list(read_annotations(path))
    names = (record["generator_2"] for record in records)
    model = one_name(names, f"{path}: 'generator_2'", options.name, "--name")
    judged = [record for record in records if record["generator_2"] == model]
    baseline = one_name((record["generator_1"] for record in judged), f"{path}: 'generator_1'")
    own: dict[str, dict] = {}
    for record in judged:
        own.setdefault(record["instruction"], record)
    control, asked = control_of(options), list(own)
    if options.bench:
        asked = [question["turns"][0] for question in read_questions(options.bench, KIND)]
    elif control.by == BY_QUESTIONS and (source := control.difficulty or control.gamed):
        if (known := len(read_difficulty(source))) != len(asked):
            raise UserError(
                f"{path} has {len(asked):,} instructions, {source} {known:,} difficulties: give "
                "all instructions as --bench, or --difficulty-by rows, which is upstream's rule"
            )
    numbers = {text: number for number, text in enumerate(asked)}
    if unknown := [text for text in own if text not in numbers]:
        raise UserError(f"{path}: {unknown[0][:60]!r} is not in {options.bench}")
    rows = [
        Row(numbers[text], lengths_of(record), as_preference(record["preference"]))
        for text, record in own.items()
    ]
    items = [{"id": str(i), "prompt": text} for i, text in enumerate(asked)]
    head = {
        "kind": KIND,
        "model": options.name or model,
        "opponent": options.against_name or baseline,
        "judge": options.judge or str(judged[0].get("annotator") or "unknown"),
        "bench": about_bench(items, options.bench or path),
        "settings": {"recorded": True},
    }
    counts = {
        "unanswered": 0,
        "missing": len(asked) - len(rows),
        "twice": len(judged) - len(own),
        "same": sum(record["output_1"] == record["output_2"] for record in own.values()),
        "empty": sum(not record["output_2"].strip() for record in own.values()),
    }
    return result_of(head, control, rows, all_same(list(own.values())), counts)


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
