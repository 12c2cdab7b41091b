"""The paper's tables in miniature: every model trained, sampled, judged and compared.

    python -m janus_min.miniature                  one seed: 20 to 30 minutes on 2 CPU cores
    python -m janus_min.miniature --seeds 3        three of them, and their spread
    python -m janus_min.miniature --ablations      1, 2 and 3 system messages per instruction, too

It runs the programs as a user would, two at a time with one thread each, and prints every command:
`datagen.py` builds the collection, `train.py` the models, `generate.py` answers, `evaluate.py`
asks the miniature's judge, which is served on this machine meanwhile; `python -m
janus_min.examiner` serves it alone. Stopped or killed, the same command goes on.

    OUT/seed-42/RECIPE/      a model's run
    OUT/logs, OUT/seed-42/logs    what each command printed
    OUT/tables.md, .txt      the tables, with .png if matplotlib is there
    OUT/tables.json          all numbers of all seeds
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from janus_min.cli import Parser, add_fields, given_fields, run
from janus_min.errors import UserError, require
from janus_min.examiner import JUDGE, PORT, judge_of
from janus_min.files import replace_file
from janus_min.kinds import RESULT
from janus_min.mini_benches import write_benches
from janus_min.mini_data import FILES
from janus_min.mini_tables import (
    AGAINST,
    COUNTS,
    MODELS,
    SAMPLES,
    TEACHER,
    draw,
    numbers,
    sheets,
    text,
)
from janus_min.progress import clock
from janus_min.recipes import RECIPES
from janus_min.stages import JUDGE_URL, Runner, Stage

FIRST_SEED = RECIPES["mini-sft"].seed
# What takes longest, or what others start from, comes first.
TRAINED = ("mini-base", "mini-sft", "mini-sft-small", "mini-uniform", "mini-orpo", "mini-rm")
TRAINED += ("mini-sft-chosen",)  # and mini-dpo after what its start answers
SAMPLED, REWARD = "mini-sft-small", "mini-rm"  # the models of best-of-n
START = RECIPES["mini-dpo"].start
OWN, OWN_PAIRS = f"{START}-own", "own-pairs"  # its answers to the paper's pairs, and pairs of them
PAIRS, OWN_SAMPLES = str(FILES / "pairs.jsonl"), 4  # answers to each, with the paper's settings
GREEDY = ("--temperature", "0", "--repetition-penalty", "1")
LONGEST = 256  # tokens of an answer; the teacher's have fewer than 100
QUICK_TOPICS, QUICK_TOKENS = 2, 16  # of the benches of a quick look, and of its answers
PROGRAMS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Options:
    """What is run, and where it is kept."""

    out: Path | None = None  # folder of everything but runs/miniature (runs/paper, or -quick)
    seeds: int = 1  # whole repetitions, with seeds from 42 on
    ablations: bool = False  # 1, 2, 3 system messages per instruction, tested with and without
    jobs: int | None = None  # commands at a time; 2 unless given, and 1 on one core
    port: int | None = None  # of the judge; 8765, or if it is in use a free one, unless given
    steps: int | None = None  # for a quick look, whose numbers mean nothing: steps of each training
    dry_run: bool = False  # print the commands; a run makes benches and judge for them

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs", "steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, self, name, "at least 1")
        valid = self.port is None or 1 <= self.port < 2**16
        require(valid, self, "port", "1 to 65535")
        if self.out is None:  # a quick look must not replace what took its time
            own = "runs/paper-quick" if self.steps else "runs/paper"
            object.__setattr__(self, "out", Path(own))
        if self.out == Path():  # a folder whose name begins the names of all that is in it
            object.__setattr__(self, "out", Path.cwd())
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; a folder is needed")


# The commands


@dataclass(frozen=True)
class Plan:
    """The commands of one seed."""

    options: Options
    seed: int

    @property
    def group(self) -> str:
        """The folder of the seed, in that of everything."""
        return f"seed-{self.seed}"

    def path(self, *parts: str) -> str:
        """What is kept for this seed."""
        return str(self.options.out.joinpath(self.group, *parts))

    @property
    def pairs_own(self) -> bool:
        """Whether pairs are made of a model's own answers: after a few steps it never ends one."""
        return self.options.steps is None

    def stages(self) -> list[Stage]:
        """All of them; who comes first is begun first."""
        more = [key for key in COUNTS if key not in MODELS] if self.options.ablations else []
        found = [self.train(recipe) for recipe in TRAINED]
        if self.pairs_own:
            flags = ("--n", str(OWN_SAMPLES), "--seed", str(self.seed))
            found += [self.generate(OWN, START, PAIRS, flags), self.pair_up()]
        found += map(self.train, ("mini-dpo", *more))
        for n in reversed(SAMPLES):
            found += [self.sample(n), self.grade(f"best-of-{n}", "unseen")]
        for key in (*MODELS, *more):
            found += [self.answer(key, key, "bench"), self.grade(key, "bench")]
        found += [self.compare(key) for key in MODELS if key != AGAINST]
        for key in MODELS:
            found += [self.answer(f"{key}-three", key, "three"), self.measure(key)]
        for key in COUNTS if self.options.ablations else ():
            name = f"{key}-silent"
            found += [self.answer(name, key, "silent"), self.grade(name, "silent")]
        return found

    def stage(
        self,
        name: str,
        command: tuple[str, ...],
        makes: str,
        needs: tuple[str, ...],
        **more: object,
    ) -> Stage:
        """A stage of this seed, which needs others of it."""
        own = tuple(f"{self.group}/{need}" for need in needs)
        return Stage(f"{self.group}/{name}", command, Path(makes), own or ("datagen",), **more)

    def train(self, recipe: str) -> Stage:
        """Trains a model, from the one that its recipe starts from."""
        start, out = RECIPES[recipe].start, self.path(recipe)
        command = (program("train.py"), recipe, "--seed", str(self.seed), "--out", out)
        command += ("--model", self.path(start, "model")) if start else ()
        command += ("--steps", str(self.options.steps)) if self.options.steps else ()
        needs = (start,) if start else ()
        if recipe == "mini-dpo" and self.pairs_own:
            command += ("--data", PAIRS, self.path(f"{OWN_PAIRS}.jsonl"))
            needs += (OWN_PAIRS,)
        more = {"last": "model/model.safetensors", "about": repr(RECIPES[recipe]), "resumes": True}
        return self.stage(recipe, command, out, needs, **more)

    def pair_up(self) -> Stage:
        """Makes preference pairs of what DPO's start answers to the paper's pairs."""
        out, answers = self.path(f"{OWN_PAIRS}.jsonl"), self.path("answers", f"{OWN}.jsonl")
        command = (program("datagen.py"), "pairs", "--responses", answers, "--out", out)
        return self.stage(OWN_PAIRS, command, out, (f"{OWN}-answers",))

    def generate(
        self, name: str, key: str, file: str, flags: tuple[str, ...], *needs: str
    ) -> Stage:
        """Has a model answer a file."""
        out = self.path("answers", f"{name}.jsonl")
        command = (program("generate.py"), "--model", self.path(key, "model"))
        command += ("--input", file, "--output", out, *flags)
        command += ("--max-tokens", str(QUICK_TOKENS if self.options.steps else LONGEST))
        return self.stage(f"{name}-answers", command, out, (key, *needs))

    def answer(self, name: str, key: str, bench: str) -> Stage:
        """The most likely answers to a bench."""
        return self.generate(name, key, bench_file(self.options, bench), GREEDY)

    def sample(self, n: int) -> Stage:
        """The best one of n, sampled with the paper's settings."""
        flags = ("--n", str(n), "--seed", str(self.seed))
        if n > 1:
            flags += ("--reward-model", self.path(REWARD, "model"))
        file, needs = bench_file(self.options, "unseen"), [REWARD] if n > 1 else []
        return self.generate(f"best-of-{n}", SAMPLED, file, flags, *needs)

    def judge(self, kind: str, name: str, bench: str, *needs: str, flags: tuple = ()) -> Stage:
        """Has answers judged."""
        out = self.path("results", kind, name)
        command = (program("evaluate.py"), kind, "--bench", bench_file(self.options, bench))
        command += ("--responses", self.path("answers", f"{name}.jsonl"), *flags)
        command += ("--judge", JUDGE, "--base-url", JUDGE_URL, "--runs", "1", "--out", out)
        answers = tuple(f"{key}-answers" for key in needs)
        return self.stage(f"{name}-{kind}", command, out, answers, last=RESULT)

    def grade(self, name: str, bench: str) -> Stage:
        """Grades by rubrics."""
        return self.judge("rubric", name, bench, name)

    def compare(self, key: str) -> Stage:
        """Pairs with the answers of the uniform model."""
        against = ("--against", self.path("answers", f"{AGAINST}.jsonl"))
        return self.judge("pairwise", key, "bench", key, AGAINST, flags=against)

    def measure(self, key: str) -> Stage:
        """How alike the answers to one instruction are."""
        out, answers = self.path("results", "responses", key), f"{key}-three"
        command = alike(self.options, self.path("answers", f"{answers}.jsonl"), key, out)
        return self.stage(f"{key}-responses", command, out, (f"{answers}-answers",), last=RESULT)


