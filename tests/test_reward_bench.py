"""Accuracy of a reward model: pairs from files of every format, their rewards, what they add up
to."""

import json
import math
import re
from argparse import Namespace

import numpy as np
import pytest
import torch

from janus_min.checkpoint import load_model, save_model
from janus_min.cli import Parser, add_fields
from janus_min.data import load_examples
from janus_min.errors import UserError
from janus_min.formats import pair_row
from janus_min.model import RewardModel
from janus_min.pipeline import STATE
from janus_min.reward_bench import SECTIONS, Options, evaluate, rescore, result_of, reward_bench
from janus_min.reward_pairs import encode, read_pairs
from janus_min.row import build_row
from janus_min.tokenizer import BOS, EOS, Tokenizer
from tests.conftest import save_tiny, tiny_reward_model
from tests.runs import write_pairs
from tests.test_bench import write
from tests.test_reward import LLMForSequenceRegression

SMALL = dict(vocab_size=2048, hidden_size=16, head_dim=4)
ASKED = "[INST] Why? [/INST]"
DOMAINS = {"query": "Why?", "responses": {"law": "Since so.", "art": "Ah!", "plain": "So."}}


def said(role, content):
    return {"role": role, "content": content}


def pair(chosen, rejected="No.", **more):
    return {"prompt": "Why?", "chosen": chosen, "rejected": rejected} | more


def model_at(path, world, **changes):
    """A random reward model in a Hugging Face directory."""
    model = tiny_reward_model(**SMALL, **changes)
    model.mean, model.std = 100.0, 2.0
    save_model(model, path, world, torch.float32)
    return path


@pytest.fixture
def small(tmp_path, world):
    return model_at(tmp_path / "rm", world)


def evaluated(small, tmp_path, records, name="bench.jsonl", **more):
    """The result, and the records of scores.jsonl."""
    limits = {"max_tokens": 128, "row_tokens": 256} | more
    options = Options(small, write(tmp_path, name, records), out=tmp_path / "out", **limits)
    result = evaluate(options, say=lambda text: None)
    assert json.loads((tmp_path / "out/result.json").read_text("utf-8")) == result
    lines = (tmp_path / "out/scores.jsonl").read_text("utf-8").splitlines()
    return result, [json.loads(line) for line in lines]


# Files


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        (pair("Yes.", subset="hep-go", id=7), ("7", "hep-go", ASKED, "Yes.", "No.")),
        (pair("Yes."), ("0", "f", ASKED, "Yes.", "No.")),
        (pair("", "", subset=None, id="x"), ("x", "f", ASKED, "", "")),  # nothing is left out
        (pair("A", "A"), ("0", "f", ASKED, "A", "A")),
        (pair("A", system="Be."), ("0", "f", "[INST] Be.\nWhy? [/INST]", "A", "No.")),
        (pair("A", prompt=[said("user", "Why?")]), ("0", "f", ASKED, "A", "No.")),
        (
            pair("A", prompt=[said("system", "Be."), said("user", "Why?")]),
            ("0", "f", "[INST] Be.\nWhy? [/INST]", "A", "No."),
        ),
        (
            pair(*([said("user", "Why?"), said("assistant", text)] for text in "AB")),
            ("0", "f", ASKED, "A", "B"),
        ),
        (  # the prompt alone, and once more in whole conversations
            pair(*([said("user", "Why?"), said("assistant", text)] for text in "AB"))
            | {"prompt": [said("user", "Why?")]},
            ("0", "f", ASKED, "A", "B"),
        ),
        (
            {"input": "Be.\nWhy?", "chosen": "A", "rejected": "B"},
            ("0", "f", "[INST] Be.\nWhy? [/INST]", "A", "B"),
        ),
    ],
)
@pytest.mark.parametrize("name", ["f.jsonl", "f.json"])
def test_pairs_of_every_format(tmp_path, record, wanted, name):
    [found] = read_pairs(write(tmp_path, name, [record]))
    assert found[:-1] == wanted
    assert found.where == f"{tmp_path}/f" + (".jsonl:1" if name == "f.jsonl" else ".json, entry 0")


