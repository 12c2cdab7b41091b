"""A whole file of prompts, answered by a model on this machine, by one process or by many.

Under torchrun each rank has a copy of the model and answers its share of the prompts; the first one
writes the output. With a reward model, the best of each prompt's n responses is chosen when all are
there: by then the language model has left the memory.
"""

import gc
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from janus_min.best_of_n import best, check_reward_model, load_reward_model, score
from janus_min.config import ModelConfig
from janus_min.device import compute_dtype, pick_device
from janus_min.directories import tensor_files
from janus_min.engine import ROW_TOKENS, generate
from janus_min.errors import UserError
from janus_min.files import hash_files
from janus_min.footprint import GIB, footprint, said
from janus_min.interrupt import StoppedError
from janus_min.loading import PRECISIONS, load_for_generation
from janus_min.outputs import Partial, Response, finish
from janus_min.parallel import Ranks, join
from janus_min.progress import Progress
from janus_min.prompt_files import Prompt, encode, make_request, read_prompts, require_ids
from janus_min.sampling import Completion, Request, Sampling, limits, size
from janus_min.tokenizer import Tokenizer

SCORED_TOKENS = 8192  # of a row of responses under the reward model


@dataclass(frozen=True)
class Job:
    """What is answered, by what, and where it goes."""

    model: Path
    input: Path
    output: Path
    sampling: Sampling
    n: int = 1
    seed: int = 0
    slots: int = 64
    precision: str | None = None
    reward_model: Path | None = None

    def settings(self) -> dict:
        """All that decides the output."""
        about = {"model": weights_name(self.model), "input": hash_files([self.input])[:16]}
        about |= {"n": self.n, "seed": self.seed, "precision": self.precision_name()}
        if self.reward_model:
            about["reward_model"] = weights_name(self.reward_model)
        return about | asdict(self.sampling)

    def precision_name(self) -> str:
        """In what it computes: the device's own precision, unless one is given."""
        own = compute_dtype(pick_device())
        return self.precision or next(name for name, d in PRECISIONS.items() if d == own)


def weights_name(directory: Path) -> str:
    """A model directory and when its weights were written: training anew makes it another one."""
    newest = max(path.stat().st_mtime for path in tensor_files(directory).values())
    written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(newest))
    return f"{directory.resolve()}, written {written}"


def answer_file(job: Job) -> None:
    """Answers all prompts of the input and writes the output.

    Raises StoppedError for Ctrl-C, whose line says that nothing is lost.
    """
    try:
        answer_on(join(), job)
    except KeyboardInterrupt:
        text = "\ninterrupted; what is finished is kept: the same command goes on"
        raise StoppedError(text, signal.SIGINT) from None


def answer_on(ranks: Ranks, job: Job) -> None:
    """The part of one rank in it."""
    with ranks.together():
        prompts, tokenizer = read_prompts(job.input), Tokenizer(job.model)
        require_ids(prompts, job.input, job.output)
        encoded = encode(prompts, tokenizer)
        if job.reward_model and ranks.first:
            check_scorer(job.reward_model, tokenizer)
        partial = Partial(job.output, job.settings(), ranks.rank)
    with ranks.together():
        partial.open()
        fill_in(job, ranks, partial, encoded)
    if job.reward_model:
        with ranks.together():  # all responses are on the disk, and nobody writes
            partial.read()
        require_all(job, partial, len(encoded))
        with ranks.together():
            reward(job, ranks, partial, encoded, tokenizer)
    with ranks.together():
        partial.close()
    with ranks.together():
        if ranks.first:
            partial.read()
            require_all(job, partial, len(encoded))
            records = make_records(job, prompts, partial, tokenizer)
            finish(job.output, records, [prompt.id for prompt in prompts])
            print("\n".join(summary(job, prompts, partial)))


def require_all(job: Job, partial: Partial, prompts: int) -> None:
    """Raises UserError if responses are missing that some rank has generated."""
    if len(partial.responses) < prompts * job.n:
        raise UserError(
            f"{len(partial.responses):,} of {prompts * job.n:,} responses are in "
            f"{job.output}.partial-*: all ranks must see the same folder"
        )


def check_scorer(directory: Path, tokenizer: Tokenizer) -> None:
    """Raises UserError for a reward model that cannot score this tokenizer's ids, or whose weights
    are damaged: before the hours in which responses are generated for it.
    """
    check_reward_model(directory, tokenizer)
    for name, path in tensor_files(directory).items():
        with safe_open(path, framework="pt") as file:
            total = file.get_tensor(name).sum(dtype=torch.float32)
        if not total.isfinite():
            raise UserError(f"{path}: {name} is not finite: the reward model is damaged")


def plan_file(job: Job) -> str:
    """What answering the input takes, as a line; the model's weights need not be there."""
    encoded = encode(read_prompts(job.input), Tokenizer(job.model))
    requests = [make_request(job.seed, ids, k) for ids in encoded for k in range(job.n)]
    return f"{len(requests):,} responses to {len(encoded):,} prompts; {predicted(job, requests)[1]}"


def own_share(ranks: Ranks, work: dict[int, int]) -> list[int]:
    """Those of the prompts that this rank takes: about as much of the work as the others take."""
    prompts = list(work)
    return [prompts[place] for place in ranks.deal(list(work.values())) if place is not None]


