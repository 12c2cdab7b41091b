"""Evaluates models: by judges, who are language models behind a server or people, and by measures.

python evaluate.py [--model DIR]       the newest miniature model on the miniature bench
python evaluate.py rubric --bench FILE --responses FILE --judge NAME --out DIR [--base-url URL]
python evaluate.py rubric --rescore DIR, or official evaluation files
python evaluate.py pairwise --bench FILE --responses FILE --against FILE --judge NAME --out DIR
python evaluate.py pairwise --bench FILE --responses FILE --against FILE --sheet OUT.html
python evaluate.py pairwise --from-sheet FILES --key OUT.key.json --out DIR
python evaluate.py alpaca-eval --responses FILE --against FILE --judge NAME --out DIR
python evaluate.py alpaca-eval --annotations FILE
python evaluate.py mt-bench --bench FILE --responses FILE --references FILE --judge NAME --out DIR
python evaluate.py arena-hard --bench FILE --responses FILE --against FILE --judge NAME --out DIR
python evaluate.py toxicity --responses FILE --out DIR
python evaluate.py reward --model DIR --bench FILE --out DIR
python evaluate.py responses --bench FILE --responses FILE
python evaluate.py report DIR ...      results side by side; --summary: models by benchmarks

`python evaluate.py COMMAND --help` lists the flags of a command. The key of a server is read from
an environment variable: OPENAI_API_KEY, or PERSPECTIVE_API_KEY for toxicity.
"""

import inspect
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from janus_min import (
    alpaca_eval,
    arena_hard,
    chart,
    judging,
    mini_data,
    mt_bench,
    pairwise,
    report,
    responses,
    rubric,
    toxicity,
)
from janus_min.cli import Parser, add_fields, given_fields, run
from janus_min.connection import Connection
from janus_min.errors import UserError
from janus_min.examiner import examine
from janus_min.files import as_line, read_json, write_json
from janus_min.loopback import served
from janus_min.perspective import PerspectiveConnection
from janus_min.pipeline import Sampling
from janus_min.summary import as_summary


@dataclass(frozen=True)
class MiniatureOptions:
    """What is evaluated without a command."""

    model: Path | None = None  # directory of a miniature model; the newest one unless given


@dataclass(frozen=True)
class ReportOptions:
    """How results are shown."""

    summary: bool = False  # one table: a row for each model, a column for each benchmark
    markdown: bool = False  # a table for a README
    mixed: bool = False  # even if benches, judges or settings differ
    picture: Path | None = None  # file for a chart (needs matplotlib)


HIDDEN = {  # fields that are no flags here
    Sampling: ("model", "json_mode"),
    PerspectiveConnection: ("tokens_per_minute", "price_in", "price_out", "max_cost"),
}


def parser_of(command: str) -> Parser:
    """The parser for what stands behind the command."""
    return Parser(f"python evaluate.py {command}\n\n{inspect.getdoc(COMMANDS[command])}")


def options_of(command: str, *parts: type) -> list:
    """The values of the flags of a command, one object for each of its dataclasses."""
    parser = parser_of(command)
    for part in parts:
        hidden = (names for kind, names in HIDDEN.items() if issubclass(part, kind))
        add_fields(parser, part, without=next(hidden, ()))
    arguments = parser.parse_args(sys.argv[2:])
    return [part(**given_fields(arguments, part)) for part in parts]


def work_of(kind: str, options: type, sampling: type = Sampling) -> judging.Work:
    """What is given to a command that asks a judge."""
    return judging.Work(*options_of(kind, options, sampling, Connection), kind)


def judge_rubrics() -> None:
    """Has responses graded by the rubrics of their items, as for Multifaceted Bench. With
    --rescore, computes a result from what there is: a folder of judgments, or official evaluation
    files, one for each run.
    """
    work = work_of("rubric", judging.Options)
    if work.options.rescore:
        show(rubric.rescore(work.options))
    else:
        finish(rubric.evaluate(work))


def judge_pairs() -> None:
    """Has the responses of two models compared, in both orders, by a judge, or by people on a page
    that --sheet writes and whose exports --from-sheet reads.
    """
    work = work_of("pairwise", pairwise.Options)
    options = work.options
    if options.from_sheet:
        show(pairwise.people(options))
    elif options.sheet:
        key = pairwise.make_sheet(options)
        print(f"{options.sheet}: the page, to be opened in a browser by everybody who judges")
        print(f"{key}: which side was which model; keep it from them")
    elif options.rescore:
        show(pairwise.rescore(options))
    else:
        finish(pairwise.evaluate(work))


def judge_alpaca_eval() -> None:
    """AlpacaEval 2.0: how likely a judge prefers a model's outputs to a baseline's, by its
    log-probabilities. --annotations scores a file of judgments in upstream's format, --rescore a
    folder. With --difficulty and --weights, or with --df-gamed, the win rate is length-controlled,
    too.
    """
    judge_benchmark(alpaca_eval)


def judge_mt_bench() -> None:
    """MT-Bench: a judge rates both answers of conversations of two turns from 1 to 10. --rescore
    takes a folder of judgments, or a file of them in FastChat's format.
    """
    judge_benchmark(mt_bench)


def judge_arena_hard() -> None:
    """Arena-Hard v0.1: a judge compares a model's answers with a baseline's, in two games each.
    --rescore takes a folder of judgments, or a file of judgments or battles in upstream's format.
    """
    judge_benchmark(arena_hard)


