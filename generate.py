"""Answers prompts under system messages.

    python generate.py                   one instruction under three system messages, from the
                                         newest miniature model
    python generate.py --model DIR --system TEXT --prompt TEXT [--n 4 --reward-model DIR]
    python generate.py --model DIR [--system TEXT] --chat
    python generate.py --model DIR --input IN --output OUT [--n 64 --reward-model DIR]
    python generate.py --model DIR --benchmark NAME --input QUESTIONS --output ANSWERS
    torchrun --nproc-per-node 4 -- generate.py --model DIR --input IN --output OUT
    python generate.py --base-url URL --model NAME --input IN --output OUT

IN is JSONL or JSON, with `prompt` (or `instruction`) and optionally `system` in each record. OUT
has, in the order of IN, each record with `response`, `stop` ("eos", "length", or "context" where
the prompt left no room), `line` (of IN, from 1), `sample` (of n, from 0) and `sampling`; with a
reward model the best of n, its number as `best`, and all `candidates` with their rewards. If its
name ends in .json, it is an object of such records by id, as the official scripts write it. What is
finished is in OUT.partial-0 until all is, and the same command goes on after a stop. Equal prompts
get equal samples: ask for more by --n.

With --base-url, a server with OpenAI's interface answers; its key is read from the environment
variable OPENAI_API_KEY. Replies are in OUT.calls before anything else is done with them. The
repetition penalty and the seed, which that interface may lack, are sent only if they are given.

The benchmarks are alpaca-eval, mt-bench, arena-hard and toxicity (RealToxicityPrompts). QUESTIONS
is the benchmark's own file, ANSWERS the one that its judge reads (a JSON list for alpaca-eval, else
JSONL), written when all is answered. Unless they are given, --temperature is by category for
mt-bench, arena-hard has --temperature 0 and --max-tokens 4096, and toxicity has --n 25 and
--max-tokens 20; top_p and repetition penalty stay the paper's. With --benchmark, --system is one
message for all questions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from janus_min import mini_benches, offline, remote, remote_files
from janus_min.answers import (
    BENCHMARKS,
    SAMPLES,
    SAMPLING,
    Dialogue,
    category_temperature,
    read_questions,
)
from janus_min.best_of_n import load_reward_model, rewards_of
from janus_min.cli import Parser, add_fields, given_fields, run
from janus_min.connection import Connection
from janus_min.conversation import converse, prepare_terminal, read_terminal, write_terminal
from janus_min.dialogues import answer_dialogues, encode_turn, require_room, write_answers
from janus_min.engine import generate, stream
from janus_min.errors import UserError, require
from janus_min.files import model_name
from janus_min.formats import unicode_text
from janus_min.grading import newest_model
from janus_min.loading import PRECISIONS, load_for_generation
from janus_min.outputs import partials
from janus_min.parallel import run_rank
from janus_min.prompt_files import Prompt, encode, make_request
from janus_min.remote import calls_folder
from janus_min.sampling import Request, Sampling


@dataclass(frozen=True)
class Options:
    """What to answer, by which model."""

    model: str | None = None  # Hugging Face directory (the newest miniature's), or a server's name
    system: str | None = None  # what the user values; may be empty
    prompt: str | None = None  # the instruction
    chat: bool = False  # talk to the model in the terminal
    input: Path | None = None  # file of prompts, or a benchmark's questions
    output: Path | None = None  # responses, or the answers to a benchmark
    benchmark: str | None = None  # alpaca-eval, mt-bench, arena-hard or toxicity
    name: str | None = None  # of the model in a benchmark's answers; its directory's unless given
    n: int = 1  # responses to each prompt
    reward_model: Path | None = None  # directory of the reward model that chooses one of n
    seed: int = 0  # of all random numbers
    batch_size: int = 64  # responses at a time
    precision: str | None = None  # bf16 or fp32; unless given, bf16 on a GPU and fp32 on a CPU

    def __post_init__(self):
        for name, least in (("n", 1), ("batch_size", 1), ("seed", 0)):
            require(getattr(self, name) >= least, self, name, f"at least {least}")
        known = " or ".join(PRECISIONS)
        require(self.precision in (None, *PRECISIONS), self, "precision", known)
        if (self.input is None) != (self.output is None):
            raise UserError("--input and --output go together")
        ways = ("--prompt", self.prompt is not None), ("--input", self.input), ("--chat", self.chat)
        if len(chosen := [name for name, given in ways if given]) > 1:
            raise UserError(f"give either {' or '.join(chosen)}, not both")
        if self.system is not None and self.input and not self.benchmark:
            raise UserError(
                "--system needs --prompt, --chat or --benchmark; in a file of prompts the system "
                "messages are a column"
            )
        if self.system is not None and not chosen:
            raise UserError("--system needs --prompt, --chat or --benchmark")
        if self.model and not chosen:
            raise UserError("--model needs --prompt TEXT, --chat or --input FILE")
        if self.reward_model and (self.chat or self.benchmark):
            raise UserError("--reward-model is for --prompt and files of prompts")
        if self.reward_model and self.n == 1:
            raise UserError("--reward-model chooses one of several responses: it needs --n above 1")
        if self.chat:
            require(self.n == 1, self, "n", "1: a chat has one answer to each message")
        self._check_benchmark()
        several = self.n > 1 and not self.reward_model and not self.benchmark
        if self.output and self.output.suffix == ".json" and several:
            raise UserError(
                f"--output {self.output} has one response to each prompt: name it .jsonl for all "
                f"{self.n}, or give --reward-model"
            )

    def _check_benchmark(self) -> None:
        name = self.benchmark
        if name is None:
            if self.name is not None:
                raise UserError("--name needs --benchmark")
            return
        require(name in BENCHMARKS, self, "benchmark", f"one of {', '.join(BENCHMARKS)}")
        if self.input is None:
            raise UserError("--benchmark needs --input QUESTIONS and --output ANSWERS")
        if name not in SAMPLES:
            require(self.n == 1, self, "n", f"1: {name} has one answer to each question")
        suffix = ".json" if name == "alpaca-eval" else ".jsonl"
        require(self.output.suffix == suffix, self, "output", f"a name that ends in {suffix}")


def main() -> None:
    parser = Parser(__doc__)
    kinds = Options, Sampling, Connection, remote.Remote
    for kind in kinds:
        add_fields(parser, kind, without=("model_name",))
    arguments = parser.parse_args()
    given, drawn, connection, asked = (given_fields(arguments, kind) for kind in kinds)
    benchmark = given.get("benchmark")
    options = Options(**{"n": SAMPLES.get(benchmark, 1)} | given)
    sampling = Sampling(**SAMPLING.get(benchmark, {}) | drawn)
    if options.output:
        check_output(options, "base_url" in connection)
    warm = benchmark == "mt-bench" and "temperature" not in drawn
    temperature = by_category if warm else None
    if "base_url" in connection:
        work = remote_work(options, sampling, given, drawn, connection, asked)
        answer_through_server(options, work, temperature)
        return
    dry_run = asked.pop("dry_run", False)
    if servers := [*connection, *asked]:
        flag = servers[0].replace("_", "-")
        raise UserError(f"--{flag} needs --base-url: it says how a server is asked")
    if dry_run and (benchmark or not options.output):
        raise UserError("--dry-run needs --input FILE and --output FILE, or --base-url")
    if benchmark:
        answer_benchmark(options, sampling, temperature)
    elif options.output:
        answer_prompts(options, sampling, dry_run)
    elif options.chat:
        chat(options, sampling)
    else:
        show(options, sampling)


def check_output(options: Options, served: bool) -> None:
    """Raises UserError for a file that is there, unless it is to be completed."""
    path, begun = options.output, not options.benchmark and partials(options.output)
    if served and begun:
        raise UserError(f"{begun[0]} is there: a model on this machine was answering; finish that")
    there = path.exists() and not (calls_folder(path).is_dir() if served else begun)
    if there or not path.parent.is_dir():
        raise UserError(f"--output {path} must be a new file in an existing folder")


def by_category(dialogue: Dialogue) -> float:
    """At which MT-Bench has a question answered."""
    return category_temperature(dialogue.question["source"])


# By a model on this machine


def directory_of(options: Options) -> Path:
    """The model's directory."""
    return Path(options.model) if options.model else newest_model()