def fill_in(job: Job, ranks: Ranks, partial: Partial, encoded: list[list[int]]) -> None:
    """Generates the responses that are missing."""
    missing = {
        i: [sample for sample in range(job.n) if (i, sample) not in partial.responses]
        for i in range(len(encoded))
    }
    if there := len(partial.responses):
        print(f"{there:,} of {len(encoded) * job.n:,} responses are there already")
    longest = job.sampling.max_tokens
    work = {i: len(left) * (len(encoded[i]) + longest) for i, left in missing.items() if left}
    own = own_share(ranks, work)
    places = [(i, sample) for i in own for sample in missing[i]]
    if not places:
        return
    requests = [make_request(job.seed, encoded[i], sample) for i, sample in places]
    parts, text = predicted(job, requests)
    print(text)
    require_memory(parts)
    model, _ = load_for_generation(job.model, job.precision)
    progress = Progress(len(requests), "tokens", noun="response")
    done = 0

    def keep(index: int, completion: Completion) -> None:
        """Writes a response down as soon as it is finished."""
        nonlocal done
        done += 1
        partial.add(*places[index], Response(completion.ids, completion.stop))
        progress.update(done, len(completion.ids), "of this rank" if ranks.size > 1 else "")

    generate(model, requests, job.sampling, job.slots, on_done=keep)
    progress.close()


def predicted(job: Job, requests: list[Request]) -> tuple[dict[str, int], str]:
    """The memory that these requests will take: bytes by parts, and as a line."""
    config = ModelConfig.from_json(job.model / "config.json")
    slots, T = size(requests, limits(config, requests, job.sampling), job.slots)
    longest = max(len(request.prompt) for request in requests)
    row_tokens = max(longest, min(ROW_TOKENS, slots * longest))
    greedy = job.sampling.temperature == 0
    dtype = PRECISIONS[job.precision_name()]
    parts = footprint(config, dtype, slots, T, row_tokens, greedy)
    return parts, said(parts, slots, T)


def require_memory(parts: dict[str, int]) -> None:
    """Raises UserError if a GPU has less than that."""
    if torch.cuda.is_available() and (free := torch.cuda.mem_get_info()[0]) < sum(parts.values()):
        raise UserError(
            f"the GPU has {free / GIB:,.1f} GiB left; a smaller --batch-size or --max-tokens makes "
            "the cache smaller"
        )


def reward(
    job: Job, ranks: Ranks, partial: Partial, encoded: list[list[int]], tokenizer: Tokenizer
) -> None:
    """Computes the rewards that are missing."""
    work = {i: len(ids) for i, ids in enumerate(encoded) if i not in partial.rewards}
    own = own_share(ranks, work)
    if not own:
        return
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the language model's
    model = load_reward_model(job.reward_model, tokenizer, job.precision)
    progress = Progress(len(own), "responses", noun="prompt")
    for done, i in enumerate(own, start=1):
        responses = [partial.responses[i, sample] for sample in range(job.n)]
        if responses[0].stop == "context":  # there is nothing to choose from
            rewards = [None] * job.n
        else:
            [rewards] = score(model, [(encoded[i], [r.ids for r in responses])], SCORED_TOKENS)
        choose(rewards)  # says what is wrong with them
        partial.add_rewards(i, rewards)
        progress.update(done, job.n, "rewarded")
    progress.close()


def choose(rewards: list[float | None]) -> int | None:
    """The best one; None if all are too long for the reward model."""
    return None if all(reward is None for reward in rewards) else best(rewards)


# What is written and said


def make_records(
    job: Job, prompts: list[Prompt], partial: Partial, tokenizer: Tokenizer
) -> list[dict]:
    """The output's records, in the order of the input: one for each response, or with a reward
    model one for each prompt, which has the best response and all candidates.
    """
    settings = asdict(job.sampling) | {"seed": job.seed, "n": job.n}
    settings |= {"model": str(job.model), "precision": job.precision_name()}
    records = []
    for i, prompt in enumerate(prompts):
        candidates = []
        for sample in range(job.n):
            ids, stop = partial.responses[i, sample]
            candidates.append({"response": tokenizer.decode(ids), "stop": stop})
        base = prompt.record | {"line": prompt.line}
        if not job.reward_model:
            for sample, candidate in enumerate(candidates):
                records.append(base | {"sample": sample} | candidate | {"sampling": settings})
            continue
        rewards = partial.rewards[i]
        chosen = choose(rewards)
        for candidate, own in zip(candidates, rewards):
            candidate["reward"] = own
        record = base | {"sample": chosen or 0} | candidates[chosen or 0]
        record |= {"best": chosen, "candidates": candidates, "sampling": settings}
        records.append(record | {"reward_model": str(job.reward_model)})
    return records


def summary(job: Job, prompts: list[Prompt], partial: Partial) -> list[str]:
    """What became of it, for people."""
    stops = [response.stop for response in partial.responses.values()]
    cut, refused = stops.count("length"), stops.count("context")
    lines = [f"{len(stops):,} responses to {len(prompts):,} prompts in {job.output}"]
    if cut:
        lines.append(f"{cut:,} of {len(stops):,} cut at --max-tokens or by the context")
    if refused:
        lines.append(f"{refused:,} of {len(stops):,} empty, as their prompts fill the context")
    if job.n > 1 and not job.reward_model:
        lines.append(f"all {job.n} responses to each prompt are kept: --reward-model chooses one")
    if job.reward_model:
        lost = sum(choose(rewards) is None for rewards in partial.rewards.values())
        lines.append(f"the best of {job.n} by {job.reward_model}; all candidates are kept")
        if lost:
            text = "prompts without a reward, as they are too long"
            lines.append(f"{text}: {lost:,}; the first stands")
    return lines
