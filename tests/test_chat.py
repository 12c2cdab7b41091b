"""The tokenizer and the one prompt template, on Mistral's real vocabulary."""

import json
import random
import shutil

import pytest

from janus_min.chat import encode_conversations, encode_prompts, encode_responses, prompt_text
from janus_min.errors import UserError
from janus_min.tokenizer import Tokenizer

ALPHABET = (
    "abcdefghij ABC  \n\t\n0123456789()[]{}<>/|*_#$%&.,;:!?'\"\\-"
    "äöüßéñ中文字かなカナ한국어العربيةрусский🙂👩🏽‍🚀🇰🇷\u200b\u00a0\u0301"
)
MARKERS = ["</s>", "<s>", "[INST]", "[/INST]", "<unk>", "<0x0A>", "▁", " [/INST] ", "\r\n"]


def random_text(source: random.Random) -> str:
    length = source.randrange(1, 30)
    pieces = [source.choice(ALPHABET) for _ in range(length)]
    if source.random() < 0.3:
        pieces.insert(source.randrange(length), source.choice(MARKERS))
    return "".join(pieces)


def test_template():
    assert prompt_text("Be kind.", "Hi") == "[INST] Be kind.\nHi [/INST]"
    assert prompt_text("", "Hi") == prompt_text(None, "Hi") == "[INST] Hi [/INST]"


def test_golden_ids(mistral_tokenizer):
    """Written down once from the published vocabulary; a change of any rule changes them."""
    [with_system, without] = encode_prompts(mistral_tokenizer, [("Be kind.", "Hi"), (None, "Hi")])
    assert with_system == [
        1,
        733,
        16289,
        28793,
        1739,
        2112,
        28723,
        13,
        23809,
        733,
        28748,
        16289,
        28793,
    ]
    assert without == [1, 733, 16289, 28793, 15359, 733, 28748, 16289, 28793]
    assert encode_responses(mistral_tokenizer, ["Four", ""]) == [[9611, 2], [2]]


def test_prompt_is_a_token_prefix_of_the_whole_text(mistral_tokenizer):
    """Encoding prompt and response apart gives the ids of the joined text, for 20,000 pairs."""
    source = random.Random(0)
    pairs = [[random_text(source) for _ in range(3)] for _ in range(20_000)]
    prompts = encode_prompts(mistral_tokenizer, [(system, text) for system, text, _ in pairs])
    responses = encode_responses(mistral_tokenizer, [response for _, _, response in pairs])
    whole = mistral_tokenizer.encode([f"{prompt_text(s, i)} {r}" for s, i, r in pairs])
    for pair, prompt, response, joined in zip(pairs, prompts, responses, whole, strict=True):
        assert prompt + response == [1, *joined, 2], pair
        assert prompt.count(1) == 1 and response.count(2) == 1 and 2 not in prompt, pair


def test_ids_equal_mistral_common_without_a_system_message(mistral_tokenizer):
    """With one the templates differ: mistral-common joins by two newlines, Janus by one."""
    pytest.importorskip("mistral_common")
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    theirs = MistralTokenizer.v1()
    source = random.Random(1)
    pairs = [(random_text(source), random_text(source)) for _ in range(300)]
    pairs = [(i, r.strip()) for i, r in pairs if i.strip() and r.strip()]
    prompts = encode_prompts(mistral_tokenizer, [(None, instruction) for instruction, _ in pairs])
    responses = encode_responses(mistral_tokenizer, [response for _, response in pairs])
    for (instruction, answer), prompt, response in zip(pairs, prompts, responses, strict=True):
        question = [UserMessage(content=instruction)]
        request = ChatCompletionRequest(messages=question)
        assert theirs.encode_chat_completion(request).tokens == prompt, instruction
        request = ChatCompletionRequest(
            messages=[*question, AssistantMessage(content=answer), UserMessage(content="x")]
        )
        ids = theirs.encode_chat_completion(request).tokens
        assert ids[: len(prompt) + len(response)] == prompt + response, (instruction, answer)


