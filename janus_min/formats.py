"""Files of the published data sets, as text: one JSON object per line, under the names that their
columns have on the hub and in the official training configurations.

    SFT             system, prompt (or instruction), output; or text, which is trained whole
    pairs           system, prompt (or instruction), chosen, rejected (or ..._response)
                    the same with chosen and rejected as lists of chat messages
                    input, chosen, rejected; input is system message and instruction in one
    reward only     chosen, rejected: whole transcripts (Anthropic/hh-rlhf)
                    prompt "prompter:…", chosen, rejected (tasksource/oasst1_pairwise_rlhf_reward)
                    question, answer_0, answer_1, score_0, score_1 (openai/webgpt_comparisons)

    Note: the transcripts keep their own "Human:" and "Assistant:", without [INST], as in the
    official reward model's second stage. Pairs of WebGPT with equal scores, of which the official
    run prefers the second one, are dropped.
"""

import json
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from janus_min.chat import prompt_text
from janus_min.errors import UserError

INSTRUCTION = ("prompt", "instruction")
CHOSEN, REJECTED = ("chosen", "chosen_response"), ("rejected", "rejected_response")
NEEDED_PAIR = "needed are 'prompt' (or 'instruction' or 'input'), 'chosen' and 'rejected'"


class Texts(NamedTuple):
    """One row of a file."""

    prompt: str  # all that stands between BOS and the response; empty for plain text
    responses: tuple[str, ...]  # one, or the chosen and the rejected


# (record, its file and line) -> texts, or the reason why the record is of no use
Parse = Callable[[dict, str], Texts | str]


def require_jsonl(path: Path) -> None:
    """Raises UserError unless there is a file that can be JSONL."""
    if path.suffix == ".parquet":
        raise UserError(
            f'{path}: Parquet is not read; convert it once: python -c "import pandas; '
            f"pandas.read_parquet('{path}').to_json('{path.with_suffix('.jsonl')}', "
            "orient='records', lines=True, force_ascii=False)\""
        )
    if not path.is_file():
        raise UserError(f"{path} not found: a JSONL file is needed, one JSON object per line")


def read_jsonl(path: Path | str) -> Iterator[tuple[int, dict]]:
    """Yields (line number, object) of a JSONL file. Raises UserError that names file and line."""
    path = Path(path)
    require_jsonl(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8").rstrip())
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})"
                ) from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(record, dict):
                raise UserError(
                    f"{path}:{number}: a JSON object is needed, found {type(record).__name__}"
                )
            yield number, record


def text_field(record: dict, keys: tuple[str, ...], where: str, optional: bool = False) -> str:
    """The first of `keys` that the record has, as text; "" for an optional one absent or null."""
    key = next((key for key in keys if key in record), None)
    if optional and (key is None or record[key] is None):
        return ""
    if key is None:
        wanted = " or ".join(map(repr, keys))
        raise UserError(f"{where}: key {wanted} is needed, found {sorted(record)}")
    if not isinstance(record[key], str):
        raise UserError(f"{where}: {key!r} must be text, found {type(record[key]).__name__}")
    return unicode_text(record[key], f"{where}: {key!r}")


