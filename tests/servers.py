"""A chat server on this machine that answers well, badly or not at all, as it is told.

    with ChatServer(answer=lambda body, seen: "Rain is water.") as server:
        ...  # server.url is the base URL; server.requests, server.paid say what it has seen

`answer` gives the text of a proper reply, or all its body, or a `Reply` of any kind. `script` says
what is sent instead: a list, used up in the order of requests, or a function of a request; None in
either stands for a proper reply. `faults` is the share of requests that one of FAULTS happens to,
by the seed and the request alone, and at most three times in a row to the same request.
"""

import json
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

KEY = "sk-SECRET-0123456789"  # what no file, screen or error may show
DRIP_SECONDS = 0.2  # between two bytes
ENDLESS = 100 * 1024 * 1024  # bytes of an endless body
IN_A_ROW = 3  # faults of the same request


class Seen(NamedTuple):
    """A request, as it came."""

    time: float  # of time.monotonic
    path: str
    headers: dict[str, str]  # names in lower case
    body: object  # JSON if it was, else bytes
    client: tuple[str, int]  # address and port: which connection


class Reply(NamedTuple):
    """What is sent, and how: whole, half, reset, drip (the body, byte by byte), drip headers,
    hang, or endless."""

    status: int = 200
    body: object = b""  # bytes, text or JSON
    headers: tuple[tuple[str, str], ...] = ()
    how: str = "whole"
    wait: float = 0.0  # seconds before

    def kind(self) -> str:
        """What it is counted as, unless it is paid for."""
        return f"{self.status}" if self.how == "whole" else self.how

    def content(self) -> bytes:
        """The body as bytes."""
        if isinstance(self.body, bytes):
            return self.body
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        return text.encode()


def chat(text: str | None, finish: str = "stop", usage: tuple[int, int] = (12, 5), **more) -> dict:
    """A chat completion; `more` goes into its message."""
    return {
        "object": "chat.completion",
        "model": "stub-1",
        "system_fingerprint": "fp_0",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"content": text, **more}},
        ],
        "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]},
    }


def error(message: str, **more) -> dict:
    """The body of an error, as OpenAI's servers send it."""
    return {"error": {"message": message, "type": "stub_error", "code": None} | more}


def too_many(retry_after: str | None = None) -> Reply:
    """A 429, with what it asks for."""
    headers = () if retry_after is None else (("Retry-After", retry_after),)
    return Reply(429, error("slow down"), headers)


def http_date(seconds: float) -> str:
    """So many seconds from now, as an HTTP date, which has whole seconds."""
    return formatdate(time.time() + seconds, usegmt=True)


HTML = Reply(502, "<html><body>Bad gateway</body></html>", (("Content-Type", "text/html"),))
FAULTS: dict[str, Callable[[], Reply]] = {
    "429 seconds": lambda: too_many("1"),
    "429 date": lambda: too_many(http_date(2)),
    "429 alone": too_many,
    "500": lambda: Reply(500, error("oops")),
    "502": lambda: HTML,
    "reset": lambda: Reply(how="reset"),
    "half": lambda: Reply(200, chat("half of an answer"), how="half"),
    "drip": lambda: Reply(200, chat("a slow answer"), how="drip"),
    "drip headers": lambda: Reply(200, chat("a slow answer"), how="drip headers"),
    "hang": lambda: Reply(how="hang"),
    "no choices": lambda: Reply(200, chat("x") | {"choices": []}),
    "bad JSON": lambda: Reply(200, '{"choices": [{"mess'),
}
PASSING = ("429 alone", "500", "502", "reset", "half", "no choices", "bad JSON")  # at once


def question(body: dict) -> str:
    """What the user says in a request."""
    return body["messages"][-1]["content"]


def repeat(body: dict, seen: Seen) -> str:
    """The answer of a server that is told nothing else: each request has its own."""
    return f"answer to {question(body)}"


