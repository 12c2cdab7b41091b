"""The finished collection as training files, in the columns of the published data sets.

    sft.jsonl         all system messages of all instructions (Multifaceted-Collection)
    sft-small.jsonl   one of the system messages of each instruction (…-small, for Janus*)
    dpo.jsonl         system, prompt, chosen, rejected (…-DPO)
    orpo.jsonl        the same pairs, chosen and rejected as chat messages (…-ORPO)
    rm.jsonl          the same pairs, system message and instruction in one `input` (…-RM)
    rm-test.jsonl     pairs kept out of rm.jsonl

A pair is made as in the paper: of each instruction one system message with its own response as the
chosen one, and the response to another of its system messages as the rejected one. Which ones, and
which one is in the small collection, the paper does not say; here they are drawn at random, with a
seed, for each instruction by itself. So are the pairs of the test, 315 of 64,900 in the paper.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from janus_min.collection import grouped
from janus_min.files import Writer
from janus_min.formats import read_jsonl

SOURCES = ("main_source", "original_source")
SFT = (*SOURCES, "preference_set", "system", "prompt", "output")
FILES = ("sft", "sft-small", "dpo", "orpo", "rm", "rm-test")
TEST_SHARE = 315 / 64_900  # of the pairs


def pair(group: list[dict], seed: int) -> tuple[dict, dict] | str:
    """The records whose responses are chosen and rejected for an instruction, or why there are
    none.
    """
    if len(group) < 2:
        return "only one response"
    random = np.random.default_rng([seed, group[0]["id"], 1])
    first, *others = (group[i] for i in random.permutation(len(group)))
    keys = ("system", "output")
    other = next((o for o in others if all(o[key] != first[key] for key in keys)), None)
    return (first, other) if other else "system messages or responses are the same"


def small(group: list[dict], seed: int) -> dict:
    """The record of an instruction that the small collection has."""
    return group[np.random.default_rng([seed, group[0]["id"], 2]).integers(len(group))]


def dpo_row(chosen: dict, rejected: dict) -> dict:
    """A pair with its responses as text."""
    row = {key: chosen[key] for key in (*SOURCES, "system", "prompt")}
    return row | {"chosen": chosen["output"], "rejected": rejected["output"]}


def orpo_row(chosen: dict, rejected: dict) -> dict:
    """A pair with its responses as the last of two chat messages."""
    row = dpo_row(chosen, rejected)
    question = {"content": row["prompt"], "role": "user"}
    for key in ("chosen", "rejected"):
        row[key] = [question, {"content": row[key], "role": "assistant"}]
    return row


def rm_row(chosen: dict, rejected: dict) -> dict:
    """A pair whose prompt is one text."""
    row = dpo_row(chosen, rejected)
    sources = {key: row[key] for key in SOURCES}
    texts = {key: row[key] for key in ("chosen", "rejected")}
    return sources | {"input": f"{row['system']}\n{row['prompt']}"} | texts


def test_instructions(ids: list[int], share: float, seed: int) -> set[int]:
    """The instructions whose pairs are kept for the test: this share of them, but one at least."""
    count = min(len(ids), max(1, round(share * len(ids)))) if share else 0
    return set(np.random.default_rng([seed, 3]).permutation(ids)[:count].tolist())


def export(responses: Path, folder: Path, share: float, seed: int) -> Counter:
    """Writes all files into `folder`. Returns the rows of each, and the instructions without a
    pair by reason.
    """
    counts: Counter = Counter()
    paired = [
        group[0]["id"]
        for group in grouped(record for _, record in read_jsonl(responses))
        if not isinstance(pair(group, seed), str)
    ]
    kept_out = test_instructions(paired, share, seed)
    writers = {name: Writer(folder / f"{name}.jsonl") for name in FILES}
    for group in grouped(record for _, record in read_jsonl(responses)):
        for record in group:
            writers["sft"].add({key: record[key] for key in SFT})
        writers["sft-small"].add({key: small(group, seed)[key] for key in SFT})
        found = pair(group, seed)
        if isinstance(found, str):
            counts[f"no pair: {found}"] += 1
            continue
        writers["dpo"].add(dpo_row(*found))
        writers["orpo"].add(orpo_row(*found))
        writers["rm-test" if group[0]["id"] in kept_out else "rm"].add(rm_row(*found))
    for name, writer in writers.items():
        writer.close()
        counts[name] = writer.count
    return counts
