"""Files of instructions in, unique usable instructions out, each drop with its reason.

The first stage of a collection. `FORMATS` says how each data set holds an instruction: the five of
the paper (arXiv 2405.17977, section 3.1), then what other files have in common. Of a conversation
only the user's first turn is taken.
"""

import csv
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from janus_min.duplicates import Duplicates, Overlap, normal_form
from janus_min.errors import UserError, require
from janus_min.formats import read_jsonl, require_jsonl

NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and halves of surrogate pairs


class Instruction(NamedTuple):
    """What a user asked for, and where it comes from."""

    main_source: str  # the data set
    original_source: str  # where the data set has it from
    prompt: str
    language: str | None  # what the data set says
    where: str  # file:line, or file:number of the item


# Records


def read_records(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields (file:line or file:number of the item, record) of a .jsonl, .json or .csv file.

    Raises UserError that names what is wrong with the file, and its line where that is known.
    """
    require_file(path)
    number = None
    for number, record in READERS[path.suffix.lower()](path):
        yield f"{path}:{number}", record
    if number is None:
        raise UserError(f"{path} is empty: at least one record is needed")


def require_file(path: Path) -> None:
    """Raises UserError unless there is a file of a kind that is read."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        require_jsonl(path)  # says how to convert it
    if not path.is_file():
        raise UserError(f"{path} not found: a .jsonl, .json or .csv file is needed")
    if suffix not in READERS:
        raise UserError(f"{path}: {suffix or 'no suffix'}; needed is .jsonl, .json or .csv")


def _lines(path: Path) -> Iterator[str]:
    """Decoded line by line, so that an error can name the line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                why = f"not UTF-8 ({error.reason} at byte {error.start})"
                raise UserError(f"{path}:{number}: {why}") from None


def _json(path: Path) -> Iterator[tuple[int, dict]]:
    start = next(filter(str.strip, _lines(path)), "{}").strip()
    if start[0] + start[-1] == "{}":
        yield from read_jsonl(path)
        return
    text = "".join(_lines(path))
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: a list of objects is needed, or one object per line")
    yield from enumerate(records, start=1)


def _csv(path: Path) -> Iterator[tuple[int, dict]]:
    csv.field_size_limit(2**31 - 1)  # answers can be longer than the 128 KB that csv allows
    rows = csv.reader(_lines(path), strict=True)
    try:
        header, line = next(rows, []), rows.line_num + 1
        for row in rows:
            if len(row) not in (0, len(header)):  # 0: a blank line
                raise UserError(f"{path}:{line}: {len(row)} values, the header has {len(header)}")
            if row:
                yield line, dict(zip(header, row))
            line = rows.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num}: not CSV ({error})") from None


READERS = {".jsonl": read_jsonl, ".json": _json, ".csv": _csv}


# The user's first turn: (record, its file and line) -> text, or None if it has none

Turn = Callable[[dict, str], str | None]
KINDS = {str: "text", list: "a list", dict: "an object"}


def _checked(value: Any, kind: type, name: str, where: str) -> Any:
    """The value itself, if it is of that kind or null."""
    if isinstance(value, kind | None):
        return value
    raise UserError(f"{where}: {name!r} must be {KINDS[kind]}, found {type(value).__name__}")


def _text(column: str) -> Turn:
    return lambda record, where: _checked(record[column], str, column, where)


def _messages(column: str) -> Turn:
    def turn(record: dict, where: str) -> str | None:
        """Messages are objects, or texts. One without a role is the user's."""
        for message in _checked(record[column], list, column, where) or ():
            if isinstance(message, str):
                return message
            message = _checked(message, dict, f"{column}[…]", where) or {}
            if message.get("role", message.get("from", "user")) in ("user", "human"):
                text = message.get("content", message.get("value"))
                return _checked(text, str, f"{column}[…].content", where)
        return None

    return turn


def _transcript(record: dict, where: str) -> str | None:
    """Of "\\n\\nHuman: …\\n\\nAssistant: …"; the user may write "Human:" as well."""
    _, human, rest = (_text("prompt")(record, where) or "").partition("Human:")
    return rest.partition("\n\nAssistant:")[0] if human else None


def _with_input(record: dict, where: str) -> str | None:
    """An instruction and its input, which Self-Instruct has in its instances."""
    instruction = _text("instruction")(record, where)
    instances = _checked(record.get("instances"), list, "instances", where)
    first = _checked((instances or [record])[0], dict, "instances[0]", where) or {}
    given = _checked(first.get("input"), str, "input", where)
    if not given or not (instruction or "").strip():
        return instruction
    return f"{instruction.strip()}\n\n{given}"


class Format(NamedTuple):
    """How the records of a data set hold an instruction. Columns are separated by spaces."""

    main_source: str | None  # its name on the hub; None: the name of the file
    columns: str  # those that identify it; every record has them
    turn: Turn
    sources: str  # columns of the original source: the first with a text
    source: str | None = None  # the original source if none of them has one; None: main_source


ANY = "source dataset category"
# The first one whose columns the first record of a file has. The language is always "language".
FORMATS = (
    Format("berkeley-nest/Nectar", "prompt answers good_natured", _transcript, "source"),
    Format(
        "argilla/OpenHermesPreferences",
        "prompt candidates_completions candidate_policies",
        _text("prompt"),
        "source category",
    ),
    Format(
        "allenai/ultrafeedback_binarized_cleaned",
        "source prompt prompt_id messages score_chosen score_rejected",
        _text("prompt"),
        "source",
    ),
    Format(
        "lmsys/chatbot_arena_conversations",
        "conversation_a conversation_b winner",
        _messages("conversation_a"),
        "",
        "chatbot_arena",
    ),
    Format("Linear95/DSP", "query responses", _text("query"), "", "alpaca"),
    Format(None, "messages", _messages("messages"), ANY),
    Format(None, "conversations", _messages("conversations"), ANY),  # ShareGPT
    Format(None, "turns", _messages("turns"), ANY),  # MT-Bench
    Format(None, "instruction", _with_input, ANY),  # Alpaca, Self-Instruct
    Format(None, "prompt", _text("prompt"), ANY),
    Format(None, "question", _text("question"), ANY),
    Format(None, "text", _text("text"), ANY),
)


def read_instructions(path: Path) -> Iterator[tuple[Instruction, str | None]]:
    """Yields every instruction of a file, with the reason if it can be none."""
    shapes = FORMATS
    for where, record in read_records(path):
        shapes = (_format(record, where, shapes),)
        (shape,) = shapes
        text, language = shape.turn(record, where), _plain(record.get("language")) or None
        main = shape.main_source or path.stem
        originals = (_plain(record.get(column)) for column in shape.sources.split())
        original = next(filter(None, originals), shape.source or main)
        instruction = Instruction(main, original, (text or "").strip(), language, where)
        if text is None:
            yield instruction, "no user turn"
        elif NOT_TEXT.search(f"{original}{language}{text}"):
            yield instruction, "not text"
        elif not any(letter.isprintable() and letter != " " for letter in text):
            yield instruction, "empty"
        else:
            yield instruction, None


def _format(record: dict, where: str, shapes: tuple[Format, ...]) -> Format:
    """The first one that the record is of. Later records of a file have one to choose from."""
    for shape in shapes:
        if record.keys() >= {*shape.columns.split()}:
            return shape
    needed = f"as in the file's first record, each of the columns {shapes[0].columns}"
    if len(shapes) > 1:
        generic = ", ".join(shape.columns for shape in shapes if not shape.main_source)
        needed = f"one of the columns {generic} (a .csv file's first line names them)"
    # Cut, for a first line that names no columns may be anything.
    raise UserError(f"{where}: {needed} is needed; found {sorted(name[:40] for name in record)}")


def _plain(source: object) -> str:
    """Nectar lists its sources."""
    parts = source if isinstance(source, list) else [source]
    return ", ".join(part for part in parts if isinstance(part, str))


# The selection


@dataclass(frozen=True)
class Filters:
    """Which instructions are kept."""

    min_characters: int = 1  # of the shortest prompt
    max_characters: int = 8000  # of the longest prompt
    language: str | None = None  # what rows with a language must say, such as English
    latin_share: float = 0.0  # least share of a prompt's letters that are Latin
    near_duplicates: float = 0.8  # likeness (word trigrams) that is too much; 1: only exact ones
    bench: tuple[Path, ...] | None = None  # files of benchmark prompts to compare with
    keep_overlap: bool = True  # keep instructions that overlap with the bench; counted either way
    limit: int | None = None  # most instructions that are kept, the first ones

    def __post_init__(self):
        """Comparisons with NaN are false, so that NaN is refused everywhere."""
        require(self.min_characters >= 1, self, "min_characters", "at least 1")
        least = self.min_characters
        require(self.max_characters >= least, self, "max_characters", f"at least {least}")
        require(0 <= self.latin_share <= 1, self, "latin_share", "in [0, 1]")
        require(0 < self.near_duplicates <= 1, self, "near_duplicates", "in (0, 1]")
        require(bool(self.keep_overlap or self.bench), self, "keep_overlap", "True without --bench")
        require(self.limit is None or self.limit >= 1, self, "limit", "at least 1")

    def refuse(self, instruction: Instruction) -> str | None:
        """The reason why an instruction is not kept, as far as it alone decides."""
        prompt, language = instruction.prompt, instruction.language
        if len(prompt) < self.min_characters:
            return f"shorter than {self.min_characters} characters"
        if len(prompt) > self.max_characters:
            return f"longer than {self.max_characters} characters"
        if self.language and language and language.casefold() != self.language.casefold():
            return "language"
        letters = [letter for letter in prompt if letter.isalpha()] if self.latin_share else []
        if sum(map(_is_latin, letters)) < self.latin_share * len(letters):
            return "not Latin"
        return None


@cache
def _is_latin(letter: str) -> bool:
    return "LATIN" in unicodedata.name(letter, "")


def select(
    paths: tuple[Path, ...], filters: Filters
) -> Iterator[tuple[Instruction, str | None, bool]]:
    """Yields every instruction of the files in order: (it, why it is dropped, whether it overlaps).

    The reason is None for one that is kept. Of one beyond the limit no more is asked; a duplicate
    is one of an instruction that was not dropped for what it is or for the bench.
    """
    for path in paths:  # before hours of work on the first of them
        require_file(path)
    bench = (read for path in filters.bench or () for read in read_instructions(path))
    overlap = Overlap(instruction.prompt for instruction, _ in bench)
    duplicates, kept = Duplicates(filters.near_duplicates), 0
    for instruction, reason in (read for path in paths for read in read_instructions(path)):
        reason, overlaps = reason or filters.refuse(instruction), False
        if reason is None and kept == filters.limit:
            reason = "beyond the limit"
        if reason is None:
            normal = normal_form(instruction.prompt)
            overlaps = overlap.overlaps(normal)
            leaks = overlaps and not filters.keep_overlap
            reason = "overlaps the bench" if leaks else duplicates.reason(normal)
        kept += reason is None
        yield instruction, reason, overlaps
