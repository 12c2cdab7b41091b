"""Files to examples: what is encoded, dropped, cut and counted."""

import pytest

from janus_min.chat import encode_prompts
from janus_min.data import load_examples, reasons
from janus_min.errors import UserError
from janus_min.formats import pair_row, reward_row, sft_row
from janus_min.row import build_row
from tests import trl_losses
from tests.test_formats import GOOD, HH, PAIR, write


@pytest.fixture
def load(tmp_path, mistral_tokenizer):
    def load(*lines, parse=sft_row, max_tokens=100, **settings):
        path = write(tmp_path, *lines)
        return load_examples(path, mistral_tokenizer, parse, max_tokens=max_tokens, **settings)

    return load


def test_examples_are_prompt_and_response(load, mistral_tokenizer):
    examples, fate = load(GOOD, b"", {"instruction": "What is rain?", "output": "Water."})
    prompts = encode_prompts(
        mistral_tokenizer, [("Be brief.", "What is rain?"), (None, "What is rain?")]
    )
    assert [example.prompt.tolist() for example in examples] == prompts
    for example in examples:
        [response] = example.responses
        assert mistral_tokenizer.decode(response[:-1]) == "Water."
        assert response[-1] == 2 and response.tolist().count(2) == 1
    assert not fate and [example.source[-2:] for example in examples] == [":1", ":3"]


def test_pairs_have_one_prompt_and_the_responses_of_sft(load):
    """The official DPO would have joined texts, and trained another first token than SFT."""
    [[pair], _], [[first], _], [[second], _] = (
        load(PAIR, parse=pair_row),
        load(GOOD),
        load(GOOD | {"output": "It is cold."}),
    )
    assert pair.prompt.tolist() == first.prompt.tolist()
    assert [r.tolist() for r in pair.responses] == [
        first.responses[0].tolist(), second.responses[0].tolist()
    ]  # fmt: skip


def test_plain_text_is_trained_whole(load, mistral_tokenizer):
    [example], _ = load({"text": "Rain is water."})
    assert example.prompt.tolist() == [1]
    assert mistral_tokenizer.decode(example.responses[0][:-1]) == "Rain is water."
    assert (build_row([example], None).targets >= 0).sum() == len(example.responses[0])


def test_unusable_rows_are_dropped_and_counted(load):
    long = GOOD | {"prompt": "word " * 200}
    examples, fate = load(GOOD, GOOD | {"output": " \n"}, GOOD | {"prompt": ""}, long, long)
    assert len(examples) == 1
    assert fate == {"empty response": 1, "empty prompt": 1, "longer than 100 tokens": 2}
    assert reasons(fate) == "1 empty response, 1 empty prompt, 2 longer than 100 tokens"


def test_unusable_pairs_are_dropped_and_counted(load):
    """A side without a token would train nothing, equal sides ln 2 forever."""
    pairs = [
        PAIR,
        PAIR | {"rejected": "Water."},
        PAIR | {"rejected": "\n"},
        PAIR | {"rejected": "word " * 100},
    ]
    examples, fate = load(*pairs, parse=pair_row)
    assert len(examples) == 1 and fate == {
        "chosen equals rejected": 1, "empty response": 1, "longer than 100 tokens": 1
    }  # fmt: skip


def test_an_example_may_fill_its_room_exactly_but_no_more(load):
    [example], _ = load(GOOD)
    length = len(example.prompt) + len(example.responses[0])
    assert len(load(GOOD, max_tokens=length)[0]) == 1
    with pytest.raises(UserError, match=r"no usable example left \(1 longer than \d+ tokens\)"):
        load(GOOD, max_tokens=length - 1)


def test_cutting_leaves_the_prompt_whole_and_takes_the_responses_end(load):
    [whole], _ = load(PAIR | {"rejected": "word " * 100}, parse=pair_row, max_tokens=200)
    room = len(whole.prompt) + 20
    [pair], fate = load(
        PAIR | {"rejected": "word " * 100}, parse=pair_row, max_tokens=room, cut=True
    )
    assert fate == {"cut": 1} and reasons(fate) == ""
    assert pair.prompt.tolist() == whole.prompt.tolist()
    assert pair.responses[0].tolist() == whole.responses[0].tolist()  # short enough, EOS and all
    assert pair.responses[1].tolist() == whole.responses[1][:20].tolist()
    assert 2 not in pair.responses[1]  # what is cut off has not ended
    [pair], _ = load(
        PAIR | {"rejected": "word " * 100}, parse=pair_row, max_tokens=room, cut=True, keep_eos=True
    )
    assert pair.responses[1][:-1].tolist() == whole.responses[1][:19].tolist()
    assert pair.responses[1][-1] == 2  # a reward needs an end to be read at