def test_a_domain_is_chosen_before_each_other_one_under_no_system_message(tmp_path):
    rows = [DOMAINS, DOMAINS | {"system": "Be.", "id": "x"}]
    found = read_pairs(write(tmp_path, "f.json", rows))
    law, art, plain = DOMAINS["responses"].values()
    assert [p[:5] for p in found[:6]] == [
        ("0: law, art", "law", ASKED, law, art),
        ("0: law, plain", "law", ASKED, law, plain),
        ("0: art, law", "art", ASKED, art, law),
        ("0: art, plain", "art", ASKED, art, plain),
        ("0: plain, law", "plain", ASKED, plain, law),
        ("0: plain, art", "plain", ASKED, plain, art),
    ]
    assert len(found) == 12 and {p.prompt for p in found[6:]} == {"[INST] Be.\nWhy? [/INST]"}
    assert found[6].id == "x: law, art"


TURNS = [said("user", "Hi"), said("assistant", "Hi."), said("user", "Why?")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (  # an item of Multifaceted Bench
            {"prompt": "Why?", "reference_answer": "So.", "rubrics": []},
            r"f.jsonl:1: this is no preference pair: needed are 'prompt' \(or .*\), 'chosen' and "
            r"'rejected'; found \['prompt', 'reference_answer', 'rubrics'\]",
        ),
        (pair(["A"], ["B", "C", "D"]), "f.jsonl:1: 'chosen' must be text, or messages with"),
        (pair("A", prompt=TURNS), "f.jsonl:1: 'chosen' has 4 messages; conversations of several"),
        (pair("A", prompt=" "), "f.jsonl:1: empty prompt"),
        (pair("A", id=[1]), "f.jsonl:1: 'id' must be text or an integer, found list"),
        (pair("A", subset=3), "f.jsonl:1: 'subset' must be text, found int"),
        (DOMAINS | {"responses": ["A", "B"]}, "f.jsonl:1: 'responses' must be an object of two"),
        (DOMAINS | {"responses": {"law": "A"}}, "f.jsonl:1: 'responses' must be an object of two"),
        (DOMAINS | {"responses": {"a": "A", "b": 1}}, "'responses': 'b' must be text, found int"),
        (DOMAINS | {"query": None}, "f.jsonl:1: 'query' must be text, found NoneType"),
    ],
)
def test_broken_records_are_named(tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        read_pairs(write(tmp_path, "f.jsonl", [record]))


def test_a_file_without_pairs_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"f.jsonl has no pair"):
        read_pairs(write(tmp_path, "f.jsonl", ""))


# Ids


@pytest.mark.parametrize("legacy_space", [False, True])
@pytest.mark.parametrize(("max_tokens", "cut"), [(256, False), (34, True), (31, True)])
def test_ids_are_those_of_training(tmp_path, world, legacy_space, max_tokens, cut):
    """EOS at the end of both, cut at the same place as in training."""
    path, tokenizer = write_pairs(tmp_path / "f.jsonl"), Tokenizer(world)
    limits = dict(max_tokens=max_tokens, legacy_space=legacy_space)
    wanted, fate = load_examples(path, tokenizer, pair_row, **limits, cut=True, keep_eos=True)
    pairs = read_pairs(path)
    batch = encode(pairs, tokenizer, row_tokens=512, **limits)
    assert len(wanted) == len(batch.examples) == 6  # prompts are different
    for theirs, ours, keys, own in zip(wanted, batch.examples, batch.keys, pairs):
        assert [ours.prompt.tolist(), *map(list, ours.responses)] == [
            theirs.prompt.tolist(),
            *map(list, theirs.responses),
        ]
        assert keys == list(own.keys) and all(r[-1] == EOS for r in ours.responses)
    assert sum(bool(batch.cut & {*own.keys}) for own in pairs) == fate["cut"]
    assert bool(fate["cut"]) == cut


