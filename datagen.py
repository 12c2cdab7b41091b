"""Builds collections of system messages, instructions and responses, and benches, through an LLM.

python datagen.py                                the miniature collection, from a teacher by rule
python datagen.py build --instructions FILE ... --out DIR --model NAME [--base-url URL]
python datagen.py bench --instructions FILE ... --out DIR --model NAME [--unseen FILE]
python datagen.py pairs --responses FILE --out FILE     a model's own responses as rejected ones
python datagen.py stats --data FILE              what is in a collection, and how diverse it is
python datagen.py sunburst --data FILE --out OUT.html

`python datagen.py COMMAND --help` lists the flags of a command. The key of a server is read from
the environment variable OPENAI_API_KEY.
"""

import inspect
import json
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from janus_min import mini_data, own_pairs
from janus_min.build import Options, Work, build_bench, build_collection
from janus_min.cli import Parser, add_fields, given_fields, run
from janus_min.client import Connection
from janus_min.errors import UserError, require
from janus_min.files import replace_file, write_json
from janus_min.formats import read_jsonl
from janus_min.hierarchy import HIERARCHY
from janus_min.loopback import served
from janus_min.pipeline import Sampling
from janus_min.sources import Filters
from janus_min.stats import as_text, collect, histogram
from janus_min.sunburst import tree_of_hierarchy, tree_of_rows, write_page
from janus_min.teacher import Teacher, world_hierarchy
from janus_min.tokenizer import Tokenizer
from janus_min.world import PREFERENCES


@dataclass(frozen=True)
class StatsOptions:
    """What is counted."""

    data: Path | None = None  # JSONL of a collection
    tokenizer: Path | None = None  # directory with tokenizer.model, for lengths in tokens
    pairs: int = 2000  # pairs of descriptions, and instructions, that ROUGE-L is taken of
    seed: int = 0  # of their choice
    json: Path | None = None  # file for the numbers
    picture: Path | None = None  # file for histograms of the lengths (needs matplotlib)

    def __post_init__(self) -> None:
        require(self.pairs >= 1, self, "pairs", "at least 1")
        require(self.seed >= 0, self, "seed", "0 or more")


@dataclass(frozen=True)
class SunburstOptions:
    """What is drawn."""

    data: Path | None = None  # JSONL of a collection; the seeds of the hierarchy unless given
    out: Path | None = None  # the HTML page
    subdimensions: int = 8  # of each dimension of a collection, the most frequent ones
    preferences: int = 6  # of each of these subdimensions, the most frequent ones
    seed: int = 0  # of the choice among equally frequent ones
    title: str = "Preferences of the collection"  # of the page

    def __post_init__(self) -> None:
        require(self.subdimensions >= 1, self, "subdimensions", "at least 1")
        require(self.preferences >= 1, self, "preferences", "at least 1")
        require(self.seed >= 0, self, "seed", "0 or more")


def options_of(command: str, *kinds: type, without: tuple[str, ...] = ()) -> list:
    """The flags behind the command, as one object of each kind."""
    parser = Parser(f"python datagen.py {command}\n\n{inspect.getdoc(COMMANDS[command])}")
    for kind in kinds:
        add_fields(parser, kind, without)
    arguments = parser.parse_args(sys.argv[2:])
    return [kind(**given_fields(arguments, kind)) for kind in kinds]


def build() -> None:
    """Builds a collection of instructions: preferences, system messages, responses, training files.
    Stopped or killed, it goes on with what is missing when it is started again.
    """
    kinds = (Options, Filters, Sampling, Connection)
    build_collection(Work(*options_of("build", *kinds, without=("unseen",))))


def bench() -> None:
    """Builds items in the shape of Multifaceted Bench: a system message, a reference answer, and a
    rubric for each of its four preferences.
    """
    kinds, without = (Options, Filters, Sampling, Connection), ("sets", "differ", "test_share")
    options, *more = options_of("bench", *kinds, without=without)
    build_bench(Work(replace(options, sets=1), *more))