def random_conversations(source: random.Random, count: int, system: str | None = None) -> list:
    """Of 1 to 4 turns; an answer stands without spaces around it, as mistral-common wants it."""
    conversations = []
    for _ in range(count):
        texts = [random_text(source).strip() or "x" for _ in range(source.choice((1, 3, 5, 7)))]
        conversations.append((system, texts[::2], texts[1::2]))
    return conversations


def test_golden_ids_of_a_conversation(mistral_tokenizer):
    """The parts of test_golden_ids: BOS once, the system message in the first turn alone."""
    conversation = ("Be kind.", ["Hi", "Hi", "Hi"], ["Four", ""])
    [ids] = encode_conversations(mistral_tokenizer, [conversation])
    first = [1, 733, 16289, 28793, 1739, 2112, 28723, 13, 23809, 733, 28748, 16289, 28793]
    later = [733, 16289, 28793, 15359, 733, 28748, 16289, 28793]
    assert ids == [*first, 9611, 2, *later, 2, *later]


def test_a_conversation_of_one_turn_is_a_prompt(mistral_tokenizer):
    source = random.Random(3)
    prompts = [(random_text(source), random_text(source)) for _ in range(100)]
    prompts += [(None, "Hi"), ("", "Hi"), ("Be kind.", "")]
    conversations = [(system, [text], []) for system, text in prompts]
    expected = encode_prompts(mistral_tokenizer, prompts)
    assert encode_conversations(mistral_tokenizer, conversations) == expected


def test_conversations_are_encoded_alone_as_together(mistral_tokenizer):
    conversations = random_conversations(random.Random(4), 50, "Be kind.")
    together = encode_conversations(mistral_tokenizer, conversations)
    assert together == [encode_conversations(mistral_tokenizer, [c])[0] for c in conversations]
    for (_, _, answers), ids in zip(conversations, together, strict=True):
        assert ids[0] == 1 and ids.count(1) == 1 and ids.count(2) == len(answers)
        assert mistral_tokenizer.piece(ids[-1]) == "]"


@pytest.mark.parametrize("answers", [[], ["a", "b"]])
def test_one_turn_waits_for_its_answer(mistral_tokenizer, answers):
    with pytest.raises(ValueError, match="all turns but the last have one answer each"):
        encode_conversations(mistral_tokenizer, [(None, ["Hi"], []), (None, ["Hi", "So"], answers)])


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_conversations_equal_mistral_common(mistral_tokenizer, system):
    """It joins the system message by two newlines, so here that is part of the first turn."""
    pytest.importorskip("mistral_common")
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    theirs = MistralTokenizer.v1()
    conversations = random_conversations(random.Random(5), 300, system)
    ours = encode_conversations(mistral_tokenizer, conversations)
    for (_, turns, answers), ids in zip(conversations, ours, strict=True):
        first = f"{system}\n{turns[0]}" if system else turns[0]
        messages = [UserMessage(content=first)]
        for answer, text in zip(answers, turns[1:], strict=True):
            messages += [AssistantMessage(content=answer), UserMessage(content=text)]
        request = ChatCompletionRequest(messages=messages)
        assert theirs.encode_chat_completion(request).tokens == ids, (turns, answers)


def test_the_system_message_differs_from_mistral_common_by_one_newline(mistral_tokenizer):
    pytest.importorskip("mistral_common")
    from mistral_common.protocol.instruct.messages import (
        AssistantMessage,
        SystemMessage,
        UserMessage,
    )
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    messages = [SystemMessage(content="Be kind."), UserMessage(content="Hi")]
    messages += [AssistantMessage(content="Four"), UserMessage(content="So?")]
    request = ChatCompletionRequest(messages=messages)
    theirs = MistralTokenizer.v1().encode_chat_completion(request).tokens
    conversation = ("Be kind.", ["Hi", "So?"], ["Four"])
    [ids] = encode_conversations(mistral_tokenizer, [conversation])
    newline = ids.index(13)
    assert ids[: newline + 1] + [13] + ids[newline + 1 :] == theirs