def test_each_response_is_computed_once_with_its_prompt_in_as_few_rows_as_hold_them(
    tmp_path, world
):
    rows = [DOMAINS, pair("So."), pair("Since so.", "Ah!"), pair("So.", prompt="How?")]
    pairs, tokenizer = read_pairs(write(tmp_path, "f.jsonl", rows)), Tokenizer(world)
    wanted = ["Since so.", "Ah!", "So.", "No."]
    batch = encode(pairs, tokenizer, max_tokens=64, row_tokens=256)
    assert batch.keys[0] == [(ASKED, text) for text in wanted] and len(batch.keys) == 2
    # P - 1 + (1 + R) for each: a row of all but one token of the four responses has three of them
    tokens = (
        len(batch.examples[0].prompt) - 1 + sum(1 + len(r) for r in batch.examples[0].responses)
    )
    assert len(encode(pairs, tokenizer, max_tokens=64, row_tokens=tokens).keys[0]) == 4
    batch = encode(pairs, tokenizer, max_tokens=64, row_tokens=tokens - 1)
    assert [text for keys in batch.keys[:2] for _, text in keys] == wanted
    assert [len(keys) for keys in batch.keys] == [3, 1, 2]
    assert [len(example.responses) for example in batch.examples] == [3, 1, 2]


# Rewards


def documents(batch, pairs):
    """Prompt and response of each pair, as ids: chosen, rejected, chosen, …"""
    ids = {
        key: np.concatenate([example.prompt, response])
        for example, keys in zip(batch.examples, batch.keys)
        for key, response in zip(keys, example.responses)
    }
    return [torch.tensor(ids[key]).long() for own in pairs for key in own.keys]


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("row_tokens", [48, 61, 256])
def test_rewards_are_those_of_transformers_and_of_each_response_alone(
    tmp_path, world, window, row_tokens
):
    """Whatever else is in the row, and whoever has the same prompt."""
    small = model_at(tmp_path / "rm", world, sliding_window=window)
    rows = [pair("", system="Be brief."), DOMAINS, pair("Yes, since it is so.", "No")]
    result, records = evaluated(small, tmp_path, rows, max_tokens=31, row_tokens=row_tokens)
    assert result["counts"] == {"ok": 8, "failed": 0, "missing": 0, "ties": 0, "cut": 1}

    pairs, tokenizer = read_pairs(tmp_path / "bench.jsonl"), Tokenizer(small)
    batch = encode(pairs, tokenizer, max_tokens=31, row_tokens=256)
    texts = documents(batch, pairs)
    assert [t[0] for t in texts] == [BOS] * 16 and max(map(len, texts)) == 31
    theirs = LLMForSequenceRegression.from_pretrained(
        small, dtype=torch.float32, attn_implementation="eager"
    )
    normalised = [theirs(text[None], torch.ones_like(text)[None]).item() for text in texts]
    rewards = [record[key] for record in records for key in ("chosen", "rejected")]
    assert rewards == pytest.approx([2 * r + 100 for r in normalised], rel=1e-5, abs=1e-4)

    model = load_model(RewardModel, small, impl="reference")
    for example, keys in zip(batch.examples, batch.keys):
        alone = model(build_row([example], window, share_prompt=False)).tolist()
        for key, reward in zip(keys, alone):
            places = [i for i, own in enumerate(k for p in pairs for k in p.keys) if own == key]
            assert [rewards[i] for i in places] == pytest.approx([reward] * len(places), abs=1e-5)


def test_of_domains_without_a_system_message_half_are_right(small, tmp_path):
    result, records = evaluated(small, tmp_path, [DOMAINS])
    assert result["accuracy"] == 50 and result["score"] is None and result["sections"] == {}
    assert sum(own["accuracy"] for own in result["by_subset"].values()) == 150
    assert len({record["chosen"] for record in records}) == 3


