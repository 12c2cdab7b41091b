"""Generation: 64 tokens for one prompt and for sixteen, beside Hugging Face's `generate`.

    python -m tests.bench.generation

Both sides take the most likely token and never meet an EOS, so that they do the same work; the
prompts have unequal lengths, padded on the left for Hugging Face. Both must produce the same
tokens. What is timed is a whole call, prompts included.

Targets: prototypes with matrices stored transposed reached 1.8 to 1.9 with one prompt and 2.2 to
2.3 with sixteen (2 cores, 24.6M parameters), on a CPU where Hugging Face made 60 tokens per second
with one. Where its matrix products run at the memory's speed already, that layout gains little.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from janus_min.model import Policy
from janus_min.sampling import EOS, Request, Sampling, generate, prepare_for_decoding
from tests.bench.common import alternate, machine, report, same_model_twice
from tests.peers import transformers

VOCABULARY = 4096
NEW_TOKENS = 64
SHORTEST, LONGEST = 33, 64  # tokens of a prompt
SEED = 0  # of the prompts; another one if two logits are so close that rounding decides
ROUNDS = 9
GREEDY = Sampling(temperature=0, top_p=1.0, repetition_penalty=1.0, max_tokens=NEW_TOKENS)
TARGETS = {1: 1.7, 16: 2.0}  # prompts in a batch -> ratio of tokens per second


def make_prompts(count: int) -> list[list[int]]:
    """Random ids after BOS, of lengths spread evenly from SHORTEST to LONGEST."""
    random = np.random.default_rng(SEED)
    lengths = np.linspace(LONGEST, SHORTEST, count).astype(int)
    return [[1, *random.integers(3, VOCABULARY, length - 1).tolist()] for length in lengths]


def their_tokens(
    model: transformers.MistralForCausalLM, prompts: list[list[int]]
) -> list[list[int]]:
    ids = [torch.tensor(prompt) for prompt in prompts]
    padded = pad_sequence(ids, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True, padding_side="left")
    output = model.generate(
        input_ids=padded,
        attention_mask=mask,
        do_sample=False,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
    )
    return output[:, padded.shape[1] :].tolist()


def our_tokens(policy: Policy, prompts: list[list[int]]) -> list[list[int]]:
    requests = [Request(prompt) for prompt in prompts]
    return [completion.ids for completion in generate(policy, requests, GREEDY, len(requests))]


def without_eos(theirs: transformers.MistralForCausalLM, ours: Policy) -> None:
    """Makes every generation as long as it may be, on both sides."""
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    with torch.no_grad():
        for model in (theirs, ours):  # a logit of 0 is far below the largest of 4,096
            model.lm_head.weight[EOS] = 0


def compare(theirs: transformers.MistralForCausalLM, ours: Policy, batch: int) -> None:
    """Checks that both sides produce the same tokens, then times them."""
    prompts = make_prompts(batch)
    sides = {
        "Hugging Face": lambda: their_tokens(theirs, prompts),
        "janus-min": lambda: our_tokens(ours, prompts),
    }
    expected, found = (side() for side in sides.values())  # the warm-up
    produced = sum(len(ids) for ids in expected)
    print(
        f"\nbatch {batch}, prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens; "
        f"{produced:,} new tokens, the same on both sides: {expected == found}"
    )
    if expected != found or produced != batch * NEW_TOKENS:
        raise SystemExit("the tokens differ: nothing to compare (a near-tie? try another SEED)")
    report(alternate(sides, ROUNDS), produced, TARGETS[batch])


def main() -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as directory:
        theirs, ours = same_model_twice(Path(directory), VOCABULARY)
    theirs.eval()
    without_eos(theirs, ours)
    prepare_for_decoding(ours)
    print(f"vocabulary {VOCABULARY:,}, {sum(p.numel() for p in ours.parameters()):,} parameters")
    for batch in TARGETS:
        compare(theirs, ours, batch)


if __name__ == "__main__":
    main()
