"""Answers by a model behind a server with OpenAI's interface, in place of one on this machine.

    OUTPUT.calls/            what was asked and what was paid for, as of any pipeline
    OUTPUT.failed.jsonl      what has no answer, with the reason; there is none if all is answered

An answer that ends by itself has the stop "eos"; one that was cut at max_tokens is an answer too,
with the stop "length"; an empty one is an answer without text, as a local model may give it, and is
counted. One that was filtered or refused is none: another one is asked for, --attempts in all, and
then there is a reason in the place of an answer. So it is for a prompt that the server does not
take, such as one that is too long for the model: the others are answered.

Sampling parameters are those of OpenAI's interface: temperature, top_p, max_tokens. It has no
repetition penalty, by which the paper sampled; vLLM takes one beside the others, so it is sent if
it is asked for, and only then. A seed is sent only if it is given, and sample number k gets
seed + k, or all samples would be the same. Equal prompts get equal samples, and are paid once.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from janus_min.answers import Answer, Dialogue
from janus_min.collection import Question, Stage
from janus_min.connection import Connection, Request
from janus_min.errors import UserError, require
from janus_min.files import Writer
from janus_min.formats import read_jsonl
from janus_min.limits import CHARACTERS_PER_TOKEN, dollars
from janus_min.pipeline import MOST_ATTEMPTS, Failed, Folder, Pipeline, Sampling
from janus_min.replies import ReplyError, unusable

WRITTEN = 400  # tokens of an answer, more or less


@dataclass(frozen=True)
class Remote:
    """How a server is asked for answers."""

    model_name: str | None = None  # of a model behind --base-url, as the server knows it
    extra: str | None = None  # JSON object of more parameters; null takes one of ours away
    attempts: int = 3  # replies to a prompt, until one is neither filtered nor refused
    batch: bool = False  # through the server's batch interface: slower, at another price
    dry_run: bool = False  # say how many calls and tokens it takes, or how much memory, and end

    def __post_init__(self) -> None:
        valid = 1 <= self.attempts <= MOST_ATTEMPTS
        require(valid, self, "attempts", f"1 to {MOST_ATTEMPTS}")


class Work(NamedTuple):
    """Who is asked, and how."""

    remote: Remote
    sampling: Sampling
    max_tokens: int
    seed: int | None
    connection: Connection

    def settings(self) -> dict:
        """What makes a folder what it is; prompts, and how many samples, may change."""
        own = {"max_tokens": self.max_tokens, "seed": self.seed}
        own["extra"] = json.loads(self.sampling.extra or "{}")
        return asdict(self.sampling) | own


def make_work(
    remote: Remote,
    connection: Connection,
    *,
    temperature: float,
    top_p: float,
    max_tokens: int,
    repetition_penalty: float | None = None,
    seed: int | None = None,
) -> Work:
    """What the flags say. The penalty and the seed are those that the user gave, else None."""
    if not remote.model_name and not remote.dry_run:
        raise UserError("--model-name is needed: the name of a model, as the server knows it")
    sampling = Sampling(remote.model_name, temperature, top_p, extra=remote.extra)
    if repetition_penalty is not None:
        extra = {"repetition_penalty": repetition_penalty} | json.loads(remote.extra or "{}")
        sampling = replace(sampling, extra=json.dumps(extra))
    return Work(remote, sampling, max_tokens, seed, connection)


class Reply(NamedTuple):
    """An answer."""

    text: str
    stop: str  # "eos", or "length" where max_tokens or the context ended it
    model: str | None  # that the server names
    tokens: list[int]  # two: read and written, as the server counts them


class Missing(NamedTuple):
    """Why there is none."""

    reason: str
    unanswered: bool  # nothing was paid for: it is asked for again next time


# Asking


def answer_prompts(
    prompts: Iterable[tuple[str, str]], n: int, work: Work, output: Path
) -> list[Reply | Missing]:
    """n answers to each pair of system message and instruction: those to the first one, and so on.

    All that was paid for is in the folder beside `output`, before this returns or raises.
    """
    tasks = [_task(system, [text], [], k) for system, text in prompts for k in range(n)]
    with _folder(output, work) as folder:
        found = _ask(tasks, "answers", work, folder)
        _tell(found, work, folder)
    return found


def answer_dialogues(
    dialogues: Sequence[Dialogue],
    system: str | None,
    temperature: Callable[[Dialogue], float] | None,
    work: Work,
    output: Path,
) -> dict[int, Missing]:
    """Adds the answers to all turns to each dialogue. Returns which dialogues have a turn without
    an answer, by their index: these are not gone on with.

    `temperature` gives that of a dialogue, in place of the one for all.
    """
    missing: dict[int, Missing] = {}
    all_found: list[Reply | Missing] = []
    with _folder(output, work) as folder:
        for turn in range(1, 1 + max(len(each.question["turns"]) for each in dialogues)):
            left = [index for index in range(len(dialogues)) if index not in missing]
            tasks = []
            for each in (dialogues[index] for index in left):
                said = each.question["turns"][:turn], [answer.text for answer in each.answers]
                own = temperature(each) if temperature else None
                tasks.append(_task(system, *said, each.sample, own))
            found = _ask(tasks, f"answers-{turn}", work, folder)
            for index, reply in zip(left, found):
                if isinstance(reply, Missing):
                    missing[index] = reply
                else:
                    answer = Answer(reply.text, reply.stop, reply.tokens[1])
                    dialogues[index].answers.append(answer)
            all_found += found
        _tell(all_found, work, folder)
    return missing


def _task(
    system: str | None,
    turns: list[str],
    answers: list[str],
    sample: int,
    temperature: float | None = None,
) -> dict:
    """A conversation that waits for its next answer, as the pipeline takes it. An empty system
    message is none. `temperature` stands in place of the one for all.
    """
    messages = [{"role": "system", "content": system}] if system else []
    for number, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        messages += [{"role": "assistant", "content": text} for text in answers[number:][:1]]
    return {"run": sample, "temperature": temperature, "messages": messages}


class _Answers(Pipeline):
    """A pipeline whose tasks bring their messages; stages read a reply's line of the journal."""

    def outcome(self, stage: Stage, task: dict) -> dict | Failed | Request:
        """The same as that of any pipeline, but for the messages and the line."""
        question, reason, reply = stage.ask(task), "", None
        for attempt in range(self.attempts):
            sample = question.sample * MOST_ATTEMPTS + attempt
            request = Request(self.sampling.body(task["messages"], question), sample)
            line = self.folder.journal.get(request.key())
            if line is None:
                return request
            try:
                return stage.read(task, line)
            except ReplyError as error:
                reason, reply = str(error), line["reply"]
        return Failed(f"after {self.attempts} attempts: {reason}", reply)


