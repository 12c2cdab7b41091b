"""What is asked of a server, and how it is talked to."""

import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple

from janus_min.errors import UserError, require


@dataclass(frozen=True)
class Connection:
    """How to talk to a server."""

    base_url: str = "https://api.openai.com/v1"  # of any OpenAI-compatible server
    key_variable: str = "OPENAI_API_KEY"  # environment variable that holds the key
    workers: int = 16  # requests on their way at a time
    requests_per_minute: float | None = None  # limit, evenly spread
    tokens_per_minute: float | None = None  # limit for tokens read and written
    deadline: float = 300.0  # seconds for one request, from its start to the end of its answer
    price_in: float = 0.0  # dollars per million tokens read
    price_out: float = 0.0  # dollars per million tokens written
    max_cost: float | None = None  # dollars for all of a folder's requests, earlier runs included

    def __post_init__(self) -> None:
        require(1 <= self.workers <= 1024, self, "workers", "1 to 1024")
        require(0 < self.deadline < 86400, self, "deadline", "between 0 and 86,400 seconds")
        for name in ("requests_per_minute", "tokens_per_minute", "max_cost"):
            value = getattr(self, name)
            require(value is None or 0 < value < float("inf"), self, name, "greater than 0")
        for name in ("price_in", "price_out"):
            require(0 <= getattr(self, name) < float("inf"), self, name, "0 or more")
        if self.max_cost is not None and not self.price_in + self.price_out > 0:
            raise UserError("--max-cost needs prices: --price-in and --price-out")


_SORTED = json.JSONEncoder(sort_keys=True)  # made once: `json.dumps` makes one for each call


class Request(NamedTuple):
    """What is asked for, such as a chat completion."""

    body: dict  # as it is sent; of a chat: model, messages, sampling parameters
    sample: int = 0  # which of several answers to the same body

    def key(self) -> str:
        """What the answer is kept under."""
        text = _SORTED.encode([self.body, self.sample])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def expected(self) -> tuple[int, int]:
        """At most so many tokens are read and written in a chat: a token has one byte or more. For
        a body that sets no limit to what is written, 4,096 are assumed.
        """
        texts = [message["content"].encode("utf-8", "replace") for message in self.body["messages"]]
        limits = (self.body.get(key) for key in ("max_completion_tokens", "max_tokens"))
        return sum(len(text) + 16 for text in texts), next(filter(None, limits), 4096)
