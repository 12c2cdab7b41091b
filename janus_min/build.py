"""The two things that are built of instructions and a model: a collection, and a bench.

collection   instructions → preferences → systems → responses → training files
bench        prompts → preferences → systems → responses → rubrics → bench.jsonl
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from janus_min import prompts
from janus_min.client import Connection
from janus_min.collection import (
    Stage,
    grouped,
    preferences_stage,
    responses_stage,
    rubrics_stage,
    systems_stage,
)
from janus_min.duplicates import normal_form
from janus_min.errors import UserError, require
from janus_min.exports import TEST_SHARE, export
from janus_min.files import Writer, hash_files, text_hash
from janus_min.formats import read_jsonl
from janus_min.hierarchy import DIMENSIONS, HIERARCHY, read_hierarchy
from janus_min.limits import CHARACTERS_PER_TOKEN, dollars
from janus_min.pipeline import MOST_ATTEMPTS, Folder, Pipeline, Sampling
from janus_min.sources import Filters, select


@dataclass(frozen=True)
class Options:
    """What is built, of what, and where."""

    instructions: tuple[Path, ...] | None = None  # .jsonl, .json or .csv files of data sets
    out: Path | None = None  # folder of the collection, or of the bench
    hierarchy: Path | None = None  # seeds of preferences; ours in janus_min/ unless given
    sets: int = 3  # preference sets, and so system messages, per instruction
    differ: int = 4  # dimensions in which no two sets of an instruction may say the same
    attempts: int = 3  # replies that a model may need until one can be used
    seed: int = 0  # of starting points, and of what exports draw
    test_share: float = TEST_SHARE  # of the pairs, kept out of rm.jsonl for rm-test.jsonl
    unseen: tuple[Path, ...] | None = None  # collections that share no system message with a bench
    dry_run: bool = False  # count calls and tokens, ask nothing, write nothing
    batch: bool = False  # through the server's batch interface: slower, at another price

    def __post_init__(self) -> None:
        require(1 <= self.sets <= 10, self, "sets", "1 to 10")
        require(1 <= self.differ <= 4, self, "differ", "1 to 4")
        valid = 1 <= self.attempts <= MOST_ATTEMPTS
        require(valid, self, "attempts", f"1 to {MOST_ATTEMPTS}")
        require(0 <= self.test_share < 1, self, "test_share", "0 or more, less than 1")
        require(self.seed >= 0, self, "seed", "0 or more")
        if not self.instructions:
            raise UserError("--instructions FILE is needed: .jsonl, .json or .csv, one or more")
        if self.out is None and not self.dry_run:
            raise UserError("--out DIR is needed: the folder for all files")


@dataclass(frozen=True)
class Work:
    """All that a build needs."""

    options: Options
    filters: Filters
    sampling: Sampling
    connection: Connection

    def __post_init__(self) -> None:
        if not self.sampling.model and not self.options.dry_run:
            raise UserError("--model is needed: the name of a model, as the server knows it")

    def settings(self) -> dict:
        """What makes a folder what it is. The limit may grow from run to run."""
        options = self.options
        texts = [str(text) for name, text in sorted(vars(prompts).items()) if name.isupper()]
        settings = asdict(self.sampling) | asdict(self.filters) | asdict(options)
        for name in FREE:
            del settings[name]
        hashes = {
            "extra": json.loads(self.sampling.extra or "{}"),
            "instructions": named_hashes(options.instructions),
            "bench": named_hashes(self.filters.bench),
            "hierarchy": named_hashes((options.hierarchy or HIERARCHY,)),
            "unseen": named_hashes(options.unseen),
            "prompts": text_hash("".join(texts)),
        }
        return settings | hashes


# Options that may change from run to run in the same folder.
FREE = ("out", "limit", "attempts", "test_share", "dry_run", "batch")


def named_hashes(files: tuple[Path, ...] | None) -> list[list[str]]:
    """Files in their order: the name that is kept as the source, and a hash of the content."""
    return [[path.stem, hash_files([path])[:16]] for path in files or ()]


def build_collection(work: Work, say: Callable[[str], None] = print) -> None:
    """Builds a collection in the folder `out`, or goes on with it."""
    options = work.options
    stages = [preferences(options), systems_stage(options.sets), responses_stage()]
    if options.dry_run:
        estimate(work, stages, say)
        return
    with Folder(options.out, work.settings()) as folder:
        responses = run_stages(work, folder, stages, say)
        counts = export(responses, options.out, options.test_share, options.seed)
        for name, count in counts.items():
            say(f"{name}: {count:,}" if " " in name else f"{options.out / name}.jsonl: {count:,}")
        end(work, folder, say)


def build_bench(work: Work, say: Callable[[str], None] = print) -> None:
    """Builds a bench in the shape of Multifaceted Bench: one unseen system message for each prompt,
    a reference answer, and a rubric for each of its four preferences.
    """
    options = work.options
    taken = system_messages(options.unseen or ()).__contains__
    stages = [
        preferences(options),
        systems_stage(options.sets, lambda system: taken(text_hash(normal_form(system)))),
        responses_stage(),
    ]
    if options.dry_run:
        estimate(work, [*stages, rubrics_stage()], say)
        return
    with Folder(options.out, work.settings()) as folder:
        responses = run_stages(work, folder, stages, say)
        rubrics = run_stages(work, folder, [rubrics_stage()], say, responses)
        writer = Writer(options.out / "bench.jsonl")
        for item in bench_items(responses, rubrics):
            writer.add(item)
        writer.close()
        lost = folder.stages["responses"]["records"] - writer.count
        left_out = f", {lost:,} left out for lack of a rubric" if lost else ""
        say(f"{writer.path}: {writer.count:,} items{left_out}")
        end(work, folder, say)


def end(work: Work, folder: Folder, say: Callable[[str], None]) -> None:
    """Says what it took. Raises UserError if something is still to be done."""
    read, written = folder.journal.tokens
    cost = dollars((read, written), work.connection.price_in, work.connection.price_out)
    say(f"tokens: {read:,} read, {written:,} written" + (f", ${cost:,.2f}" if cost else ""))
    if count := sum(stage.get("unanswered", 0) for stage in folder.stages.values()):
        raise UserError(f"without an answer: {count:,}; the same command asks for them again")


def preferences(options: Options) -> Stage:
    """The stage that all begins with."""
    hierarchy = read_hierarchy(options.hierarchy or HIERARCHY)
    return preferences_stage(hierarchy, options.sets, options.differ, options.seed)


def run_stages(
    work: Work,
    folder: Folder,
    stages: list[Stage],
    say: Callable[[str], None],
    source: Path | None = None,
) -> Path:
    """Runs stages one after the other, from the instructions or from `source` on. Returns the file
    of the last one.
    """
    pipeline = Pipeline(
        folder, work.sampling, work.connection, work.options.attempts, work.options.batch
    )
    source = source or gather(work, folder, say)
    for stage in stages:
        source = pipeline.run(stage, source)
        counts = folder.stages[stage.name]
        failed, unanswered = counts["failed"], counts["unanswered"]
        say(
            f"{source}: {counts['records']:,}"
            + (f", {failed:,} failed (--attempts tries more)" if failed else "")
            + (f", {unanswered:,} without an answer" if unanswered else "")
            + (f"; why: {folder.file(stage.name + '.failed')}" if failed + unanswered else "")
        )
        if not counts["records"]:
            raise UserError(f"{source} has no record: there is nothing to go on with")
    return source


# Instructions


def gather(work: Work, folder: Folder, say: Callable[[str], None]) -> Path:
    """Writes the instructions that are used, and beside them those that are not."""
    made_of, name = [work.filters.limit], "instructions"
    if not folder.done(name, made_of):
        folder.begin(name)
        used, dropped = Writer(folder.file(name)), Writer(folder.file(f"{name}.dropped"))
        counts: Counter = Counter()
        overlap = 0  # of those that are used
        for instruction, reason, overlaps in select(work.options.instructions, work.filters):
            if reason is None:
                overlap += overlaps
                record = {"id": used.count, **instruction._asdict()}
                del record["language"], record["where"]
                used.add(record)
            else:
                counts[reason] += 1
                dropped.add({"where": instruction.where, "reason": reason})
        used.close()
        dropped.close()
        found = {"records": used.count, "overlap": overlap, "dropped": dict(counts)}
        folder.finish(name, made_of, found)
    counts = folder.stages[name]
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in counts["dropped"].items())
    say(
        f"{folder.file(name)}: {counts['records']:,}"
        + (f", {counts['overlap']:,} of them overlap the bench" if counts["overlap"] else "")
        + (f"; dropped: {reasons}" if reasons else "")
    )
    if not counts["records"]:
        raise UserError("no instruction is left; loosen the filters")
    return folder.file(name)


def estimate(work: Work, stages: list[Stage], say: Callable[[str], None]) -> None:
    """Says how many calls and tokens a build takes, and what it costs."""
    selected = select(work.options.instructions, work.filters)
    kept = [instruction.prompt for instruction, reason, _ in selected if reason is None]
    prompt = sum(map(len, kept)) / CHARACTERS_PER_TOKEN / max(1, len(kept))
    entry = {"dimension": "", "subdimension": "", "preference": "", "description": ""}
    task = {"id": 0, "main_source": "", "original_source": "", "prompt": "", "system": ""}
    task |= {"preference_sets": [[entry] * 4], "preference_set": [entry] * 4, "preference": entry}
    described = {"preferences": prompt, "systems": 240, "responses": prompt + 190, "rubrics": 60}
    calls, total = len(kept), [0, 0, 0]
    say(f"{len(kept):,} instructions of {prompt:.0f} tokens")
    say(f"{'stage':12}{'calls':>12}{'tokens read':>16}{'written':>16}")
    for stage in stages:
        calls *= stage.fan_out
        question = stage.ask(task)
        template = (len(question.system) + len(question.user)) / CHARACTERS_PER_TOKEN
        row = [calls, round(calls * (template + described[stage.name])), calls * stage.written]
        total = [a + b for a, b in zip(total, row)]
        say(f"{stage.name:12}{row[0]:>12,}{row[1]:>16,}{row[2]:>16,}")
    say(f"{'in all':12}{total[0]:>12,}{total[1]:>16,}{total[2]:>16,}")
    prices = work.connection
    if prices.price_in + prices.price_out > 0:
        cost = dollars(total[1:], prices.price_in, prices.price_out)
        say(f"about ${cost:,.2f} at ${prices.price_in:g} and ${prices.price_out:g} per million")
    say(
        f"Estimated with {CHARACTERS_PER_TOKEN} characters per token and replies of "
        + ", ".join(f"{stage.written:,} ({stage.name})" for stage in stages)
        + " tokens, without second attempts."
    )


# The bench


def system_messages(files: tuple[Path, ...]) -> set[str]:
    """Hashes of the system messages of collections."""
    records = (record for path in files for _, record in read_jsonl(path))
    found = {text_hash(normal_form(r["system"])) for r in records if r.get("system")}
    if files and not found:
        raise UserError(f"--unseen: no system message in {', '.join(map(str, files))}")
    return found


def bench_items(responses: Path, rubrics: Path) -> Iterator[dict]:
    """Items of a bench, in the published columns; those that lack a rubric are left out."""
    groups = grouped(record for _, record in read_jsonl(rubrics))
    found = {group[0]["id"]: [task["rubric"] for task in group] for group in groups}
    for _, record in read_jsonl(responses):
        own = found.get(record["id"], [])
        if len(own) == len(DIMENSIONS):
            item = {"id": str(record["id"]), "source": record["main_source"]}
            item |= {key: record[key] for key in ("system", "prompt")}
            yield item | {"reference_answer": record["output"], "rubrics": own}