@contextmanager
def _folder(output: Path, work: Work) -> Iterator[Folder]:
    try:
        folder = Folder(calls_folder(output), work.settings())
    except UserError as error:  # which names the flag of other programs
        raise UserError(str(error).replace("another --out", "another --output")) from None
    with folder:
        yield folder


def _ask(tasks: list[dict], name: str, work: Work, folder: Folder) -> list[Reply | Missing]:
    """The answers, in the order of the conversations."""

    def ask(task: dict) -> Question:
        """All that stands in a request beside its messages."""
        extra = {} if work.seed is None else {"seed": work.seed + task["run"]}
        if task["temperature"] is not None:
            extra["temperature"] = task["temperature"]
        return Question("", "", False, work.max_tokens, task["run"], extra)

    def read(task: dict, line: dict) -> dict:
        """What is kept of an answer."""
        reply = line["reply"]
        model = reply["model"] if isinstance(reply.get("model"), str) else None
        own = Reply(reply["text"], stop_of(reply), model, line["tokens"])
        return {"id": task["id"], **own._asdict()}

    writer = Writer(folder.file(name.replace("answers", "questions")))
    for number, task in enumerate(tasks):
        writer.add({"id": number, **task})
    writer.close()
    stage = Stage(name, lambda record: [record], ask, read, 1, WRITTEN, again=None, whole=True)
    how = work.sampling, work.connection, work.remote.attempts, work.remote.batch
    _Answers(folder, *how).run(stage, writer.path)
    found: dict[int, Reply | Missing] = {}
    for _, record in read_jsonl(folder.file(name)):
        number = record.pop("id")
        found[number] = Reply(**record)
    for _, record in read_jsonl(folder.file(f"{name}.failed")):
        found[record["id"]] = Missing(record["reason"], record.get("unanswered", False))
    return [found[number] for number in range(len(tasks))]


