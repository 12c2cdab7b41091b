"""Judged evaluations: what they have in common.

Questions go to a judge as the one stage of a pipeline (`pipeline.py`), so that every judgment that
is paid for is in the folder's journal, and a run that is stopped or killed goes on where it was.

    FOLDER/questions.jsonl          what is judged: items with responses
    FOLDER/judgments.jsonl          what the judge said, with the whole reply
    FOLDER/judgments.failed.jsonl   what could not be read, with the last reply, or had no answer
    FOLDER/result.json              the scores, for `evaluate.py report`
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from janus_min.bench import about_bench
from janus_min.collection import Question, Stage
from janus_min.connection import Connection
from janus_min.errors import UserError, require
from janus_min.files import Writer, text_hash
from janus_min.formats import read_jsonl
from janus_min.judgments import (
    JUDGMENTS,
    QUESTIONS,
    begin,
    keep,
    other_folder,
    require_kind,
    stored_head,
)
from janus_min.kinds import KINDS
from janus_min.limits import CHARACTERS_PER_TOKEN, dollars
from janus_min.pipeline import MOST_ATTEMPTS, PLACE, Folder, Pipeline, Sampling
from janus_min.templates import TEMPLATES, Template, own_template, read_template

WRITTEN = 200  # tokens of a judgment, more or less


@dataclass(frozen=True)
class Judged:
    """What is judged, by whom, and where the judgments are kept."""

    bench: Path | None = None  # items, as JSONL or JSON
    responses: Path | None = None  # of the evaluated model, as JSONL or JSON, by the items' ids
    name: str | None = None  # of the evaluated model, for tables; the file's name unless given
    out: Path | None = None  # folder of the judgments and the result
    judge: str | None = None  # name of the judging model, as the server knows it
    judge_prompt: Path | None = None  # file of another prompt, such as the official one
    attempts: int = 6  # replies that a judge may need until one can be read
    max_tokens: int = 1024  # of a reply
    allow_missing: bool = False  # leave items without a response out, and count them
    limit: int | None = None  # first items of the bench to take
    rescore: tuple[Path, ...] | None = None  # judgments to read once more, without any request
    dry_run: bool = False  # count calls and tokens, ask nothing, write nothing
    batch: bool = False  # through the server's batch interface: slower, at another price

    def __post_init__(self) -> None:
        valid = 1 <= self.attempts <= MOST_ATTEMPTS
        require(valid, self, "attempts", f"1 to {MOST_ATTEMPTS}")
        require(self.max_tokens >= 1, self, "max_tokens", "at least 1")
        require(self.limit is None or self.limit >= 1, self, "limit", "at least 1")

        modes = ("rescore", "annotations", "dry_run", "sheet", "from_sheet")
        chosen = [f"--{name.replace('_', '-')}" for name in modes if getattr(self, name, None)]
        if len(chosen) > 1:
            raise UserError(f"{' and '.join(chosen)} do not go together")
        if chosen and chosen[0] in ("--rescore", "--annotations") and self.limit:
            raise UserError(f"{chosen[0]} and --limit do not go together: all is scored")

    def require_flags(self, *names: str) -> None:
        """Raises UserError unless these are given."""
        for name in names:
            if getattr(self, name) is None:
                raise UserError(f"--{name.replace('_', '-')} is needed (see --help)")

    def model_name(self) -> str:
        """What the evaluated model is called."""
        return self.name or file_model(self.responses)

    def settings(self) -> dict:
        """Of these, what must be equal for results to be comparable."""
        return {"max_tokens": self.max_tokens}


@dataclass(frozen=True)
class Options(Judged):
    """The same, for the Multifaceted Bench, whose items have system messages."""

    runs: int = 3  # independent judgments of everything
    show_system: bool = False  # show the judge the system message, too

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.runs <= 100, self, "runs", "1 to 100")

    def settings(self) -> dict:
        """Of these, what must be equal for results to be comparable."""
        return super().settings() | {"show_system": self.show_system}


@dataclass(frozen=True)
class Work:
    """All that a judged evaluation needs."""

    options: Judged
    sampling: Sampling
    connection: Connection
    kind: str  # one of TEMPLATES

    def templates(self) -> list[Template]:
        """The judge's prompts, in the order of TEMPLATES."""
        path, kinds = self.options.judge_prompt, TEMPLATES[self.kind]
        return [read_template(path, kind) if path else own_template(kind) for kind in kinds]

    def template(self) -> Template:
        """The judge's prompt, if there is but one."""
        [template] = self.templates()
        return template

    def settings(self) -> dict:
        """What must be equal for results to be comparable."""
        return {
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "extra": json.loads(self.sampling.extra or "{}"),
            **self.options.settings(),
            "prompt": text_hash(json.dumps(self.templates())),
        }


def file_model(path: Path) -> str:
    """The model that a file of responses or judgments names, as the official scripts do."""
    stem = path.stem
    for ending in ("_responses", "_evaluation"):
        stem = stem.removesuffix(ending)
    return stem