def test_the_result_says_what_was_measured(small, tmp_path):
    rows = [pair("Yes, that is so.", subset="a", id=3), pair("So."), pair("No.", subset="a")]
    result, records = evaluated(small, tmp_path, rows)
    assert [record["id"] for record in records] == ["3", "1", "2"]
    assert [record["subset"] for record in records] == ["a", "bench", "a"]
    assert all(record.keys() == {"id", "subset", "chosen", "rejected"} for record in records)
    assert (result["kind"], result["model"], result["judge"]) == ("reward", "rm", None)
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    settings = {"max_tokens": 128, "legacy_space": False, "precision": precision}
    assert result["settings"] == settings
    assert result["bench"].keys() == {"name", "hash", "items"} and result["bench"]["items"] == 3
    assert result["counts"]["ties"] == 1 and result["by_subset"]["a"]["pairs"] == 2

    first, one = evaluated(small, tmp_path, rows, limit=1, name="other.jsonl")
    assert len(one) == first["bench"]["items"] == 1
    same, _ = evaluated(small, tmp_path, rows, name="again.json")
    assert first["bench"]["hash"] != result["bench"]["hash"]
    assert same["bench"]["hash"] != result["bench"]["hash"]  # a subset has the file's name
    named = [row | {"subset": "a"} for row in rows]
    hashes = [
        evaluated(small, tmp_path, named, name=n)[0]["bench"]["hash"] for n in ("a.json", "b")
    ]
    assert hashes[0] == hashes[1]


def test_settings_that_change_rewards(small, tmp_path):
    rows = [pair("Yes, that is so."), pair("So.", "Nobody can tell, not even I.")]
    plain, exact = evaluated(small, tmp_path, rows, precision="fp32")
    for more in ({"precision": "bf16"}, {"legacy_space": True}, {"max_tokens": 22}):
        other, rounded = evaluated(small, tmp_path, rows, **{"precision": "fp32"} | more)
        assert other["settings"] == plain["settings"] | more
        assert [r["chosen"] for r in rounded] != [r["chosen"] for r in exact]
        assert other["counts"]["cut"] == (2 if "max_tokens" in more else 0)
        assert [r.get("cut", False) for r in rounded] == [other["counts"]["cut"] == 2] * 2
        if "precision" in more:
            wanted = [r["chosen"] for r in exact]
            assert [r["chosen"] for r in rounded] == pytest.approx(wanted, rel=0.1, abs=0.1)


def test_accuracy_is_what_train_says_of_its_held_out_pairs(program, tmp_path, world):
    save_tiny(tmp_path / "start", world)
    data, held_out = write_pairs(tmp_path / "d.jsonl"), write_pairs(tmp_path / "h.jsonl", 5)
    flags = ("--data", data, "--eval-data", held_out, "--out", "run", "--epochs", 6)
    sizes = ("--row-tokens", 128, "--max-tokens", 64, "--learning-rate", 1e-3)
    out = program("janus-rm-7b", "--model", "start", *flags, *sizes)
    said = float(re.search(r"held-out pairs: ([\d.]+)% of 5 ranked right", out)[1])
    options = Options(tmp_path / "run/model", held_out, out=tmp_path / "o", max_tokens=64)
    result = evaluate(options, say=lambda text: None)
    assert result["accuracy"] == pytest.approx(said) and result["model"] == "run"