def stop_of(reply: dict) -> str:
    """Why an answer ended: "eos" or "length". Raises ReplyError for what is no answer."""
    if reply["finish"] == "length" and not reply.get("refusal"):
        return "length"
    reason = unusable(reply)
    if reason not in (None, "empty"):
        raise ReplyError(reason)
    return "eos"


# What is said and left


def calls_folder(output: Path) -> Path:
    """Where all that was asked for an output file is kept."""
    return output.with_name(output.name + ".calls")


def failed_file(output: Path) -> Path:
    """Where it stands what an output file lacks."""
    return output.with_name(output.name + ".failed.jsonl")


def finish(output: Path, failures: list[tuple[dict, Missing]], total: int) -> None:
    """Writes down what has no answer, as records with their reasons. Raises UserError if there is
    something, which says what to do; or else, no file of an earlier run stays.
    """
    path = failed_file(output)
    if not failures:
        path.unlink(missing_ok=True)
        return
    writer = Writer(path)
    for record, missing in failures:
        writer.add(record | {"reason": missing.reason})
    writer.close()
    again = sum(missing.unanswered for _, missing in failures)
    raise UserError(
        f"without an answer: {len(failures):,} of {total:,}, {path} says why"
        + (f"; the same command asks for {again:,} of them again" if again else "")
        + ("; filtered or refused ones need more --attempts" if again < len(failures) else "")
    )


def _tell(found: list[Reply | Missing], work: Work, folder: Folder) -> None:
    replies = [each for each in found if isinstance(each, Reply)]
    models = sorted({each.model for each in replies if each.model})
    empty = sum(not each.text.strip() for each in replies)
    read, written = folder.journal.tokens
    cost = dollars((read, written), work.connection.price_in, work.connection.price_out)
    print(
        f"{folder.path}: {len(replies):,} answers"
        + (f" by {', '.join(models)}" if models else "")
        + (f", {empty:,} empty" if empty else "")
        + f", {len(found) - len(replies):,} failed; tokens: {read:,} read, {written:,} written"
        + (f", ${cost:,.2f}" if cost else "")
    )


def estimate(conversations: Iterable[tuple[str | None, list[str]]], n: int, work: Work) -> None:
    """Says how many calls and tokens it takes to have all turns of conversations, given by their
    system messages and turns, answered n times, and what it costs.
    """
    calls, read, each = 0, 0.0, min(WRITTEN, work.max_tokens)
    for system, turns in conversations:
        characters = len(system or "")
        for number, turn in enumerate(turns):
            characters += len(turn)
            read += n * (characters / CHARACTERS_PER_TOKEN + number * each)
            calls += n
    tokens, prices = (int(read), calls * each), work.connection
    print(f"{calls:,} calls, about {tokens[0]:,} tokens read and {tokens[1]:,} written")
    if prices.price_in + prices.price_out > 0:
        cost = dollars(tokens, prices.price_in, prices.price_out)
        print(f"about ${cost:,.2f} at ${prices.price_in:g} and ${prices.price_out:g} per million")
    print(f"Estimated with {CHARACTERS_PER_TOKEN} characters per token, answers of {each} tokens.")