def test_conversations_equal_the_template_of_transformers(mistral_tokenizer_file, tmp_path):
    """Where they agree: single spaces, as transformers splits two of them in another way, and a
    template with a space before each answer, as one without it gives other ids."""
    pytest.importorskip("transformers")
    from tests.peers import transformers

    shutil.copy(mistral_tokenizer_file, tmp_path / "tokenizer.model")
    about = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>"}
    about |= {"eos_token": "</s>", "unk_token": "<unk>", "legacy": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} "
        "[/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    source, words = (
        random.Random(6),
        ["Why", "is", "tea", "green?", "中文", "1.5", "🙂", "(no)\nso"],
    )

    def text() -> str:
        return " ".join(source.choices(words, k=source.randrange(1, 6)))

    for turns in (1, 2, 3) * 10:
        conversation = (
            "Be kind.",
            [text() for _ in range(turns)],
            [text() for _ in range(1, turns)],
        )
        _, said, answers = conversation
        messages = [{"role": "user", "content": f"Be kind.\n{said[0]}"}]
        for answer, question in zip(answers, said[1:], strict=True):
            messages += [{"role": "assistant", "content": answer}]
            messages += [{"role": "user", "content": question}]
        ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert [ids] == encode_conversations(Tokenizer(mistral_tokenizer_file), [conversation])


def test_the_prompt_ends_with_the_bracket_and_no_space(mistral_tokenizer):
    [prompt] = encode_prompts(mistral_tokenizer, [("Be kind.", "Hi")])
    assert mistral_tokenizer.piece(prompt[-1]) == "]"
    # "[/INST] " would end in a lone word-start mark, which no training example has.
    assert mistral_tokenizer.encode([prompt_text(None, "Hi") + " "])[0][-1] == 28705


def test_special_tokens_in_a_text_stay_text(mistral_tokenizer):
    [ids] = mistral_tokenizer.encode(["a </s> b <s> [INST]"])
    assert not {1, 2} & set(ids)
    assert mistral_tokenizer.decode(ids) == "a </s> b <s> [INST]"


def test_decoding_a_whole_list_gives_the_text_back(mistral_tokenizer):
    source = random.Random(2)
    # "▁" itself is SentencePiece's mark for a space and comes back as one.
    texts = [random_text(source).replace("▁", "").strip(" ") for _ in range(5_000)]
    for text, ids in zip(texts, mistral_tokenizer.encode(texts), strict=True):
        assert mistral_tokenizer.decode(ids) == text
    words = mistral_tokenizer.encode(["Hello world 한국어"])[0]
    assert "".join(mistral_tokenizer.decode([i]) for i in words) != "Hello world 한국어"


def test_ids_beyond_the_tokenizer_have_no_text(mistral_tokenizer):
    """A model may have more rows than the tokenizer has pieces; 32000 would be an IndexError."""
    [ids] = mistral_tokenizer.encode(["Hello"])
    assert mistral_tokenizer.decode([*ids, 32000, 40000]) == "Hello"


def test_response_ids_decode_without_a_leading_space(mistral_tokenizer):
    for text in ("Four", "\nFour", "$46", "**x", "中"):
        [ids] = encode_responses(mistral_tokenizer, [text])
        assert mistral_tokenizer.decode(ids[:-1]) == text


def test_one_text_and_many_texts_are_encoded_alike(mistral_tokenizer):
    texts = [f"text number {i}" for i in range(200)]
    assert mistral_tokenizer.encode(texts) == [mistral_tokenizer.encode([t])[0] for t in texts]


def test_missing_or_damaged_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer.model not found: a SentencePiece"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        Tokenizer(tmp_path)
