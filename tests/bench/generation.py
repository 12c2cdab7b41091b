"""Generation beside Hugging Face's `generate`, the same work on both sides.

    python -m tests.bench.generation [--precision bf16]

1. One prompt and sixteen, 64 new tokens each.
2. 200 prompts of 16 to 128 tokens whose responses have lengths fixed in advance, 16 to 256 tokens:
   Hugging Face at the batch size that is best for it, prompts of like lengths together, each batch
   as long as its longest response. What counts is tokens of responses.
3. Sixteen responses to one prompt of 512 tokens, beside sixteen prompts of that length (ours).

Both sides take the most likely token and never meet an EOS, so that they do the same work; prompts
have unequal lengths, padded on the left for Hugging Face. What is timed is a whole call, prompts
included. In fp32 both must find the same tokens; in bf16, where near-ties are many, as many.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from janus_min.decoder import Decoder
from janus_min.engine import generate
from janus_min.loading import PRECISIONS
from janus_min.model import Policy
from janus_min.sampling import Request, Sampling
from janus_min.tokenizer import EOS
from tests.bench.common import alternate, machine, report, same_model_twice
from tests.peers import transformers

VOCABULARY = 4096
NEW_TOKENS = 64
SEED = 0  # of the prompts; another one if two logits are so close that rounding decides
ROUNDS, LONG_ROUNDS = 9, 3
GREEDY = Sampling(temperature=0, top_p=1.0, repetition_penalty=1.0)
TARGETS = {1: 1.7, 16: 2.0}  # prompts in a batch -> ratio of tokens per second
MANY, MANY_TARGET = 200, 3.0
BATCHES = (16, 32, 64, 100, 200)  # of Hugging Face, of which the best counts
SLOTS = 200  # ours: the more, the fewer steps
SHARED_PROMPT, SAMPLES, SHARED_TARGET = 512, 16, 1.5


def prompts_of(lengths: np.ndarray) -> list[list[int]]:
    """Random ids after BOS."""
    random = np.random.default_rng(SEED)
    return [[1, *random.integers(3, VOCABULARY, length - 1).tolist()] for length in lengths]


def their_tokens(
    model: transformers.MistralForCausalLM, prompts: list[list[int]], count: int
) -> list[list[int]]:
    """`count` tokens for each prompt, all in one batch."""
    ids = [torch.tensor(prompt) for prompt in prompts]
    padded = pad_sequence(ids, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True, padding_side="left")
    output = model.generate(
        input_ids=padded,
        attention_mask=mask,
        do_sample=False,
        min_new_tokens=count,
        max_new_tokens=count,
    )
    return output[:, padded.shape[1] :].tolist()


def their_many(
    model: transformers.MistralForCausalLM,
    prompts: list[list[int]],
    lengths: list[int],
    batch: int,
) -> list[list[int]]:
    """`lengths[i]` tokens for each prompt, `batch` of them at a time, like ones together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, list[int]] = {}
    for start in range(0, len(order), batch):
        own = order[start : start + batch]
        outputs = their_tokens(model, [prompts[i] for i in own], max(lengths[i] for i in own))
        found |= {i: ids[: lengths[i]] for i, ids in zip(own, outputs)}
    return [found[i] for i in range(len(prompts))]


def our_tokens(
    decoder: Decoder, prompts: list[list[int]], lengths: list[int], slots: int
) -> list[list[int]]:
    requests = [Request(p, max_tokens=count) for p, count in zip(prompts, lengths)]
    return [completion.ids for completion in generate(decoder, requests, GREEDY, slots)]


def without_eos(theirs: transformers.MistralForCausalLM, ours: Policy) -> None:
    """Makes every generation as long as it may be, on both sides."""
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    with torch.no_grad():
        for model in (theirs, ours):  # a logit of 0 is far below the largest of 4,096
            model.lm_head.weight[EOS] = 0


def same(
    expected: list[list[int]], found: list[list[int]], lengths: list[int], dtype: torch.dtype
) -> None:
    """Ends the program unless both made as many tokens as they should, and in fp32 the same."""
    if any([len(ids) for ids in side] != lengths for side in (expected, found)):
        raise SystemExit("the numbers of tokens differ: nothing to compare")
    if dtype == torch.float32 and expected != found:
        raise SystemExit("the tokens differ: nothing to compare (a near-tie? try another SEED)")


def compare_batch(theirs: transformers.MistralForCausalLM, ours: Decoder, batch: int) -> None:
    prompts = prompts_of(np.linspace(64, 33, batch).astype(int))
    lengths = [NEW_TOKENS] * batch
    sides = {
        "Hugging Face": lambda: their_tokens(theirs, prompts, NEW_TOKENS),
        "janus-min": lambda: our_tokens(ours, prompts, lengths, batch),
    }
    same(*(side() for side in sides.values()), lengths, ours.dtype)  # the warm-up
    print(
        f"\nbatch {batch}, prompts of {len(prompts[-1])} to 64 tokens, {NEW_TOKENS} new ones each"
    )
    report(alternate(sides, ROUNDS), sum(lengths), TARGETS[batch])


def compare_many(theirs: transformers.MistralForCausalLM, ours: Decoder) -> None:
    random = np.random.default_rng(SEED)
    prompts = prompts_of(random.integers(16, 129, MANY))
    lengths = random.integers(16, 257, MANY).tolist()
    print(f"\n{MANY} prompts, responses of {min(lengths)} to {max(lengths)} tokens")
    seconds = {}
    for batch in BATCHES:
        started = time.perf_counter()
        expected = their_many(theirs, prompts, lengths, batch)
        seconds[batch] = time.perf_counter() - started
    best = min(seconds, key=seconds.get)
    times = ", ".join(f"{batch}: {each:.1f} s" for batch, each in seconds.items())
    print(f"Hugging Face by batch size: {times}")
    sides = {
        f"HF, batch {best}": lambda: their_many(theirs, prompts, lengths, best),
        "janus-min": lambda: our_tokens(ours, prompts, lengths, SLOTS),
    }
    same(expected, sides["janus-min"](), lengths, ours.dtype)
    report(alternate(sides, LONG_ROUNDS), sum(lengths), MANY_TARGET)


def compare_shared(ours: Decoder) -> None:
    prompts = prompts_of(np.full(SAMPLES, SHARED_PROMPT))
    lengths = [NEW_TOKENS] * SAMPLES
    sides = {
        "16 prompts": lambda: our_tokens(ours, prompts, lengths, SAMPLES),
        "16 of 1 prompt": lambda: our_tokens(ours, prompts[:1] * SAMPLES, lengths, SAMPLES),
    }
    for side in sides.values():
        side()
    print(f"\n{SAMPLES} responses of {NEW_TOKENS} tokens to prompts of {SHARED_PROMPT}")
    report(alternate(sides, LONG_ROUNDS), sum(lengths), SHARED_TARGET)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32")
    precision = parser.parse_args().precision
    print(machine(precision))
    with tempfile.TemporaryDirectory() as directory:
        theirs, policy = same_model_twice(Path(directory), VOCABULARY, PRECISIONS[precision])
    theirs.eval()
    without_eos(theirs, policy)
    ours = Decoder(policy)
    print(f"vocabulary {VOCABULARY:,}, {sum(p.numel() for p in policy.parameters()):,} parameters")
    for batch in TARGETS:
        compare_batch(theirs, ours, batch)
    compare_many(theirs, ours)
    compare_shared(ours)


if __name__ == "__main__":
    main()
