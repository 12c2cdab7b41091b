"""Fluency of continuations: their perplexity under another model, given the prompt.

    PPL(y | x) = exp( −1/m · Σ_t log p(y_t | x, y_<t) )       y_1 … y_m, the continuation's tokens

The code of DExperts (arXiv 2105.03023) has L, the mean of −log p over all tokens of a text but the
first, and takes exp of (L(xy)·(|xy| − 1) − L(x)·(|x| − 1)) / (|xy| − |x|). L times its number of
tokens is a sum again; what x costs is the same in both, since it sees nothing of y, and cancels;
what is left is the sum over the m = |xy| − |x| tokens of y, divided by m.

    Note: prompt and continuation are one text, and encoded as one, BOS first. SentencePiece puts a
    space before a text, so that a continuation that is encoded apart would begin with one more.
    Its tokens are those from the first one on that the prompt alone does not have: where a word
    goes across the border, that whole token counts. DExperts' number of tokens is off there.
    Note: DExperts measures with GPT-2 XL, here it is a Mistral: perplexities compare only under
    one model.
"""

import math
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch

from janus_min.chat import encode_prompt_texts
from janus_min.checkpoint import open_model, require_vocabulary
from janus_min.errors import UserError
from janus_min.loading import load_policy
from janus_min.losses import average_logps
from janus_min.model import Policy
from janus_min.plan import best_fit
from janus_min.progress import Progress
from janus_min.row import Example, build_row, laid_tokens
from janus_min.tokenizer import Tokenizer

ROW_TOKENS = 8192  # computed at a time, unless one text is longer
LARGEST_EXPONENT = 700.0  # of a perplexity that is still a number


def encode(directory: Path, texts: list[tuple[str, str, str]]) -> list[Example]:
    """(prompt, continuation, where it was read) -> examples for the model of a directory. The
    response of one without any token is empty.

    Raises UserError if there is no such model, or for a text longer than its context.
    """
    tokenizer = Tokenizer(directory)
    config = open_model(Policy, directory, impl="torch").config
    require_vocabulary(tokenizer, config)
    whole = encode_prompt_texts(tokenizer, [prompt + own for prompt, own, _ in texts])
    prompts = encode_prompt_texts(tokenizer, [prompt for prompt, _, _ in texts])
    examples = []
    for (_, _, where), ids, prompt in zip(texts, whole, prompts, strict=True):
        if len(ids) > config.max_position_embeddings:
            raise UserError(
                f"{where}: {len(ids):,} tokens with its prompt, the context of {directory} is "
                f"{config.max_position_embeddings:,}; leave it out, or name another model"
            )
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, prompt)))
        start, response = (np.array(part, np.int32) for part in (ids[:shared], ids[shared:]))
        examples.append(Example(start, (response,), where))
    return examples


@torch.no_grad()
def perplexities(directory: Path, examples: list[Example]) -> list[float | None]:
    """The perplexity of each example's response under the model; None for an empty one.

    Raises UserError if the model's log-probabilities are not finite.
    """
    found: list[float | None] = [None] * len(examples)
    measured = [i for i, example in enumerate(examples) if len(example.responses[0])]
    if not measured:
        return found
    policy, _ = load_policy(directory)
    device, window = policy.lm_head.weight.device, policy.config.sliding_window
    lengths = [laid_tokens(examples[i], window) for i in measured]
    row_tokens = max(ROW_TOKENS, *lengths)
    pad_to = row_tokens if device.type == "cuda" else None  # there all rows have one length
    plan = best_fit(lengths, row_tokens)
    progress = Progress(len(plan), "tokens", noun="row")
    for done, places in enumerate(plan, start=1):
        indices = [measured[place] for place in places]
        row = build_row([examples[i] for i in indices], window, pad_to).to(device)
        logps = average_logps(policy(row), row.targets, row.response, len(row.ends)).tolist()
        if not all(map(math.isfinite, logps)):
            raise UserError(f"{directory}: its log-probabilities are not finite: it is damaged")
        for i, logp in zip(indices, logps):
            found[i] = math.exp(min(-logp, LARGEST_EXPONENT))
        progress.update(done, len(row.inputs), "")
    progress.close()
    return found
