"""What an HTTP answer means: a reply, another try, the end of a request, or of the whole run.

another try                408 409 425 429 5xx, and 200 without what was asked for in it
the end of this request    400 413 422, 403 (so some servers filter), and all the rest
the end of the run         401 402 404, a redirect, an unknown model, no money left
"""

import json
from collections.abc import Callable
from typing import NamedTuple

from janus_min.connection import Request
from janus_min.endpoint import Answer, Endpoint
from janus_min.limits import retry_after
from janus_min.replies import ReplyError, error_text, reply_of, usage_of

RETRIED = (408, 409, 425, 429)
FATAL = (401, 402, 404)
FATAL_CODES = (  # which servers send with several statuses
    "model_not_found",
    "invalid_api_key",
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
)


class Verdict(NamedTuple):
    """What is wrong with an answer, and what to do."""

    reason: str
    again: bool = True
    fatal: bool = False
    wait: float | None = None  # seconds that the server asks for
    slow_down: bool = False  # all threads


class Service(NamedTuple):
    """What a server does for us, as far as a client must know."""

    path: str  # behind the base URL
    # (request, answer) -> the reply, or what is wrong; and the tokens read and written
    read: Callable[[Request, Answer], tuple[dict | Verdict, tuple[int, int]]]
    expected: Callable[[Request], tuple[int, int]]  # at most so many tokens are read and written
    endpoint: type[Endpoint] = Endpoint  # knows the header of the key
    shows_tokens: bool = True  # while it runs


def json_body(body: bytes) -> object:
    """The JSON of a body; None if it is something else."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def judge_chat(answer: Answer) -> tuple[dict | Verdict, tuple[int, int]]:
    """The reply in the answer to a chat completion, or what is wrong with it; and the tokens read
    and written, as far as the server counts them.
    """
    if answer.status != 200:
        return judge_status(answer), (0, 0)
    body = json_body(answer.body)
    used = usage_of(body) or (0, 0)
    if body is None:
        kind = answer.headers.get("Content-Type", "an unknown type")
        return Verdict(f"the answer is not JSON but {kind}"), used
    try:
        return reply_of(body), used
    except ReplyError as error:
        return Verdict(str(error)), used


def read_chat(request: Request, answer: Answer) -> tuple[dict | Verdict, tuple[int, int]]:
    """The same, with estimated tokens if the server does not count them."""
    reply, used = judge_chat(answer)
    if not isinstance(reply, Verdict) and not any(used):
        size = sum(len(message["content"]) for message in request.body["messages"])
        used = size // 4, len(reply["text"]) // 4
    return reply, used


def judge_status(answer: Answer) -> Verdict:
    """What a status other than 200 means."""
    body = json_body(answer.body)
    said = error_text(body) if body is not None else answer.body.decode("utf-8", "replace")
    reason = f"HTTP {answer.status}: {said}"
    if 300 <= answer.status < 400:
        target = answer.headers.get("Location", "nowhere")
        reason = f"HTTP {answer.status}: a redirect to {target}, which is not followed"
        return Verdict(reason, again=False, fatal=True)
    error = body.get("error") if isinstance(body, dict) else None
    codes = [error.get("code"), error.get("type")] if isinstance(error, dict) else []
    if answer.status in FATAL or any(code in FATAL_CODES for code in codes):
        return Verdict(reason, again=False, fatal=True)
    if answer.status in RETRIED or answer.status >= 500:
        wait = retry_after(answer.headers.get("Retry-After"))
        return Verdict(reason, wait=wait, slow_down=answer.status == 429)
    return Verdict(reason, again=False)
