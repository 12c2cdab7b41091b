"""Decoding on a GPU: is it right, and how fast, beside Hugging Face's `generate` and the memory.

    python -m tests.bench.decoding [--small] [--out kernels/results/decoding-NAME.json]

First, on small random models: recorded steps give the tokens of plain ones in fp32, and logits of
the cache in bf16, with masks of unequal lengths and with a window, are as close to fp64 as those of
a whole forward pass. Then a random Mistral-7B in bf16: tokens per second of single greedy steps,
without prompts and without recording, with 1 request at 128 positions and 64 requests at 1,024; how
much of what a step must read, weights and cache, goes through per second; and what a file of 256
requests of mixed lengths takes as a whole, sampled. With --small everything is tiny, which shows on
any machine that the script runs.

Targets on an H200: 1 request 240 tokens/s and 5 times Hugging Face's, 64 requests 7,800 tokens/s.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from janus_min.config import ModelConfig
from janus_min.decoder import Decoder
from janus_min.engine import Engine, generate
from janus_min.model import Policy, initialise
from janus_min.recipes import MISTRAL_7B
from janus_min.sampling import Request, Sampling
from janus_min.tokenizer import EOS
from tests.conftest import tiny_config
from tests.peers import transformers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 96  # that are timed
WARM_UP = 8  # before them


def random_policy(config: ModelConfig, dtype: torch.dtype) -> Policy:
    """Random weights that never lead to EOS."""
    with torch.device("meta"):
        policy = Policy(config, "triton" if DEVICE == "cuda" else "torch").to(dtype)
    policy.to_empty(device=DEVICE)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.fill_(1) if name.endswith("norm.weight") else parameter.normal_(0, 0.02)
        policy.lm_head.weight[EOS] = 0
    return policy


def requests_of(count: int, length: int, vocabulary: int, seed: int = 0) -> list[Request]:
    random = np.random.default_rng(seed)
    return [
        Request([1, *random.integers(3, vocabulary, length - 1).tolist()], seed=i)
        for i in range(count)
    ]


def strong_policy(config: ModelConfig) -> Policy:
    """A small model whose attention is not flat; the same one each time."""
    policy = Policy(config, "torch").to(DEVICE)
    initialise(policy, seed=0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return policy


# Is it right


def check() -> None:
    """Ends the program if it is not."""
    policy = strong_policy(tiny_config(head_dim=64, hidden_size=256))
    requests = [r for n in (3, 9, 30) for r in requests_of(7, n, 97, seed=n)]
    for sampling in (Sampling(temperature=0, max_tokens=40), Sampling(max_tokens=40)):
        recorded = generate(policy, requests, sampling, slots=10)
        plain = [[] for _ in requests]
        engine = Engine(policy, requests, sampling, slots=10)
        engine.graphs = None
        with torch.inference_mode():
            for index, token, _ in engine.run():
                plain[index].append(token)
        same = [[t for t in ids if t != EOS] for ids in plain] == [c.ids for c in recorded]
        print(f"recorded steps give the tokens of plain ones, {sampling.temperature=}: {same}")
        if not same:
            raise SystemExit("they do not")
    for window in (None, 24):
        check_masks(window)


def check_masks(window: int | None) -> None:
    """Steps of three slots of unequal length, of which 256 positions are read, in bf16."""
    config = tiny_config(
        head_dim=128, hidden_size=256, max_position_embeddings=512, sliding_window=window
    )
    half = strong_policy(config).bfloat16()
    texts = [request.prompt for n in (70, 90, 110) for request in requests_of(1, n, 97, seed=n)]
    truths, whole = [], 0.0
    with torch.inference_mode():
        for dtype in (torch.float64, torch.bfloat16):
            policy = strong_policy(config).bfloat16().to(dtype)
            for i, text in enumerate(texts):
                ids, place = torch.tensor(text, device=DEVICE), torch.arange(len(text))
                ends = torch.full_like(place, len(text))
                ends = ends if window is None else torch.minimum(ends, place + window)
                logits = policy.lm_head(policy.model(ids, place.to(DEVICE), ends.to(DEVICE)))
                if dtype == torch.float64:
                    truths.append(logits)
                else:
                    whole += (logits - truths[i]).abs().mean().item() / len(texts)
        requests = [Request(text[: 2 + 10 * i]) for i, text in enumerate(texts)]
        engine = Engine(half, requests, Sampling(max_tokens=300), slots=3)
        engine.graphs = None
        engine._refill()
        errors = []
        for _ in range(60):
            for slot, index in enumerate(engine.owner):
                engine.tokens[slot] = texts[index][engine.used[slot]]
            attend = engine.cache.step(engine.lengths, [(0, len(engine.lengths), 256)])
            logits = engine.model.head(engine.model(engine.tokens, engine.lengths, attend))
            for slot, index in enumerate(engine.owner):
                errors.append((logits[slot] - truths[index][engine.used[slot]]).abs().mean().item())
            engine._step()
            engine.used = [used + 1 for used in engine.used]
    cached = sum(errors) / len(errors)
    print(f"{window=}: bf16 logits are off by {cached:.4f} in steps, {whole:.4f} as a whole")
    if not cached < 1.5 * whole:
        raise SystemExit("steps are less exact than a whole pass")


# How fast


def steps_per_second(model: Decoder, requests: list[Request]) -> float:
    """Of greedy steps with all requests, behind their prompts and a few steps."""
    count = WARM_UP + STEPS
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_tokens=count + 1)
    engine, done = Engine(model, requests, sampling, len(requests)), 0
    with torch.inference_mode():
        for _ in engine.run():
            done += 1
            if done == WARM_UP * len(requests):
                synchronise()
                started = time.perf_counter()
            if done == count * len(requests):
                synchronise()
                return STEPS / (time.perf_counter() - started)
    raise SystemExit("a request ended early")


def their_steps_per_second(model: torch.nn.Module, requests: list[Request]) -> float:
    """The same of Hugging Face's, from calls for more and for fewer tokens."""
    ids = torch.tensor([request.prompt for request in requests], device=DEVICE)
    seconds = []
    for count in (WARM_UP, WARM_UP, WARM_UP + STEPS):  # the first one warms up
        synchronise()
        started = time.perf_counter()
        settings = dict(do_sample=False, min_new_tokens=count, max_new_tokens=count)
        model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
        synchronise()
        seconds.append(time.perf_counter() - started)
    return STEPS / (seconds[2] - seconds[1])