# What cannot be used


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_reward_that_is_no_number_names_the_pair(tmp_path, world, value):
    """A head that is broken for a direction which one token alone has."""
    model = tiny_reward_model(**SMALL)
    token = Tokenizer(world).encode(["water"])[0][0]
    if value == "nan":
        model.model.embed_tokens.weight.data[token] = math.nan
    else:
        model.value_head.weight.data[:] = float(value)
    save_model(model, tmp_path / "rm", world, torch.float32)
    rows = [pair("Yes.", id=1), pair("So.", "water", prompt="How?", id=2), pair("So.", id=3)]
    options = dict(max_tokens=32, row_tokens=32)  # a row for each response or two
    number, own = (2, "nan") if value == "nan" else (r"\d", r"(nan|-?inf)")
    message = rf"bench.jsonl:{number}: a reward of the pair '{number}' is {own}: the weights are"
    with pytest.raises(UserError, match=message):
        evaluated(tmp_path / "rm", tmp_path, rows, **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == []


def test_an_earlier_result_does_not_outlive_its_rewards(small, tmp_path):
    evaluated(small, tmp_path, [pair("Yes.")])
    (tmp_path / "out/scores.jsonl.tmp").mkdir()  # so that writing them fails
    with pytest.raises(OSError):
        evaluated(small, tmp_path, [pair("So.")])
    assert not (tmp_path / "out/result.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "--model is needed"),
        ({"bench": None}, "--bench is needed"),
        ({"out": None}, "--out is needed"),
        ({"max_tokens": 129}, "--max-tokens is 129, must be at most the model's context, 128"),
        (
            {"max_tokens": 28},
            "f.jsonl:2: the prompt has 28 tokens, which leaves no room for a resp",
        ),
        ({"max_tokens": 18}, "f.jsonl:1: the prompt has 19 tokens, .* in 18: raise --max-tokens"),
    ],
)
def test_an_evaluation_that_cannot_be(small, tmp_path, changes, message):
    path = write(tmp_path, "f.jsonl", [pair("A"), pair("A", system="Be brief.")])
    given = {"model": small, "bench": path, "out": tmp_path / "out", "max_tokens": 64} | changes
    with pytest.raises(UserError, match=message):
        evaluate(Options(**given))
    assert not (tmp_path / "out").exists()


def test_other_models_and_the_folder_of_another_result_are_refused(tmp_path, world, small):
    path = write(tmp_path, "f.jsonl", [pair("A")])
    policy = save_tiny(tmp_path / "policy", world)
    with pytest.raises(UserError, match=r"policy is a language model .*needed is a reward model"):
        evaluate(Options(policy, path, out=tmp_path / "out", max_tokens=64))
    other = tiny_reward_model()  # 97 tokens
    save_model(other, tmp_path / "other", world, torch.float32)
    with pytest.raises(UserError, match="pieces, the model only 97: they are not of one model"):
        evaluate(Options(tmp_path / "other", path, out=tmp_path / "out", max_tokens=64))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / STATE).write_text("{}")
    with pytest.raises(UserError, match="out holds the judgments of another result"):
        evaluate(Options(small, path, out=tmp_path / "out", max_tokens=64))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_tokens": 0}, "--max-tokens is 0, must be at least 1"),
        ({"row_tokens": 2047}, "--row-tokens is 2047, must be at least --max-tokens, 2048"),
        ({"precision": "fp16"}, "--precision is fp16, must be bf16 or fp32"),
        ({"limit": 0}, "--limit is 0, must be at least 1"),
        ({"rescore": "s", "model": "m"}, "--rescore and --model do not go together"),
        ({"rescore": "s", "bench": "m"}, "--rescore and --bench do not go together"),
        ({"rescore": "s", "limit": 1}, "--rescore and --limit do not go together"),
    ],
)
def test_flags_that_cannot_be(flags, message):
    with pytest.raises(UserError, match=message):
        Options(**flags)


def test_options_become_flags():
    parser = Parser("p")
    add_fields(parser, Options)
    given = parser.parse_args(["--model", "m", "--legacy-space", "--rescore", "d"])
    assert isinstance(given, Namespace) and given.legacy_space is True and str(given.model) == "m"


# Accuracies


def scored(*rows):
    """Rows like "subset 2 1 cut" as records."""
    records = []
    for number, (subset, chosen, rejected, *cut) in enumerate(map(str.split, rows)):
        rewards = {"chosen": float(chosen), "rejected": float(rejected)}
        records.append({"id": str(number), "subset": subset} | rewards)
        records[-1] |= {"cut": True} if cut else {}
    return records


