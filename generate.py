"""Answers prompts under system messages.

    python generate.py                   one instruction under three system messages, from the
                                         newest miniature model
    python generate.py --model DIR --system TEXT --prompt TEXT [--n 4]
    python generate.py --model DIR --input IN.jsonl --output OUT.jsonl
    python generate.py --model DIR --benchmark NAME --input QUESTIONS --output ANSWERS

IN.jsonl has `prompt` (or `instruction`) and optionally `system` in each line. OUT.jsonl gets, as
soon as each response is finished, its record with `response`, `stop` ("eos" or "length"), `line`
(of IN.jsonl, from 1), `sample` (of n, from 0) and `sampling`. Equal prompts get equal samples: ask
for more by --n.

The benchmarks are alpaca-eval, mt-bench, arena-hard and toxicity (RealToxicityPrompts). QUESTIONS
is the benchmark's own file, ANSWERS the one that its judge reads (a JSON list for alpaca-eval, else
JSONL), written when all is answered. Unless they are given, --temperature is by category for
mt-bench, arena-hard has --temperature 0 and --max-tokens 4096, and toxicity has --n 25 and
--max-tokens 20; top_p and repetition penalty stay the paper's. With --benchmark, --system is one
message for all questions.
"""

import json
import time
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from janus_min import mini_data
from janus_min.answers import (
    BENCHMARKS,
    SAMPLES,
    SAMPLING,
    Answer,
    Dialogue,
    answer_file,
    category_temperature,
    read_questions,
)
from janus_min.chat import encode_conversations, encode_prompts
from janus_min.cli import Parser, add_fields, given_fields, run
from janus_min.errors import UserError, require
from janus_min.files import model_name, replace_file
from janus_min.formats import INSTRUCTION, read_jsonl, text_field, unicode_text
from janus_min.grading import newest_model
from janus_min.model import Policy
from janus_min.sampling import (
    PRECISIONS,
    Completion,
    Request,
    Sampling,
    generate,
    load_for_generation,
)
from janus_min.tokenizer import Tokenizer


@dataclass(frozen=True)
class Options:
    """What to answer, by which model."""

    model: Path | None = None  # Hugging Face directory; the newest miniature model unless given
    system: str | None = None  # what the user values; may be empty
    prompt: str | None = None  # the instruction
    input: Path | None = None  # JSONL of prompts, or a benchmark's questions
    output: Path | None = None  # JSONL of responses, or the answers to a benchmark
    benchmark: str | None = None  # alpaca-eval, mt-bench, arena-hard or toxicity
    name: str | None = None  # of the model in a benchmark's answers; its directory's unless given
    n: int = 1  # responses to each prompt
    seed: int = 0  # of all random numbers
    batch_size: int = 64  # responses at a time
    precision: str | None = None  # bf16 or fp32; bf16 on a GPU, fp32 on a CPU, where it is faster

    def __post_init__(self):
        for name, least in (("n", 1), ("batch_size", 1), ("seed", 0)):
            require(getattr(self, name) >= least, self, name, f"at least {least}")
        known = " or ".join(PRECISIONS)
        require(self.precision in (None, *PRECISIONS), self, "precision", known)
        if (self.input is None) != (self.output is None):
            raise UserError("--input and --output go together")
        if self.input and self.prompt is not None:
            raise UserError("give either --prompt or --input, not both")
        if self.system is not None and self.prompt is None and not self.benchmark:
            raise UserError(
                "--system needs --prompt or --benchmark; in a file of prompts the system messages "
                "are a column"
            )
        if self.model and not self.input and self.prompt is None:
            raise UserError("--model needs --prompt TEXT or --input FILE")
        if self.output and (self.output.exists() or not self.output.parent.is_dir()):
            raise UserError(f"--output {self.output} must be a new file in an existing folder")
        self._check_benchmark()

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


@dataclass(frozen=True)
class Prompt:
    """What is asked, and where it comes from."""

    system: str
    instruction: str
    record: dict  # of the input file
    line: int