def unicode_text(text: str, where: str) -> str:
    """The text itself, unless half of a surrogate pair in it has no encoding."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where} holds a lone surrogate, which is no Unicode text") from None
    return text


# Rows


def sft_row(record: dict, where: str) -> Texts | str:
    """A prompt and its response, or plain text."""
    if "text" in record and not record.keys() & {"output", *INSTRUCTION}:
        return Texts("", (text_field(record, ("text",), where),))
    if "output" not in record and record.keys() & {*CHOSEN, *REJECTED}:
        raise UserError(
            f"{where}: this is a preference pair, for SFT needed are 'prompt' (or 'instruction') "
            f"and 'output'; found {sorted(record)}"
        )
    system = text_field(record, ("system",), where, optional=True)
    instruction = text_field(record, INSTRUCTION, where)
    output = text_field(record, ("output",), where)
    return Texts(prompt_text(system, instruction), (output,)) if instruction.strip() else NO_PROMPT


def pair_row(record: dict, where: str) -> Texts | str:
    """A prompt, the chosen and the rejected response."""
    columns = [next((key for key in keys if key in record), None) for keys in (CHOSEN, REJECTED)]
    if None in columns:
        raise UserError(
            f"{where}: this is no preference pair: {NEEDED_PAIR}; found {sorted(record)}"
        )
    (chat, chosen), (other, rejected) = (_turns(record, key, where) for key in columns)
    if chat != other:
        raise UserError(f"{where}: {columns[0]!r} and {columns[1]!r} answer different messages")
    system = text_field(record, ("system",), where, optional=True) or chat.get("system", "")
    if "input" in record:
        system, instruction = "", text_field(record, ("input",), where)
    elif record.keys() & {*INSTRUCTION}:
        instruction = text_field(record, INSTRUCTION, where)
        if chat.get("user", instruction) != instruction:
            raise UserError(f"{where}: {columns[0]!r} answers another message than the prompt")
    elif "user" in chat:
        instruction = chat["user"]
    else:
        raise UserError(
            f"{where}: {NEEDED_PAIR}; found {sorted(record)} (transcripts without a prompt are "
            "read by the reward recipes alone)"
        )
    if not instruction.strip():
        return NO_PROMPT
    return Texts(prompt_text(system, instruction), (chosen, rejected))


def _turns(record: dict, key: str, where: str) -> tuple[dict[str, str], str]:
    """A response, and the messages before it by their role, if they are there."""
    if not isinstance(record[key], list):
        return {}, text_field(record, (key,), where)
    turns, where = record[key], f"{where}: {key!r}"
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
    known = all(role in ("system", "user", "assistant") for role in roles)
    if roles[-1:] != ["assistant"] or not known:
        raise UserError(
            f"{where} must be text, or messages with 'role' and 'content' that end with the "
            "assistant's"
        )
    if len(set(roles)) < len(roles):
        raise UserError(
            f"{where} has {len(roles)} messages; conversations of several turns are not trained"
        )
    texts = [text_field(turn, ("content",), where) for turn in turns]
    return dict(zip(roles[:-1], texts[:-1])), texts[-1]


def reward_row(record: dict, where: str) -> Texts | str:
    """A pair, or a row of the three data sets of the reward model's second stage."""
    if "question" in record and "answer_0" in record:
        return _webgpt(record, where)
    if isinstance(record.get("prompt"), str) and record["prompt"].startswith("prompter:"):
        prompt = text_field(record, ("prompt",), where).replace("prompter:", "\nHuman:\n")
        prompt = prompt.replace("assistant:", ASSISTANT_OASST) + ASSISTANT_OASST
        return Texts(prompt, tuple(text_field(record, k, where) for k in (CHOSEN, REJECTED)))
    transcripts = [record.get(key) for key in ("chosen", "rejected")]
    if record.keys() & {"input", *INSTRUCTION} or not all(isinstance(t, str) for t in transcripts):
        return pair_row(record, where)
    chosen, rejected = (text_field(record, (key,), where) for key in ("chosen", "rejected"))
    same = takewhile(lambda letters: letters[0] == letters[1], zip(chosen, rejected))
    common = "".join(letter for letter, _ in same)
    start = common.rfind(ASSISTANT_HH) + len(ASSISTANT_HH)
    if start < len(ASSISTANT_HH):
        return "transcripts without a common prompt"
    # The space before a response is the word-start mark of its first token.
    return Texts(common[:start], tuple(t[start:].removeprefix(" ") for t in (chosen, rejected)))


ASSISTANT_HH, ASSISTANT_OASST = "\n\nAssistant:", "\nAssistant:\n"
NO_PROMPT = "empty prompt"


def _webgpt(record: dict, where: str) -> Texts | str:
    if not isinstance(record["question"], dict):
        raise UserError(f"{where}: 'question' must be an object with 'full_text'")
    question = text_field(record["question"], ("full_text",), f"{where}: 'question'")
    answers = [text_field(record, (key,), where) for key in ("answer_0", "answer_1")]
    scores = [record.get(key) for key in ("score_0", "score_1")]
    if not all(isinstance(score, int | float) for score in scores):
        raise UserError(f"{where}: 'score_0' and 'score_1' must be numbers, found {scores}")
    if scores[0] == scores[1]:
        return "equal scores"
    if scores[0] < scores[1]:
        answers.reverse()
    return Texts(prompt_text(None, question), tuple(answers)) if question.strip() else NO_PROMPT