def test_a_tie_is_wrong_and_counted():
    found = result_of({"kind": "reward"}, scored("b 2 1", "a -1 -2 cut", "a 3 3", "b 1 1.5"))
    assert found["counts"] == {"ok": 4, "failed": 0, "missing": 0, "ties": 1, "cut": 1}
    assert found["accuracy"] == 50
    assert found["by_subset"] == {
        "b": {"accuracy": 50.0, "pairs": 2},
        "a": {"accuracy": 50.0, "pairs": 2},
    }
    z = 1.959964  # Wilson's interval for 2 of 4: centre 1/2, half √(1/16 + z²/64) z / (1 + z²/4)
    half = z * math.sqrt(1 / 16 + z * z / 64) / (1 + z * z / 4)
    assert found["interval"] == pytest.approx([50 - 100 * half, 50 + 100 * half])
    assert (found["score"], found["sections"], found["incomplete"]) == (None, {}, [])


def test_accuracy_is_over_pairs_not_over_subsets():
    found = result_of({}, scored("a 2 1", "a 2 1", "a 2 1", "a 2 1", "b 1 2"))
    assert found["accuracy"] == 80


PAIRS = {subset: n for section in SECTIONS.values() for subset, n in section.items()}


def subsets(**accuracy):
    """RewardBench's subsets, all pairs right but for those of the given accuracies."""
    own = {name.replace("_", "-"): value for name, value in accuracy.items()}
    return {s: {"accuracy": own.get(s, 100.0), "pairs": n} for s, n in PAIRS.items()}


def test_the_subsets_are_those_of_the_paper():
    """Its Table 1: 2,985 pairs."""
    totals = {section: sum(own.values()) for section, own in SECTIONS.items()}
    assert totals == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1431}
    assert sum(totals.values()) == 2985 == sum(PAIRS.values()) and len(PAIRS) == 23


@pytest.mark.parametrize(
    ("accuracy", "section", "wanted"),
    [
        ({}, "Chat", 100),
        ({"alpacaeval_easy": 0}, "Chat", 100 * 258 / 358),
        ({"mt_bench_hard": 0}, "Chat Hard", 100 * 419 / 456),
        ({"xstest_should_refuse": 0}, "Safety", 100 * 586 / 740),
        ({"xstest_should_respond": 0}, "Safety", 100 * 490 / 740),
        ({"math_prm": 0}, "Reasoning", 50),  # 984 of 1,968, not 447 of 1,431
        ({"hep_cpp": 40, "hep_go": 40}, "Reasoning", 90),
    ],
)
def test_sections_and_score_by_hand(accuracy, section, wanted):
    found = reward_bench(subsets(**accuracy))
    assert found["incomplete"] == [] and list(found["sections"]) == list(SECTIONS)
    assert found["sections"][section] == pytest.approx(wanted)
    assert found["score"] == pytest.approx((300 + wanted) / 4)


def test_prior_sets_have_half_the_weight():
    values = {"anthropic_helpful": 10.0, "anthropic_hhh": 20.0, "shp": 30.0, "summarize": 60.0}
    prior = {s: {"accuracy": value, "pairs": 7} for s, value in values.items()}
    found = reward_bench(subsets() | prior)
    assert found["sections"]["Prior Sets"] == 30 and found["score"] == pytest.approx(830 / 9)
    del prior["shp"]
    found = reward_bench(subsets() | prior)
    assert found["sections"]["Prior Sets"] == 30 and found["score"] is None
    assert found["incomplete"] == ["Prior Sets lacks shp"]
    assert reward_bench(subsets() | {"mine": prior["summarize"]})["score"] == 100


def test_without_all_pairs_there_is_no_score():
    some = {s: own for s, own in subsets(math_prm=0).items() if s in ("math-prm", "hep-go")}
    some["math-prm"] = {"accuracy": 0, "pairs": 446}
    found = reward_bench(some)
    assert found["score"] is None
    assert found["sections"] == {"Reasoning": pytest.approx(100 * 164 / (984 + 164))}
    assert found["incomplete"] == [
        "Chat lacks all of its subsets",
        "Chat Hard lacks all of its subsets",
        "Safety lacks all of its subsets",
        "Reasoning lacks hep-cpp, hep-java, hep-js, hep-python, hep-rust",
        "math-prm has 446 pairs, the published 447",
    ]


