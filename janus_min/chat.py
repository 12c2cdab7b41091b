"""The one prompt template, and the one encoder that training, scoring and generation share.

    <s>[INST] {system}⏎{instruction} [/INST] {response}</s>

    <s>[INST] {system}⏎{first} [/INST] {answer}</s>[INST] {second} [/INST] {response}</s>

Without a system message there is no leading newline; in a conversation it stands in the first turn
alone. Prompt and response are encoded apart and
their ids joined: the space before the response is the word-start mark of the response's own first
token, so the prompt ends with the id of "]" and is always a prefix of the whole. BOS and EOS are
added here, as ids, once; nothing in a text can produce them.

    Note: mistral-common and Hugging Face's template join system and user with two newlines; Janus
    was trained with one. Note: a prompt "[/INST] " with a trailing space is another prompt than
    Janus's.
"""

from janus_min.tokenizer import BOS, EOS, Tokenizer


def prompt_text(system: str | None, instruction: str) -> str:
    """The text that stands between BOS and the response."""
    return f"[INST] {system}\n{instruction} [/INST]" if system else f"[INST] {instruction} [/INST]"


def encode_prompts(tokenizer: Tokenizer, prompts: list[tuple[str | None, str]]) -> list[list[int]]:
    """(system, instruction) pairs -> ids of each prompt, BOS first."""
    return encode_prompt_texts(tokenizer, [prompt_text(*prompt) for prompt in prompts])


def encode_prompt_texts(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Texts of prompts, of the template or not -> ids of each, BOS first."""
    return [[BOS, *ids] for ids in tokenizer.encode(texts)]


def encode_conversations(
    tokenizer: Tokenizer, conversations: list[tuple[str | None, list[str], list[str]]]
) -> list[list[int]]:
    """(system, what the user said, what was answered to all but the last) -> ids of each prompt.

    BOS comes first, once; EOS after each answer. Raises ValueError unless one turn is unanswered.
    """
    if any(len(turns) != len(answers) + 1 for _, turns, answers in conversations):
        raise ValueError("encode_conversations: all turns but the last have one answer each")
    said = [
        prompt_text(None if turn else system, text)
        for system, turns, _ in conversations
        for turn, text in enumerate(turns)
    ]
    prompts = iter(tokenizer.encode(said))
    answered = [answer for _, _, answers in conversations for answer in answers]
    responses = iter(encode_responses(tokenizer, answered))
    encoded = []
    for _, _, answers in conversations:
        ids = [BOS, *next(prompts)]
        for _ in answers:
            ids += next(responses) + next(prompts)
        encoded.append(ids)
    return encoded


def encode_responses(tokenizer: Tokenizer, responses: list[str]) -> list[list[int]]:
    """Responses -> ids of each, EOS last."""
    return [[*ids, EOS] for ids in tokenizer.encode(responses)]