def about(work: Work, items: list[dict], **opponent: str) -> dict:
    """The head of a result: who was judged, by whom, on what (the first `limit` items), and how."""
    options = work.options
    head = {"kind": work.kind, "model": options.model_name(), **opponent, "judge": options.judge}
    bench = about_bench(items[: options.limit], options.bench)
    return head | {"bench": bench, "settings": work.settings()}


# Asking


def ask_judge(
    work: Work, head: dict, questions: Iterable[dict], stage: Stage, say: Callable[[str], None]
) -> dict:
    """Asks for all judgments. Returns the head with the models that the server names as those
    that replied, over all the folder's time.

    The folder belongs to the models, the judge and the settings that `head` names. Items and
    responses may change: a request that is the same has its reply already.
    """
    options = work.options
    require_kind(options.out, head["kind"])
    own = {key: head[key] for key in ("kind", "model", "opponent", "judge") if key in head}
    with Folder(options.out, own | head["settings"]) as folder:
        begin(folder, stage.name)
        writer = Writer(folder.file(QUESTIONS))
        for question in questions:
            writer.add(question)
        writer.close()
        pipeline = Pipeline(
            folder,
            replace(work.sampling, model=options.judge),
            work.connection,
            options.attempts,
            options.batch,
        )
        judgments = pipeline.run(stage, writer.path)
        counts = folder.stages[stage.name]
        read, written = folder.journal.tokens
        cost = dollars((read, written), work.connection.price_in, work.connection.price_out)
        say(
            f"{judgments}: {counts['records']:,}, {counts['failed']:,} failed; tokens: {read:,} "
            f"read, {written:,} written" + (f", ${cost:,.2f}" if cost else "")
        )
        replies = (line.get("reply", {}) for _, line in read_jsonl(folder.journal.path))
        models = {reply["model"] for reply in replies if isinstance(reply.get("model"), str)}
    return head | {"answered_by": sorted(models)}


def judge_stage(
    tasks: Callable[[dict], list[dict]],
    messages: Callable[[dict], tuple[str, str]],
    read: Callable[[str | dict], object],
    options: Judged,
    fan_out: int = 1,
    *,
    extra: dict | None = None,
    **more: object,
) -> Stage:
    """The stage of a judged evaluation: records have the "value" that `read` finds in the reply.
    For one that cannot be read, another one is asked for; each "run" has replies of its own.
    `extra` are parameters of the request, `more` are fields of the stage.
    """

    def ask(task: dict) -> Question:
        """The prompt, filled in."""
        return Question(*messages(task), False, options.max_tokens, task.get("run", 0), extra)

    def judgment(task: dict, reply: str | dict) -> dict:
        """The reply and what it says."""
        place = {key: task[key] for key in PLACE if key in task}
        return place | {"value": read(reply), "reply": reply}

    written = min(WRITTEN, options.max_tokens)
    return Stage(JUDGMENTS, tasks, ask, judgment, fan_out, written, **{"again": None} | more)


def prompt_of(question: dict) -> tuple[str, str]:
    """The messages to the judge, where a question has them itself."""
    return question["system_prompt"], question["user_prompt"]


def estimate(
    work: Work, questions: Iterable[dict], stage: Stage, say: Callable[[str], None]
) -> None:
    """Says how many calls and tokens an evaluation takes, and what it costs."""
    calls = characters = 0
    for question in questions:
        for task in stage.tasks(question):
            asked = stage.ask(task)
            calls, characters = calls + 1, characters + len(asked.system) + len(asked.user)
    tokens = characters // CHARACTERS_PER_TOKEN, calls * stage.written
    say(f"{calls:,} calls, about {tokens[0]:,} tokens read and {tokens[1]:,} written")
    prices = work.connection
    if prices.price_in + prices.price_out > 0:
        cost = dollars(tokens, prices.price_in, prices.price_out)
        say(f"about ${cost:,.2f} at ${prices.price_in:g} and ${prices.price_out:g} per million")
    say(
        f"Estimated with {CHARACTERS_PER_TOKEN} characters per token and judgments of "
        f"{stage.written} tokens, without second attempts."
    )


# Judgments that there are


def rescored(
    options: Judged,
    kind: str,
    of_folder: Callable[[Path, dict, dict], dict],
    of_file: Callable[[Path], dict],
) -> dict:
    """The result of judgments that there are, which goes into `out`, or else into the folder: that
    of a folder, whose replies are read once more, by the folder, the head of its result and counts
    that its judgments do not show; or that of a file of upstream's.
    """
    [path, *others] = options.rescore
    if others:
        raise UserError("--rescore: one folder or file at a time")
    out = other_folder(options.out, path)
    if not path.is_dir():
        return keep(of_file(path), out)
    names = {"model": options.name, "judge": options.judge}
    if "opponent" in KINDS[kind].shape:
        names["opponent"] = options.against_name
    if out:
        require_kind(out, kind)
    return keep(of_folder(path, *stored_head(path, kind, **names)), out or path)
