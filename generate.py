"""Answers prompts under system messages.

    python generate.py                   one instruction under three system messages, from the
                                         newest miniature model
    python generate.py --model DIR --system TEXT --prompt TEXT [--n 4]
    python generate.py --model DIR --input IN.jsonl --output OUT.jsonl

IN.jsonl has `prompt` (or `instruction`) and optionally `system` in each line. OUT.jsonl gets, as
soon as each response is finished, its record with `response`, `stop` ("eos" or "length"), `line`
(of IN.jsonl, from 1), `sample` (of n, from 0) and `sampling`. Equal prompts get equal samples: ask
for more by --n.
"""

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from janus_min import miniature
from janus_min.chat import encode_prompts
from janus_min.cli import Parser, add_fields, given_fields, run
from janus_min.errors import UserError, require
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
    input: Path | None = None  # JSONL of prompts
    output: Path | None = None  # JSONL of responses
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
        if self.system is not None and self.prompt is None:
            raise UserError("--system needs --prompt; in a file the system messages are a column")
        if self.model and not self.input and self.prompt is None:
            raise UserError("--model needs --prompt TEXT or --input FILE")
        if self.output and (self.output.exists() or not self.output.parent.is_dir()):
            raise UserError(f"--output {self.output} must be a new file in an existing folder")


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
    options = Options(**given_fields(arguments, Options))
    sampling = Sampling(**given_fields(arguments, Sampling))
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
        return [Prompt(system, instruction, {}, 1) for system, instruction in miniature.showcase()]
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
        if len(ids) >= context:
            where = f"{options.input}:{prompt.line}: " if options.input else ""
            raise UserError(
                f"{where}the prompt has {len(ids)} tokens, the model's context is {context}: "
                "shorten it"
            )
        own = zlib.crc32(json.dumps([options.seed, ids]).encode())
        requests += [Request(ids, seed=own << 32 | sample) for sample in range(options.n)]
    return requests


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


if __name__ == "__main__":
    run(main)