def stages_of(options: Options) -> list[Stage]:
    """The commands of all seeds, and what is done once."""
    out = str(options.out / "results" / "responses" / TEACHER)
    command = alike(options, bench_file(options, TEACHER), TEACHER, out)
    found = [
        Stage("datagen", (program("datagen.py"),)),
        Stage(f"{TEACHER}-responses", command, Path(out), ("datagen",), last=RESULT),
    ]
    for seed in seeds_of(options):
        found += Plan(options, seed).stages()
    return found


def seeds_of(options: Options) -> list[int]:
    """The seeds of the repetitions."""
    return list(range(FIRST_SEED, FIRST_SEED + options.seeds))


def program(name: str) -> str:
    """A program of this repository, as seen from where we are."""
    return os.path.relpath(PROGRAMS / name)


def bench_file(options: Options, name: str) -> str:
    """One of the files of `mini_benches.py`."""
    return str(benches(options) / f"{name}.jsonl")


def benches(options: Options) -> Path:
    """The folder of these files; a quick look has its own."""
    return options.out / ("benches-quick" if options.steps else "benches")


def alike(options: Options, answers: str, name: str, out: str) -> tuple[str, ...]:
    """The command that measures how alike answers are."""
    files = ("--bench", bench_file(options, "three"), "--responses", answers)
    return (program("evaluate.py"), "responses", *files, "--name", name, "--out", out)