def answer_prompts(options: Options, sampling: Sampling, dry_run: bool) -> None:
    """Answers a file of prompts, or says what that takes."""
    files = directory_of(options), options.input, options.output
    how = dict(slots=options.batch_size, precision=options.precision)
    how |= dict(n=options.n, seed=options.seed, reward_model=options.reward_model)
    job = offline.Job(*files, sampling, **how)
    if dry_run:
        print(offline.plan_file(job))
    else:
        offline.answer_file(job)


def show(options: Options, sampling: Sampling) -> None:
    """Prints the responses to the prompt of the command line, or to the showcase."""
    directory = directory_of(options)
    if options.prompt is None:
        print(f"model: {directory}")
        prompts = [Prompt(*texts, {}, 1) for texts in mini_benches.showcase()]
    else:
        system = unicode_text(options.system or "", "--system")
        prompts = [Prompt(system, unicode_text(options.prompt, "--prompt"), {}, 1)]
    model, tokenizer = load_for_generation(directory, options.precision)
    encoded = encode(prompts, tokenizer)
    for ids in encoded:
        if len(ids) >= (context := model.config.max_position_embeddings):
            raise UserError(
                f"the prompt has {len(ids)} tokens, the model's context is {context}: shorten it"
            )
    if options.reward_model:
        offline.check_scorer(options.reward_model, tokenizer)
    requests = [make_request(options.seed, ids, k) for ids in encoded for k in range(options.n)]
    completions = generate(model, requests, sampling, options.batch_size)
    del model
    scorer = None
    if options.reward_model:
        scorer = load_reward_model(options.reward_model, tokenizer, options.precision)
    for i, prompt in enumerate(prompts):
        own = [completion.ids for completion in completions[i * options.n : (i + 1) * options.n]]
        if options.prompt is None:
            print(f"\nsystem: {prompt.system}\nprompt: {prompt.instruction}\n")
        if scorer:
            rewards = rewards_of(scorer, encoded[i], own, offline.SCORED_TOKENS)
            own = [own[offline.choose(rewards) or 0]]
        print(*map(tokenizer.decode, own), sep="\n")