def pairs() -> None:
    """Makes preference pairs of a collection that a model has answered: the collection's response
    is the chosen one, the model's own the rejected one.
    """
    [options] = options_of("pairs", own_pairs.Options)
    count, left_out = own_pairs.write_pairs(options)
    left = own_pairs.listed(left_out) or "none"
    print(f"{options.out}: {count:,} pair{'s' if count > 1 else ''} (left out: {left})")


def stats() -> None:
    """Counts, lengths and diversity of a collection."""
    [options] = options_of("stats", StatsOptions)
    if options.data is None:
        raise UserError("--data FILE is needed: JSONL of a collection")
    tokenizer = Tokenizer(options.tokenizer) if options.tokenizer else None

    def tokens(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer.encode(texts)]

    for out in filter(None, (options.json, options.picture)):
        if not out.parent.is_dir():  # said now, and not after minutes of work
            raise UserError(f"{out}: there is no folder {out.parent}")
    found = collect(options.data, tokens if tokenizer else None, options.pairs, options.seed)
    print(as_text(found))
    if options.json:
        write_json(options.json, found)
    if options.picture:
        histogram(found, options.picture)


def sunburst() -> None:
    """Draws dimensions, subdimensions and preferences as a page to click through."""
    [options] = options_of("sunburst", SunburstOptions)
    if options.out is None:
        raise UserError("--out FILE.html is needed: where the page goes")
    if options.data is None:
        tree = tree_of_hierarchy(HIERARCHY)
    else:
        tree = tree_of_rows(options.data, options.subdimensions, options.preferences, options.seed)
    write_page(tree, options.title, options.out)
    print(f"{options.out}: open it in a browser")


def build_miniature() -> None:
    """The stages of `build`, with the miniature's teacher behind a server on this machine."""
    folder = mini_data.FILES
    mini_data.write_world(folder)
    rows = mini_data.collection()
    write_json(folder / "hierarchy.json", world_hierarchy())
    prompts = {row["prompt"]: row["original_source"] for row in rows}
    lines = [json.dumps({"prompt": p, "source": s}) + "\n" for p, s in prompts.items()]
    replace_file(folder / "miniature.jsonl", "".join(lines).encode())
    out = folder / "collection"
    shutil.rmtree(out, ignore_errors=True)  # nothing in it was paid for
    # The world is small: its questions are much alike, and so are its preference sets.
    with served(Teacher().reply) as url:
        options = Options((folder / "miniature.jsonl",), out, folder / "hierarchy.json", differ=1)
        sampling, filters = Sampling(model="miniature-teacher"), Filters(near_duplicates=1.0)
        build_collection(Work(options, filters, sampling, Connection(base_url=url)))
    built = [record for _, record in read_jsonl(out / "sft.jsonl")]
    if built != rows:
        raise UserError(f"{out} holds other rows than the teacher has; remove it and try again")
    systems = {row["system"] for row in rows}
    sets = {json.dumps([entry["preference"] for entry in row["preference_set"]]) for row in rows}
    splits = Counter(item["source"] for item in mini_data.bench())
    print(f"\n{len(rows):,} rows: {len(prompts):,} instructions, {len(systems):,} system messages,")
    print(f"{len(sets):,} preference sets from {len(PREFERENCES)} preferences")
    print("bench: " + ", ".join(f"{count} items of {split}" for split, count in splits.items()))
    print("\nthe first row:")
    print(json.dumps(rows[0], indent=2, ensure_ascii=False))
    print(f"\nfiles: {', '.join(sorted(str(path) for path in folder.iterdir()))}")


COMMANDS = {command.__name__: command for command in (build, bench, pairs, stats, sunburst)}


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else None
    if command in COMMANDS:
        COMMANDS[command]()
        return
    Parser(__doc__).parse_args()
    build_miniature()


if __name__ == "__main__":
    run(main)
