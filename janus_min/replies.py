"""What a chat model sent back: whether it is of use, and the JSON object in its text."""

import json
import re

FINISHED = (None, "", "stop", "eos", "eos_token", "stop_sequence", "end_turn")  # by the model


class ReplyError(Exception):
    """A reply that cannot be used; the text says why, to a person and to the model."""


def reply_of(body: object) -> dict:
    """What is kept of the body of a chat completion: its text, why it ended, who wrote it.

    Raises ReplyError if it is no chat completion.
    """
    if not isinstance(body, dict):
        raise ReplyError(f"the answer is a JSON {type(body).__name__}, no chat completion")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        found = f"an error: {error_text(body)}" if body.get("error") else f"{sorted(body)}"
        raise ReplyError(f"the answer is no chat completion: 'choices' needed, found {found}")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise ReplyError("the answer is no chat completion: its choice has no 'message'")
    content = message.get("content")
    if isinstance(content, list):  # of parts, as some servers send it
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise ReplyError(f"the text of the answer is a JSON {type(content).__name__}")
    reply = {"text": without_thoughts(content or ""), "finish": choices[0].get("finish_reason")}
    reply |= {"refusal": message.get("refusal")} if message.get("refusal") else {}
    reply |= {"logprobs": choices[0]["logprobs"]} if choices[0].get("logprobs") else {}
    reply |= {key: body[key] for key in ("model", "system_fingerprint") if body.get(key)}
    return reply


def without_thoughts(text: str) -> str:
    """A text without the thoughts that some models write before it; nothing if they do not end."""
    if not text.lstrip().startswith("<think>"):
        return text
    return text.partition("</think>")[2].lstrip()


def unusable(reply: dict) -> str | None:
    """Why a reply must not be used: a refusal, filtered, cut or empty; None if nothing is wrong."""
    if reply.get("refusal"):
        return f"refused: {reply['refusal']}"
    if reply["finish"] == "content_filter":
        return "filtered by the server"
    if reply["finish"] == "length":
        return "cut off at the largest number of tokens"
    if reply["finish"] not in FINISHED:
        return f"ended by {reply['finish']!r}"
    if not reply["text"].strip():
        return "empty"
    return None


def error_text(body: object) -> str:
    """The message in the body of an error, in the forms that servers give it."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        for key in ("message", "detail", "error"):
            if error.get(key):
                return str(error[key])
    return str(error)


def usage_of(body: object) -> tuple[int, int] | None:
    """Tokens read and written, as the server counts them."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return None
    counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
    counts = [n if type(n) is int and 0 <= n < 10**9 else 0 for n in counts]
    return (counts[0], counts[1]) if any(counts) else None


# JSON in text


def json_value(text: str) -> object:
    """The JSON object or list that a text is, has in one pair of fences, or has prose around.

    Raises ReplyError if there is none, if it is cut short, says a key twice, or if there is more
    than one and no telling which is meant.
    """
    try:
        value = _json_value(text.strip())
    except RecursionError:
        raise ReplyError("JSON that is nested too deep") from None
    if not isinstance(value, (dict, list)):
        raise ReplyError("no JSON object or list")
    return value


def _json_value(text: str) -> object:
    # The first line and the last fence, so that a fence within a string ends nothing.
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[:-3].partition("\n")[2].strip()
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        reason = f"no JSON ({error.msg} at character {error.pos})"
    start = text.find("{")
    if start < 0:
        raise ReplyError(reason)
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise ReplyError(f"no whole JSON ({error.msg} at character {error.pos})") from None
    for other in re.finditer(r"\{", text[end:]):
        try:
            _DECODER.raw_decode(text, end + other.start())
        except (json.JSONDecodeError, ReplyError):
            continue
        raise ReplyError("more than one JSON object")
    return value


def _object(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ReplyError(f"the key {twice!r} is there twice")
    return found


def _no_number(name: str) -> object:
    raise ReplyError(f"{name} is no JSON number")


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python reads no endless ones
        raise ReplyError(f"a number of {len(digits)} digits") from None


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_no_number, parse_int=_integer
)