def main() -> None:
    parser = Parser(__doc__)
    add_fields(parser, Options)
    add_fields(parser, Sampling)
    arguments = parser.parse_args()
    given, drawn = given_fields(arguments, Options), given_fields(arguments, Sampling)
    benchmark = given.get("benchmark")
    options = Options(**{"n": SAMPLES.get(benchmark, 1)} | given)
    sampling = Sampling(**SAMPLING.get(benchmark, {}) | drawn)
    if benchmark:
        by_category = benchmark == "mt-bench" and "temperature" not in drawn
        answer_benchmark(options, sampling, by_category)
        return
    prompts = read_prompts(options)
    directory = options.model or newest_model()
    policy, tokenizer = load_for_generation(directory, options.precision)
    requests = make_requests(options, prompts, tokenizer, policy)
    if options.output:
        write_responses(options, prompts, requests, policy, tokenizer, sampling)
        return
    if options.prompt is None:
        print(f"model: {directory}")
    completions = generate(policy, requests, sampling, options.batch_size)
    for index, completion in enumerate(completions):
        prompt = prompts[index // options.n]
        if options.prompt is None:
            print(f"\nsystem: {prompt.system}\nprompt: {prompt.instruction}\n")
        print(tokenizer.decode(completion.ids))


def read_prompts(options: Options) -> list[Prompt]:
    """The prompts of the command line, of the input file, or of the showcase."""
    if options.prompt is not None:
        system = unicode_text(options.system or "", "--system")
        return [Prompt(system, unicode_text(options.prompt, "--prompt"), {}, 1)]
    if options.input is None:
        return [Prompt(system, instruction, {}, 1) for system, instruction in mini_data.showcase()]
    prompts = []
    for line, record in read_jsonl(options.input):
        where = f"{options.input}:{line}"
        system = text_field(record, ("system",), where, optional=True)
        instruction = text_field(record, INSTRUCTION, where)
        prompts.append(Prompt(system, instruction, record, line))
    if not prompts:
        raise UserError(f"{options.input} holds no prompt")
    return prompts


def make_requests(
    options: Options, prompts: list[Prompt], tokenizer: Tokenizer, policy: Policy
) -> list[Request]:
    """n requests for each prompt. A request's seed depends on its prompt and its number among the
    n, not on its place in the file."""
    requests = []
    context = policy.config.max_position_embeddings
    encoded = encode_prompts(tokenizer, [(p.system, p.instruction) for p in prompts])
    for prompt, ids in zip(prompts, encoded, strict=True):
        where = f"{options.input}:{prompt.line}: " if options.input else ""
        require_room(ids, context, where)
        requests += [make_request(options.seed, ids, sample) for sample in range(options.n)]
    return requests


def make_request(seed: int, ids: list[int], sample: int) -> Request:
    """A prompt's request number `sample`."""
    own = zlib.crc32(json.dumps([seed, ids]).encode())
    return Request(ids, seed=own << 32 | sample)


def require_room(ids: list[int], context: int, where: str) -> None:
    """Raises UserError for a prompt after which the context has no room."""
    if len(ids) >= context:
        raise UserError(
            f"{where}the prompt has {len(ids)} tokens, the model's context is {context}: shorten it"
        )


def write_responses(
    options: Options,
    prompts: list[Prompt],
    requests: list[Request],
    policy: Policy,
    tokenizer: Tokenizer,
    sampling: Sampling,
) -> None:
    """Answers the input file; each response is written before the next one is waited for."""
    settings = asdict(sampling) | {"seed": options.seed}
    with options.output.open("w", encoding="utf-8") as file:

        def write(index: int, completion: Completion) -> None:
            prompt = prompts[index // options.n]
            place = {"line": prompt.line, "sample": index % options.n}
            response = {"response": tokenizer.decode(completion.ids), "stop": completion.stop}
            line = prompt.record | place | response | {"sampling": settings}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()

        generate(policy, requests, sampling, options.batch_size, on_done=write)
    print(f"{len(requests)} responses in {options.output}")


def answer_benchmark(options: Options, sampling: Sampling, by_category: bool) -> None:
    """Answers a benchmark's questions turn by turn, and writes its file of answers."""
    questions = read_questions(options.input, options.benchmark)
    if options.system:
        unicode_text(options.system, "--system")
    directory = options.model or newest_model()
    name = unicode_text(options.name or model_name(directory), "--name")
    policy, tokenizer = load_for_generation(directory, options.precision)
    context = policy.config.max_position_embeddings
    first = [(options.system, question["turns"][:1], []) for question in questions]
    for question, ids in zip(questions, encode_conversations(tokenizer, first), strict=True):
        require_room(ids, context, f"{options.input}, question {question['id']!r}: ")

    dialogues = [Dialogue(each, sample) for each in questions for sample in range(options.n)]
    groups: dict[float, list[Dialogue]] = {}
    for dialogue in dialogues:
        temperature = sampling.temperature
        if by_category:
            temperature = category_temperature(dialogue.question["source"])
        groups.setdefault(temperature, []).append(dialogue)
    for temperature, group in groups.items():
        own = replace(sampling, temperature=temperature)
        for _ in group[0].question["turns"]:
            answer_turn(options, group, policy, tokenizer, own)

    content = answer_file(options.benchmark, dialogues, name, time.time())
    replace_file(options.output, content)
    stops = [answer.stop for dialogue in dialogues for answer in dialogue.answers]
    cut, refused = stops.count("length"), stops.count("context")
    print(f"{len(stops)} answers in {options.output}")
    print(f"{cut} of {len(stops)} cut at --max-tokens or by the context")
    if refused:
        print(f"{refused} of {len(stops)} empty, as their prompts fill the context")


def answer_turn(
    options: Options,
    dialogues: list[Dialogue],
    policy: Policy,
    tokenizer: Tokenizer,
    sampling: Sampling,
) -> None:
    """Adds the next answer to each dialogue: an empty one where the prompt fills the context."""
    conversations = []
    for dialogue in dialogues:
        texts = [answer.text for answer in dialogue.answers]
        turns = dialogue.question["turns"][: len(texts) + 1]
        conversations.append((options.system, turns, texts))
    asked, requests = [], []
    for dialogue, ids in zip(
        dialogues, encode_conversations(tokenizer, conversations), strict=True
    ):
        if len(ids) >= policy.config.max_position_embeddings:
            dialogue.answers.append(Answer("", "context", 0))
            continue
        asked.append(dialogue)
        requests.append(make_request(options.seed, ids, dialogue.sample))
    completions = generate(policy, requests, sampling, options.batch_size)
    for dialogue, completion in zip(asked, completions, strict=True):
        text, tokens = tokenizer.decode(completion.ids), len(completion.ids)
        dialogue.answers.append(Answer(text, completion.stop, tokens))


if __name__ == "__main__":
    run(main)