def synchronise() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def bytes_of_a_step(config: ModelConfig, count: int, length: int) -> int:
    """What it must read in bf16: all weights but the embedding, and the cache."""
    with torch.device("meta"):
        policy = Policy(config, "torch")
    weights = sum(p.numel() for p in policy.parameters()) - policy.lm_head.weight.numel()
    heads = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return 2 * (weights + 2 * count * length * heads)


def measure(small: bool) -> dict:
    """All figures."""
    config = tiny_config(max_position_embeddings=2048) if small else MISTRAL_7B
    dtype = torch.float32 if small else torch.bfloat16
    policy = random_policy(config, dtype)
    shapes = {name: value for name, value in vars(config).items() if value is not None}
    shapes = transformers.MistralConfig(**shapes, tie_word_embeddings=False)
    with torch.device(DEVICE):
        theirs = transformers.MistralForCausalLM._from_config(
            shapes, dtype=dtype, attn_implementation="sdpa"
        )
    theirs.load_state_dict(policy.state_dict())
    theirs.eval()
    theirs.generation_config.eos_token_id = None
    model, found = Decoder(policy, take=True), {}
    for count, length in ((1, 128), (64, 1024)) if not small else ((1, 16), (4, 64)):
        requests = requests_of(count, length, config.vocab_size)
        rates = [count * steps_per_second(model, requests) for _ in range(5)]
        others = [count * their_steps_per_second(theirs, requests) for _ in range(2)]
        ours, hf = float(np.median(rates)), float(np.median(others))
        through = bytes_of_a_step(config, count, length) * ours / count / 1e12
        found[f"{count} at {length}"] = {"tokens/s": ours, "HF": hf, "TB/s": through}
        line = f"{count} at {length} positions: {ours:,.0f} tokens/s, Hugging Face {hf:,.0f}"
        print(f"{line}, ratio {ours / hf:.2f}; {through:.2f} TB/s", flush=True)
    random = np.random.default_rng(0)
    many = [
        r
        for i, n in enumerate(random.integers(32, 512, 256))
        for r in requests_of(1, int(n), 97, seed=i)
    ]
    if small:
        many = many[:8]
    lengths = random.integers(16, 513, len(many)).tolist()
    many = [Request(r.prompt, r.seed, max_tokens=n) for r, n in zip(many, lengths)]
    started = time.perf_counter()
    completions = generate(model, many, Sampling(max_tokens=512), slots=128)
    seconds = time.perf_counter() - started
    tokens = sum(len(completion.ids) for completion in completions)
    found["file"] = {"requests": len(many), "tokens/s": tokens / seconds}
    print(f"{len(many)} requests as a file, sampled: {tokens / seconds:,.0f} tokens/s as a whole")
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    about = {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}
    about |= {"date": time.strftime("%Y-%m-%d"), "small": options.small}
    print(about)
    if DEVICE == "cpu" and not options.small:
        raise SystemExit("a 7B model wants a GPU; --small runs anywhere")
    check()
    found = about | measure(options.small)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