class ChatServer:
    """The server, while it is entered; it answers on as many connections as there are."""

    def __init__(
        self,
        answer: Callable[[dict, Seen], str | dict | Reply] = repeat,
        *,
        faults: float = 0.0,
        seed: int = 0,
        script: Sequence[Reply | None] | Callable[[Seen], Reply | None] = (),
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ):
        self.host, self.tls = host, tls
        self.answer, self.faults, self.seed, self.script = answer, faults, seed, script
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.requests: list[Seen] = []
        self.paid = 0  # proper replies that were sent to the last byte
        self.paid_tokens = [0, 0]  # in them: read and written
        self.failures: Counter[str] = Counter()  # everything else, by its kind
        self.times: Counter[bytes] = Counter()  # faults of each request

    def __enter__(self) -> "ChatServer":
        self.http = _Threads((self.host, 0), _handler(self))
        if self.tls:
            self.http.socket = self.tls.wrap_socket(
                self.http.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"http{'s' * bool(self.tls)}://{self.host}:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def reply(self, seen: Seen, raw: bytes) -> tuple[Reply, bool]:
        """What to send, and whether it is a proper reply."""
        with self.lock:
            number = len(self.requests)
            self.requests.append(seen)
        if callable(self.script):
            scripted = self.script(seen)
        else:
            scripted = self.script[number] if number < len(self.script) else None
        if scripted is not None:
            return scripted, False
        with self.lock:
            chance = random.Random(f"{self.seed} {self.times[raw]} {raw!r}")
            if self.times[raw] < IN_A_ROW and chance.random() < self.faults:
                self.times[raw] += 1
                return FAULTS[chance.choice(sorted(FAULTS))](), False
        text = self.answer(seen.body, seen)
        if isinstance(text, Reply):
            return text, False
        if isinstance(text, dict):
            return Reply(200, text), True
        size = sum(len(message["content"]) for message in seen.body["messages"])
        usage = size // 4 + 1, len(text) // 4 + 1
        return Reply(200, chat(text, usage=usage)), True

    def count(self, reply: Reply, proper: bool, by: int = 1) -> None:
        """Notes a reply before it is sent; `by` -1 takes it back."""
        with self.lock:
            if not proper:
                self.failures[reply.kind()] += by
                return
            self.paid += by
            usage = reply.body.get("usage", {})
            self.paid_tokens[0] += by * usage.get("prompt_tokens", 0)
            self.paid_tokens[1] += by * usage.get("completion_tokens", 0)


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


def _handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if len(raw) < int(self.headers.get("Content-Length", 0)):
                self.close_connection = True  # a client that was killed
                return
            try:
                body = json.loads(raw)
            except ValueError:
                body = raw
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = Seen(time.monotonic(), self.path, headers, body, self.client_address)
            reply, proper = server.reply(seen, raw)
            server.count(reply, proper)
            if reply.wait:
                server.closing.wait(reply.wait)
            try:
                self._send(reply)
            except OSError:
                if proper:
                    server.count(reply, proper, by=-1)
                    server.count(Reply(how="unsent"), False)
                self.close_connection = True

        def do_GET(self) -> None:
            self.do_POST()

        def _send(self, reply: Reply) -> None:
            content = reply.content()
            size = ENDLESS if reply.how == "endless" else len(content)
            names = {name.lower() for name, _ in reply.headers}
            head = [f"HTTP/1.1 {reply.status} Stub"]
            head += [f"{name}: {value}" for name, value in reply.headers]
            head += [f"Content-Length: {size}"] * ("content-length" not in names)
            head += ["Content-Type: application/json"] * ("content-type" not in names)
            start = ("\r\n".join(head) + "\r\n\r\n").encode("utf-8")
            if reply.how == "whole":
                self.wfile.write(start + content)
                return
            self.close_connection = True
            if reply.how == "half":
                self.wfile.write(start + content[: size // 2])
            elif reply.how == "drip":
                self.wfile.write(start)
                self._drip(content)
            elif reply.how == "drip headers":
                first = start.index(b"\n") + 1
                self.wfile.write(start[:first])
                self._drip(start[first:] + content)
            elif reply.how == "hang":
                server.closing.wait(600)
            elif reply.how == "endless":
                self.wfile.write(start)
                for _ in range(ENDLESS // 65536):
                    self.wfile.write(b" " * 65536)
            elif reply.how == "reset":  # closed at once, what was received thrown away
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.connection.close()
                self.rfile.close()

        def _drip(self, content: bytes) -> None:
            for byte in content:
                self.wfile.write(bytes([byte]))
                if server.closing.wait(DRIP_SECONDS):
                    return

        def log_message(self, *arguments: object) -> None:
            """Nothing: the tests look at what was recorded."""

    return Handler