# Running them


def show(options: Options) -> None:
    """Prints and keeps the tables of all that has been computed."""
    runs = [numbers(options.out, seed) for seed in seeds_of(options)]
    chosen, about = sheets(options.ablations), [about_seeds(options)]
    if options.steps:
        about.append(f"--steps {options.steps}: a quick look, whose numbers mean nothing.")
    out = options.out / "tables"
    for suffix in (".md", ".txt"):
        content = text(chosen, runs, about, markdown=suffix == ".md") + "\n"
        replace_file(out.with_suffix(suffix), content.encode())
    replace_file(out.with_suffix(".json"), (json.dumps({"runs": runs}, indent=2) + "\n").encode())
    print(f"\n{text(chosen, runs, about, markdown=False)}\n")
    try:
        draw(chosen, runs, out.with_suffix(".png"))
        pictures = ", .png"
    except UserError as error:
        pictures = f" (no picture: {error})"
    print(f"{out}.md, .txt, .json{pictures}")


def about_seeds(options: Options) -> str:
    """What the numbers are means of."""
    first, *others = map(str, seeds_of(options))
    if not others:
        return f"Seed {first}, one run; --seeds 3 shows how much the numbers move."
    return f"Seeds {first} to {others[-1]}: mean ± standard deviation (n - 1) over seeds."


def main(arguments: list[str] | None = None) -> None:
    """Runs everything that has not been run, and shows the tables."""
    parser = Parser(__doc__)
    add_fields(parser, Options)
    options = Options(**given_fields(parser.parse_args(arguments), Options))
    stages, began = stages_of(options), time.monotonic()
    if options.dry_run:
        runner = Runner(stages, options.out, f"http://127.0.0.1:{options.port or PORT}/v1")
        print(*(runner.shown(stage.command) for stage in stages), sep="\n")
        return
    jobs = options.jobs or min(2, os.cpu_count() or 1)
    say(f"{len(stages)} commands, {jobs} at a time, each with OMP_NUM_THREADS=1")
    say(f"what they print is in {options.out}/logs and {options.out}/seed-*/logs")
    write_benches(benches(options), QUICK_TOPICS if options.steps else None)
    with judge_of(options.port) as url:
        say(f"the judge is at {url}; for a command alone, `python -m janus_min.examiner` serves it")
        Runner(stages, options.out, url, jobs, say).run()
    say(f"all of it took {clock(time.monotonic() - began)}")
    show(options)


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    run(main)
