"""Answers prompts under system messages.

    python generate.py                   one instruction under three system messages, from the
                                         newest miniature model
    python generate.py --model DIR --system TEXT --prompt TEXT [--n 4]
    python generate.py --model DIR --input IN.jsonl --output OUT.jsonl

IN.jsonl has `prompt` (or `instruction`) and optionally `system` in each line; OUT.jsonl gets the
same lines with `response`, `stop` and the sampling settings, each written as soon as it is
finished.
"""

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from janus_min import miniature
from janus_min.chat import encode_prompts
from janus_min.checkpoint import load_policy
from janus_min.cli import Parser, add_fields, at_least, given_fields, run
from janus_min.data import INSTRUCTION_KEYS, read_jsonl, text_field, unicode_text
from janus_min.errors import UserError
from janus_min.model import Policy
from janus_min.sampling import Completion, Request, Sampling, generate, prepare_for_decoding
from janus_min.tokenizer import Tokenizer


@dataclass(frozen=True)
class Options:
    """What to answer, by which model."""

    model: Path | None = None  # Hugging Face directory; the newest miniature model unless given
    system: str = ""  # what the user values; may be empty
    prompt: str | None = None  # the instruction
    input: Path | None = None  # JSONL of prompts
    output: Path | None = None  # JSONL of responses
    n: int = 1  # responses to each prompt
    seed: int = 0  # of all random numbers
    batch_size: int = 64  # responses at a time


def parse() -> tuple[Options, Sampling]:
    parser = Parser(__doc__)
    add_fields(parser, Options)
    add_fields(parser, Sampling)
    arguments = parser.parse_args()
    options = Options(**given_fields(arguments, Options))
    at_least(1, options, "n", "batch_size")
    at_least(0, options, "seed")
    unicode_text(options.system, "--system")
    unicode_text(options.prompt or "", "--prompt")
    if (options.input is None) != (options.output is None):
        raise UserError("--input and --output go together")
    if options.input and options.prompt is not None:
        raise UserError("give either --prompt or --input, not both")
    if options.model and not options.input and options.prompt is None:
        raise UserError("--model needs --prompt TEXT or --input FILE")
    if options.output and options.output.exists():
        raise UserError(f"{options.output} exists already; choose another --output")
    return options, Sampling(**given_fields(arguments, Sampling))


def main() -> None:
    options, sampling = parse()
    directory = options.model or miniature.newest_model()
    tokenizer = Tokenizer(directory)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    policy = load_policy(directory, impl="torch", dtype=dtype, device=device)
    if device == "cpu":
        prepare_for_decoding(policy)
    if options.input:
        answer_file(options, policy, tokenizer, sampling)
        return
    if options.prompt is not None:
        prompts = [(options.system, options.prompt)]
    else:
        print(f"model: {directory}")
        prompts = miniature.showcase()
    requests = make_requests(tokenizer, prompts, options.n, options.seed)
    completions = generate(policy, requests, sampling, options.batch_size)
    for index, (system, prompt) in enumerate(prompts):
        if len(prompts) > 1:
            print(f"\nsystem: {system}\nprompt: {prompt}\n")
        for completion in completions[index * options.n : (index + 1) * options.n]:
            print(tokenizer.decode(completion.ids))


def make_requests(
    tokenizer: Tokenizer, prompts: list[tuple[str, str]], n: int, seed: int
) -> list[Request]:
    """n requests for each prompt. A request's seed depends on its prompt and its number among the
    n, not on its place in the file.
    """
    requests = []
    for ids in encode_prompts(tokenizer, prompts):
        own = zlib.crc32(json.dumps([seed, ids]).encode())
        requests += [Request(ids, seed=own * 4096 + sample) for sample in range(n)]
    return requests


def answer_file(options: Options, policy: Policy, tokenizer: Tokenizer, sampling: Sampling) -> None:
    """Answers a JSONL file; each response is written before the next one is waited for."""
    records, prompts = [], []
    for number, record in read_jsonl(options.input):
        where = f"{options.input}:{number}"
        system = text_field(record, ("system",), where, optional=True)
        prompts.append((system, text_field(record, INSTRUCTION_KEYS, where)))
        records.append(record)
    if not records:
        raise UserError(f"{options.input} holds no prompt")
    settings = asdict(sampling) | {"seed": options.seed}
    with options.output.open("w", encoding="utf-8") as file:

        def write(index: int, completion: Completion) -> None:
            response = {"response": tokenizer.decode(completion.ids), "stop": completion.stop}
            place = {"line": index // options.n, "sample": index % options.n}
            line = records[index // options.n] | place | response | {"sampling": settings}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()

        requests = make_requests(tokenizer, prompts, options.n, options.seed)
        generate(policy, requests, sampling, options.batch_size, on_done=write)
    print(f"{len(requests)} responses in {options.output}")


if __name__ == "__main__":
    run(main)
