"""Preference pairs of a collection's responses and those of a model itself.

    generate.py --model DIR --input dpo.jsonl --output own.jsonl
    datagen.py pairs --responses own.jsonl --out own-pairs.jsonl
    train.py janus-dpo-7b --model DIR --data dpo.jsonl own-pairs.jsonl

The chosen response is the collection's, the rejected one what the model says in its place. The
paper's rejected responses are good ones, for somebody else, and a trained model hardly ever gives
them, so that DPO can make them still less likely without changing what the model does say. Pairs
with a model's own responses are those of self-play fine-tuning (SPIN, arXiv 2401.01335).
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from janus_min.errors import UserError
from janus_min.files import Writer
from janus_min.formats import CHOSEN, INSTRUCTION, read_jsonl, text_field

ABOUT = ("main_source", "original_source")  # columns of published pairs that a row may have


@dataclass(frozen=True)
class Options:
    """What pairs are made of, and where they go."""

    responses: Path | None = None  # JSONL by generate.py, its input one of pairs or of SFT
    out: Path | None = None  # JSONL of the pairs


def write_pairs(options: Options) -> tuple[int, Counter]:
    """Writes a pair for each response that can be one. Returns their number, and why the others
    cannot.

    Raises UserError for records without the columns, and if there is no pair at all.
    """
    for name in ("responses", "out"):
        if getattr(options, name) is None:
            raise UserError(f"--{name} FILE.jsonl is needed (see --help)")
    if options.out.resolve() == options.responses.resolve():
        raise UserError(f"--out {options.out} would write over --responses")
    if options.out.is_dir():
        raise UserError(f"--out {options.out} is a folder; a file is needed")
    if not options.out.parent.is_dir():
        raise UserError(f"{options.out}: there is no folder {options.out.parent}")
    pairs, left_out = [], Counter()
    for line, record in read_jsonl(options.responses):
        found = own_pair(record, f"{options.responses}:{line}")
        if isinstance(found, str):
            left_out[found] += 1
        else:
            pairs.append(found)
    if not pairs:
        raise UserError(
            f"{options.responses}: no pair can be made of it ({listed(left_out) or 'it is empty'})"
        )
    writer = Writer(options.out)
    for pair in pairs:
        writer.add(pair)
    writer.close()
    return len(pairs), left_out


def own_pair(record: dict, where: str) -> dict | str:
    """The pair of an answered row, in the columns of the published ones, or why there is none."""
    system = text_field(record, ("system",), where, optional=True)
    prompt = text_field(record, INSTRUCTION, where)
    chosen = text_field(record, (*CHOSEN, "output"), where)
    rejected = text_field(record, ("response",), where)
    if not (prompt.strip() and chosen.strip() and rejected.strip()):
        return "with an empty text"
    if record.get("stop", "eos") != "eos":
        return "cut short"  # its end is not the model's, and training would add one
    if rejected.strip() == chosen.strip():
        return "the same as the chosen one"
    about = {key: record[key] for key in ABOUT if key in record}
    return about | {"system": system, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def listed(left_out: Counter) -> str:
    """The reasons and how often each was one."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
