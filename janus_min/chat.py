"""The one prompt template, and the one encoder that training, scoring and generation share.

    <s>[INST] {system}⏎{instruction} [/INST] {response}</s>

Without a system message there is no leading newline. Prompt and response are encoded apart and
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


def encode_responses(tokenizer: Tokenizer, responses: list[str]) -> list[list[int]]:
    """Responses -> ids of each, EOS last."""
    return [[*ids, EOS] for ids in tokenizer.encode(responses)]