def test_what_cutting_makes_equal_or_empty_is_dropped(load):
    long = PAIR | {"chosen": "word " * 100, "rejected": "word " * 99 + "end"}
    [pair], _ = load(PAIR, parse=pair_row)
    P = len(pair.prompt)
    with pytest.raises(UserError, match="1 chosen equals rejected"):
        load(long, parse=pair_row, max_tokens=P + 20, cut=True)
    with pytest.raises(UserError, match=f"1 longer than {P} tokens"):
        load(long, parse=pair_row, max_tokens=P, cut=True)


def test_a_response_is_cut_by_its_own_prompt_alone(load):
    """A prompt of 100 tokens leaves 924 of 1,024 to a response of 1,000, whatever the other
    response; older TRLs left `max_length − longer response`, 24. Today's TRL does as we do."""
    prompt, long, short = "a " * 91 + "b", "word " * 999, "Water."
    row = {"prompt": prompt, "chosen": long, "rejected": short}
    [whole], _ = load(row, parse=pair_row, max_tokens=5000)
    assert len(whole.prompt) == 100 and len(whole.responses[0]) == 1001
    [pair], _ = load(row, parse=pair_row, max_tokens=1024, cut=True)
    assert [len(r) for r in pair.responses] == [924, len(whole.responses[1])]

    class Words:  # a tokenizer for which "p p … r r …" is a hundred tokens and a thousand
        bos_token_id, eos_token_id = 1, 2

        def __call__(self, text, add_special_tokens=False):
            ids = [3 if word == "p" else 4 for word in text.split()]
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    stub = trl_losses.trainer(processing_class=Words(), max_length=1024)
    for name in ("build_tokenized_answer", "tokenize_row"):
        setattr(stub, name, getattr(trl_losses.ORPOTrainer, name).__get__(stub))
    feature = {"prompt": "p " * 99, "chosen": " r" * 1000, "rejected": " r"}
    batch = stub.tokenize_row(feature)
    kept = sum(label != -100 for label in batch["chosen_labels"])
    assert kept == 924


# The reward model's texts


def test_legacy_space_gives_the_official_reward_models_ids(load, mistral_tokenizer):
    """Prompt, space, response, space, EOS, in one text."""
    official = "[INST] Be brief.\nWhat is rain? [/INST] " + "Water." + " "
    [joined] = mistral_tokenizer.encode([official])
    [pair], _ = load(PAIR, parse=reward_row, legacy_space=True)
    assert [*pair.prompt.tolist(), *pair.responses[0].tolist()] == [1, *joined, 2]
    assert pair.responses[0][-2:].tolist() == [28705, 2]  # the lone word-start mark
    [plain], _ = load(PAIR, parse=reward_row)
    assert plain.responses[0].tolist() == [8632, 28723, 2]
    assert pair.responses[0].tolist() == [8632, 28723, 28705, 2]


def test_transcripts_are_the_ids_of_the_whole_text(load, mistral_tokenizer):
    texts = {"chosen": f"{HH} Water, I think.", "rejected": f"{HH} Wet!"}
    [pair], _ = load(texts, parse=reward_row)
    wholes = mistral_tokenizer.encode(list(texts.values()))
    for response, whole in zip(pair.responses, wholes, strict=True):
        assert [*pair.prompt.tolist(), *response.tolist()] == [1, *whole, 2]


def test_missing_empty_and_parquet_files(tmp_path, mistral_tokenizer, load):
    for name, message in [
        ("nothing.jsonl", "nothing.jsonl not found: a JSONL file is needed"),
        ("data.parquet", "Parquet is not read; convert it once: .*data.jsonl"),
    ]:
        with pytest.raises(UserError, match=message):
            load_examples(tmp_path / name, mistral_tokenizer, sft_row, max_tokens=100)
    with pytest.raises(UserError, match=r"no usable example left \(the file is empty\)"):
        load(b"")