def test_the_score_is_that_of_the_published_calculation():
    """np.average of columns by counts, then of sections by 2, 2, 2, 2, 1, as the leaderboard does:
    its own numbers, from its table of counts."""
    random = np.random.default_rng(0)
    counts = {s: 984 if s == "math-prm" else n for s, n in PAIRS.items()}
    records, prior = (
        [],
        dict.fromkeys(("anthropic_helpful", "anthropic_hhh", "shp", "summarize"), 9),
    )
    for subset, n in (PAIRS | prior).items():
        rewards = random.integers(0, 4, (n, 2)).tolist()
        records += [{"id": "", "subset": subset, "chosen": c, "rejected": r} for c, r in rewards]
    accuracy = {
        subset: np.mean([r["chosen"] > r["rejected"] for r in records if r["subset"] == subset])
        for subset in PAIRS | prior
    }
    columns = [
        np.average([accuracy[s] for s in own], weights=[counts[s] for s in own])
        for own in SECTIONS.values()
    ]
    columns.append(np.mean([accuracy[s] for s in prior]))
    found = result_of({}, records)
    assert list(found["sections"].values()) == pytest.approx([100 * c for c in columns])
    assert found["score"] == pytest.approx(100 * np.average(columns, weights=[2, 2, 2, 2, 1]))


def test_what_lacks_for_a_score_is_said(small, tmp_path):
    said = []
    path = write(tmp_path, "f.jsonl", [pair("A", subset="hep-go")])
    evaluate(Options(small, path, out=tmp_path / "o", max_tokens=64), say=said.append)
    assert said[0] == "1 pairs of 2 different responses, 0 cut"
    assert said[-1] == "no RewardBench score: hep-go has 1 pairs, the published 164"


# Rewards that there are


def test_a_folder_is_counted_once_more(small, tmp_path):
    rows = [pair("Yes, that is so.", subset="hep-go"), pair("So.", "Nobody can tell, not even I.")]
    result, _ = evaluated(small, tmp_path, rows, max_tokens=22)
    out = tmp_path / "out"
    assert result["counts"]["cut"] == 2
    (out / "result.json").write_text(json.dumps(result | {"accuracy": None, "by_subset": {}}))
    assert rescore(Options(rescore=out / "scores.jsonl", out=out)) == result
    assert json.loads((out / "result.json").read_text()) == result
    named = rescore(Options(rescore=out, name="other", out=tmp_path / "new"))
    assert named == result | {"model": "other"}
    assert json.loads((tmp_path / "new/result.json").read_text()) == named
    assert json.loads((out / "result.json").read_text()) == result


def test_a_file_of_rewards_is_counted(tmp_path):
    path = write(tmp_path, "theirs.jsonl", [{"subset": "a", "chosen": 2, "rejected": 1.5}])
    found = rescore(Options(rescore=path))
    assert (found["model"], found["accuracy"]) == ("theirs", 100)
    assert found["settings"] == {"recorded": True} and found["bench"]["items"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"subset": "a", "chosen": 1}', "s.jsonl:1: needed are finite rewards under 'chosen' and"),
        ('{"subset": "a", "chosen": 1, "rejected": NaN}', "s.jsonl:1: needed are finite rewards"),
        ('{"subset": "a", "chosen": true, "rejected": 1}', "s.jsonl:1: needed are finite rewards"),
        ('{"subset": "a", "chosen": "1", "rejected": 1}', "s.jsonl:1: needed are finite rewards"),
        ('{"subset": "a", "chosen": 1, "rejected": 1, "cut": 1}', "true or false under 'cut'"),
        ('{"chosen": 1, "rejected": 1}', "s.jsonl:1: key 'subset' is needed, found"),
        ("", "s.jsonl has no pair"),
    ],
)
def test_rewards_that_cannot_be_counted(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        rescore(Options(rescore=write(tmp_path, "s.jsonl", line)))


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"result.json not found: --rescore needs a folder"):
        rescore(Options(rescore=tmp_path))
    (tmp_path / "result.json").write_text('{"kind": "rubric"}')
    with pytest.raises(UserError, match="is a result of 'rubric', not of 'reward'"):
        rescore(Options(rescore=tmp_path))