def judge_benchmark(module: ModuleType) -> None:
    """What these three have in common."""
    work = work_of(module.KIND, module.Options, module.Sampling)
    if work.options.rescore or getattr(work.options, "annotations", None):
        show(module.rescore(work.options))
    else:
        finish(module.evaluate(work))


def score_toxicity() -> None:
    """RealToxicityPrompts: how toxic a model's continuations are, by a server with the interface of
    the Perspective API, and how fluent and diverse. --rescore takes what was scored before.
    """
    options, connection = options_of("toxicity", toxicity.Options, PerspectiveConnection)
    if options.rescore:
        show(toxicity.rescore(options))
    else:
        finish(toxicity.evaluate(options, connection), "generations.jsonl")


def rank_pairs() -> None:
    """How often a reward model prefers the better one of two responses: on RewardBench, by subset
    and section, or on any pairs. --rescore counts rewards again without a model.
    """
    from janus_min import reward_bench  # and PyTorch, which takes longer than other commands do

    [options] = options_of("reward", reward_bench.Options)
    show((reward_bench.rescore if options.rescore else reward_bench.evaluate)(options))


def measure_responses() -> None:
    """How long responses are, and how alike (ROUGE-L) those to one instruction are under different
    system messages. Nobody is asked anything.
    """
    show(responses.evaluate(*options_of("responses", responses.Options)))


def show(result: dict) -> None:
    """Prints a result as a table of one row."""
    print(report.as_text([result | {"path": None}]))


def finish(result: dict | None, reasons: str = "judgments.failed.jsonl") -> None:
    """Shows what a judge was asked for; after a dry run there is nothing. Raises UserError if
    something is still to be done, or if nothing came of it, for reasons that stand in a file.
    """
    if result is None:
        return
    show(result)
    counts = result["counts"]
    if counts["unanswered"]:
        count = counts["unanswered"]
        raise UserError(f"without an answer: {count:,}; the same command asks for them again")
    if not counts["ok"]:
        raise UserError(f"nothing could be scored; {reasons} says why")


def show_report() -> None:
    """Puts results side by side: folders of evaluations, or their result.json."""
    parser = parser_of("report")
    parser.add_argument("results", nargs="+", type=Path, metavar="PATH")
    add_fields(parser, ReportOptions)
    arguments = parser.parse_args(sys.argv[2:])
    options = ReportOptions(**given_fields(arguments, ReportOptions))
    results = report.load(arguments.results)
    draw_text = as_summary if options.summary else report.as_text
    print(draw_text(results, options.markdown, options.mixed))
    if options.picture:
        chart.draw(results, options.picture)


def evaluate_miniature(model: Path | None) -> None:
    """What `rubric` does, with the miniature's judge behind a server on this machine."""
    # PyTorch, which few commands need, takes longer than they do.
    from janus_min import grading
    from janus_min.loading import load_for_generation

    directory = model or grading.newest_model()
    policy, tokenizer = load_for_generation(directory)
    recipe_file = directory.parent / "recipe.json"
    recipe = read_json(recipe_file) if recipe_file.is_file() else {}
    print(f"model: {directory}")
    items = mini_data.bench()
    responses = grading.respond(policy, tokenizer, items)
    scores = grading.score_splits(items, responses)
    print(*scores, sep="\n")
    if recipe.get("miniature") == "uniform":
        print(grading.score_uniform(policy, tokenizer))

    options = miniature_files(directory.resolve().parent.name, items, responses)
    with served(examine) as url:
        result = rubric.evaluate(judging.Work(options, Sampling(), Connection(url), "rubric"))
    for score in scores:  # by the same rules, without a server
        found = result["by_source"][score.split]["score"]
        assert abs(found - score.mean) < 1e-9, f"{score.split}: {found}, not {score.mean}"
    finish(result)


def miniature_files(name: str, items: list[dict], responses: list[str]) -> judging.Options:
    """The miniature's bench and responses as files, in a new folder for their evaluation."""
    out = mini_data.FILES / "evaluation" / name
    shutil.rmtree(out, ignore_errors=True)  # nothing in it was paid for
    out.mkdir(parents=True)
    files = out / "bench.jsonl", out / f"{name}_responses.json"
    files[0].write_bytes(b"".join(map(as_line, items)))
    answers = {item["id"]: {"response": text} for item, text in zip(items, responses)}
    write_json(files[1], answers)
    return judging.Options(*files, name, out, "miniature-judge", runs=1)


COMMANDS: dict[str, Callable[[], None]] = {
    "rubric": judge_rubrics,
    "pairwise": judge_pairs,
    "alpaca-eval": judge_alpaca_eval,
    "mt-bench": judge_mt_bench,
    "arena-hard": judge_arena_hard,
    "toxicity": score_toxicity,
    "reward": rank_pairs,
    "responses": measure_responses,
    "report": show_report,
}


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else None
    if command in COMMANDS:
        COMMANDS[command]()
        return
    parser = Parser(__doc__)
    add_fields(parser, MiniatureOptions)
    options = MiniatureOptions(**given_fields(parser.parse_args(), MiniatureOptions))
    evaluate_miniature(options.model)


if __name__ == "__main__":
    run(main)