def chat(options: Options, sampling: Sampling) -> None:
    """Talks to a user in the terminal."""
    system = unicode_text(options.system or "", "--system")
    model, tokenizer = load_for_generation(directory_of(options), options.precision)
    context = model.config.max_position_embeddings
    prepare_terminal()
    converse(
        lambda prompt, seed: stream(model, Request(prompt, seed), sampling),
        *(tokenizer, context, system),
        *(read_terminal, write_terminal, options.seed),
    )


def answer_benchmark(
    options: Options, sampling: Sampling, temperature: Callable[[Dialogue], float] | None
) -> None:
    """Answers a benchmark's questions and writes its file of answers."""
    directory = directory_of(options)
    name, dialogues = unicode_text(options.name or model_name(directory), "--name"), begin(options)
    model, tokenizer = load_for_generation(directory, options.precision)
    encoded = encode_turn(dialogues, options.system, tokenizer)
    require_room(options.input, dialogues, encoded, model.config.max_position_embeddings)
    asked = dialogues, options.system, temperature
    answer_dialogues(*asked, model, tokenizer, sampling, options.seed, options.batch_size)
    write_answers(options.output, options.benchmark, name, dialogues)


def begin(options: Options) -> list[Dialogue]:
    """A benchmark's questions, each as many times as it is answered."""
    if options.system:
        unicode_text(options.system, "--system")
    questions = read_questions(options.input, options.benchmark)
    return [Dialogue(each, sample) for each in questions for sample in range(options.n)]


# By a model behind a server


def remote_work(
    options: Options, sampling: Sampling, given: dict, drawn: dict, connection: dict, asked: dict
) -> remote.Work:
    """How the server is asked. What its interface may lack is sent only if the user gave it."""
    if not options.output:
        raise UserError("--base-url needs --input FILE and --output FILE")
    if not options.model and not asked.get("dry_run"):
        raise UserError("--base-url needs --model NAME, as the server knows it")
    for name in ("reward_model", "precision", "batch_size"):
        if name in given:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is for models on this machine, not for those of --base-url")
    return remote.make_work(
        remote.Remote(model_name=options.model, **asked),
        Connection(**connection),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        repetition_penalty=drawn.get("repetition_penalty"),
        seed=given.get("seed"),
    )


def answer_through_server(
    options: Options, work: remote.Work, temperature: Callable[[Dialogue], float] | None
) -> None:
    """Answers a file of prompts or a benchmark, into the same files."""
    if not options.benchmark:
        remote_files.answer_file(options.input, options.output, options.n, work)
        return
    dialogues = begin(options)
    name = unicode_text(options.name or options.model or "", "--name")
    asked = dialogues, options.system, temperature, options.output, work
    files = options.output, options.benchmark, name
    remote_files.answer_benchmark(*asked, lambda whole: write_answers(*files, whole))


if __name__ == "__main__":
    run(lambda: run_rank(main))
