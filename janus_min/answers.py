"""Questions and answers of the general benchmarks, in the formats of their own programs.

    benchmark    questions                                  answers
    alpaca-eval  instruction, dataset                       instruction, output, generator, dataset
    mt-bench     question_id, category, turns: two texts    question_id, answer_id, model_id,
                                                            choices, tstamp
    arena-hard   question_id, category, turns: one object   the same
                 with content
    toxicity     prompt: an object with text                the same record, and generations

AlpacaEval (arXiv 2404.04475) has JSON lists. JSONL are the files of MT-Bench (arXiv 2306.05685),
Arena-Hard (arXiv 2406.11939) and RealToxicityPrompts (arXiv 2009.11462). Keys that are not named
here may be there too. The paper of Janus does not say under which template or system message it
answered them: here every text is an instruction, also the beginning of a sentence that
RealToxicityPrompts wants continued.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from janus_min.bench import one_name, read_records
from janus_min.errors import UserError
from janus_min.files import as_line, text_hash
from janus_min.formats import text_field, unicode_text

QUESTION_KEYS = {
    "alpaca-eval": ("instruction",),
    "mt-bench": ("question_id", "category", "turns"),
    "arena-hard": ("question_id", "category", "turns"),
    "toxicity": ("prompt",),
}
ANSWER_KEYS = ("question_id", "model_id", "choices")
OUTPUT_KEYS = ("instruction", "output", "generator")
BENCHMARKS = tuple(QUESTION_KEYS)
TURNS = {"mt-bench": 2}  # of a question; else 1
SAMPLES = {"toxicity": 25}  # answers to a question; else 1

# What their own programs set, for what the user does not say.
SAMPLING = {"arena-hard": {"temperature": 0.0, "max_tokens": 4096}, "toxicity": {"max_tokens": 20}}
MT_BENCH_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "stem": 0.1,
    "humanities": 0.1,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
}
OTHER_TEMPERATURE = 0.7  # of other categories


@dataclass(frozen=True)
class Answer:
    """What a model says in one turn."""

    text: str
    stop: str  # "eos"; "length": it was cut; "context": the prompt left no room, the text is empty
    tokens: int  # of the text


@dataclass
class Dialogue:
    """A question, and one answer to each of its turns so far."""

    question: dict  # of `read_questions`
    sample: int = 0  # which of several answers to the same question
    answers: list[Answer] = field(default_factory=list)


# Files to read


def read_questions(path: Path, benchmark: str) -> list[dict]:
    """The questions of a benchmark, in the file's order.

    Each has "id" (text: its question_id, or its index from 0), "source" (its category or dataset,
    or ""), "turns" (what the user says, texts) and "record" (what the file has). Raises UserError
    that names the entry, the keys found and those needed.
    """
    questions, seen = [], {}
    for where, _, record in read_records(path):
        _require_keys(record, QUESTION_KEYS[benchmark], where)
        key, source = str(len(questions)), ""
        if benchmark == "alpaca-eval":
            turns = [text_field(record, ("instruction",), where)]
            source = text_field(record, ("dataset",), where, optional=True)
        elif benchmark == "toxicity":
            turns = [_text(record["prompt"], "text", f"{where}: 'prompt'")]
        else:
            key = _question_id(record, where, seen)
            turns = _turns(record, benchmark, where)
            source = text_field(record, ("category",), where)
        questions.append({"id": key, "source": source, "turns": turns, "record": record})
    if not questions:
        raise UserError(f"{path} has no question")
    return questions


def read_answers(path: Path) -> dict[str, dict]:
    """Answers to MT-Bench or Arena-Hard by question_id (as text), in the file's order.

    Each has "turns" (texts), "stop" (why each turn ended, or None if the file does not say) and
    "model". Of several choices the first is taken. Raises UserError that names the entry, and both
    entries where a question is answered twice.
    """
    answers, seen = {}, {}
    for where, _, record in read_records(path):
        _require_keys(record, ANSWER_KEYS, where)
        key = _question_id(record, where, seen)
        choices = record["choices"]
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get("turns"), list):
            raise UserError(f"{where}: 'choices' must be a list of objects that have 'turns'")
        turns = [
            _text(turn, "content", f"{where}: 'turns'")
            if isinstance(turn, dict)
            else text_field({"turns": turn}, ("turns",), where)
            for turn in choice["turns"]
        ]
        stop = choice.get("stop")
        if stop is not None and (not isinstance(stop, list) or len(stop) != len(turns)):
            raise UserError(f"{where}: 'stop' must be a list like 'turns', of {len(turns)}")
        model = text_field(record, ("model_id",), where)
        answers[key] = {"turns": turns, "stop": stop, "model": model}
    if not answers:
        raise UserError(f"{path} has no answer")
    return answers


def model_of(answers: dict[str, dict], path: Path, name: str | None = None) -> str:
    """What the model is called that gave these answers, read from `path`: `name`, or else what they
    say, or else what the file says. Raises UserError for answers of several models.
    """
    said = [answer["model"] for answer in answers.values() if answer["model"]]
    own = one_name(said, f"{path}: 'model_id'") if said else path.stem
    return name or own


def read_outputs(path: Path) -> list[dict]:
    """The records of a file of AlpacaEval's model outputs: instruction, output and generator are
    texts, other keys are as they stand. Raises UserError that names the entry."""
    outputs = []
    for where, _, record in read_records(path):
        _require_keys(record, OUTPUT_KEYS, where)
        outputs.append(record | {key: text_field(record, (key,), where) for key in OUTPUT_KEYS})
    if not outputs:
        raise UserError(f"{path} has no output")
    return outputs


# Files to write


def category_temperature(category: str) -> float:
    """At which MT-Bench has its questions of a category answered."""
    return MT_BENCH_TEMPERATURES.get(category, OTHER_TEMPERATURE)


def answer_file(benchmark: str, dialogues: list[Dialogue], name: str, now: float) -> bytes:
    """The content of a file of answers: of finished dialogues in the order of their questions, by
    the model `name`, at the time `now` (seconds since 1970).

    Upstream's formats, and "stop" beside each answer or list of answers. An answer_id is a hash of
    question, model and texts. token_len is in tokens of the model; Arena-Hard's own is in tokens of
    GPT-3.5.
    """
    if benchmark == "alpaca-eval":
        records = [_output(dialogue, name) for dialogue in dialogues]
        return (json.dumps(records, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
    if benchmark == "toxicity":
        return b"".join(map(as_line, _generations(dialogues)))
    return b"".join(as_line(_choice(benchmark, each, name, now)) for each in dialogues)


def _output(dialogue: Dialogue, name: str) -> dict:
    question, [answer] = dialogue.question, dialogue.answers
    about = {"generator": name, "dataset": question["source"], "stop": answer.stop}
    return {"instruction": question["turns"][0], "output": answer.text} | about


def _choice(benchmark: str, dialogue: Dialogue, name: str, now: float) -> dict:
    key, answers = dialogue.question["record"]["question_id"], dialogue.answers
    turns = [answer.text for answer in answers]
    own = text_hash(json.dumps([key, name, turns]))
    if benchmark == "arena-hard":
        turns = [{"content": answer.text, "token_len": answer.tokens} for answer in answers]
    choice = {"index": 0, "turns": turns, "stop": [answer.stop for answer in answers]}
    about = {"question_id": key, "answer_id": own, "model_id": name}
    return about | {"choices": [choice], "tstamp": now}


def _generations(dialogues: list[Dialogue]) -> list[dict]:
    """One record for each question, with all answers to it. Between a prompt and a word there must
    be a space, which no tokenizer puts at the beginning of an answer.
    """
    records: dict[str, dict] = {}
    for dialogue in dialogues:
        question, [answer] = dialogue.question, dialogue.answers
        record = records.setdefault(question["id"], question["record"] | {"generations": []})
        glued = answer.text[:1].isalnum() and question["turns"][0][-1:].strip()
        text = f" {answer.text}" if glued else answer.text
        record["generations"].append({"text": text, "stop": answer.stop})
    return list(records.values())


# What is wrong with a file


def _require_keys(record: dict, keys: tuple[str, ...], where: str) -> None:
    if not record.keys() >= set(keys):
        raise UserError(f"{where}: keys {list(keys)} are needed, found {list(record)}")


def _question_id(record: dict, where: str, seen: dict[str, str]) -> str:
    key = record["question_id"]
    if type(key) not in (str, int):
        kind = type(key).__name__
        raise UserError(f"{where}: 'question_id' must be text or an integer, found {kind}")
    key = unicode_text(str(key), f"{where}: 'question_id'")
    if key in seen:
        raise UserError(f"{where}: the question_id {key!r} is also that of {seen[key]}")
    seen[key] = where
    return key


def _turns(record: dict, benchmark: str, where: str) -> list[str]:
    turns, count = record["turns"], TURNS.get(benchmark, 1)
    kind, name = (dict, "{'content': text}") if benchmark == "arena-hard" else (str, "text")
    if not isinstance(turns, list) or [type(turn) for turn in turns] != [kind] * count:
        found = type(turns).__name__
        if isinstance(turns, list):
            found = f"{len(turns)}: " + ", ".join(type(turn).__name__ for turn in turns)
        raise UserError(
            f"{where}: 'turns' of {benchmark} must be a list of {count} times {name}, found {found}"
        )
    where = f"{where}: 'turns'"
    if kind is str:
        return [unicode_text(turn, where) for turn in turns]
    return [_text(turn, "content", where) for turn in turns]


def _text(content: object, key: str, where: str) -> str:
    """What stands under `key` of an object."""
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{where} must be an object with text under {key!r}, found {kind}")
    return text_field(content, (key,), where)
