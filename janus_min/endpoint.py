"""One HTTP endpoint, and how a thread posts to it: a key that is never shown, a deadline by the
clock, no redirects, no endless bodies.

The read timeout of `requests` counts between two bytes, so that a server which sends one byte a
second is never late. Here a watchdog cuts the connection when the time of a request is over.
"""

import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import requests
from requests.adapters import HTTPAdapter, PoolManager
from requests.exceptions import BaseHTTPError

from janus_min.errors import UserError

CONNECT_SECONDS = 10.0
LARGEST_BODY = 32 * 1024 * 1024  # bytes
LONGEST_MESSAGE = 300  # characters of what a server says that are passed on
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Answer(NamedTuple):
    """What a server sent back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoAnswerError(Exception):
    """The server could not be reached, or its answer did not come whole and in time."""

    def __init__(self, reason: str, again: bool = True):
        super().__init__(reason)
        self.again = again  # whether another try makes sense


class Endpoint:
    """Where requests go, and the key that goes with them.

    The key is read from the environment variable `key_variable`, and sent in a header. It must be
    there, and the URL be https, unless the server runs on this machine.
    """

    def __init__(self, base_url: str, key_variable: str):
        parts = _parts(base_url)
        if parts is None:
            raise UserError(
                f"--base-url is {redacted_url(base_url)}, must be like https://host/v1, without "
                "user, password or query"
            )
        self.url, self.host = base_url.rstrip("/"), parts.hostname
        self.local = self.host in LOOPBACK
        if parts.scheme == "http" and not self.local:
            raise UserError(
                f"--base-url is {base_url}: requests and key would travel readable by all; https "
                "is needed unless the server runs on this machine"
            )
        self._key = os.environ.get(key_variable, "").strip()
        if not self._key and not self.local:
            raise UserError(f"no key: set the environment variable {key_variable}")
        if not self._key.isascii() or not self._key.isprintable():
            raise UserError(f"the key in {key_variable} has characters that no header may have")
        self.lines: list[Line] = []
        self.lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def __repr__(self) -> str:
        return f"Endpoint({self.url})"

    def redact(self, text: str) -> str:
        """What a server said, on one line, short enough to print, and without the key."""
        text = text.replace(self._key, "[key]") if self._key else text
        text = re.sub(r"\s+", " ", text).strip()
        return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + " …"

    def authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Puts the key into a request. As this is given, no ~/.netrc is asked for another one."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def line(self) -> "Line":
        """A connection for one thread."""
        line = Line(self)
        with self.lock:
            self.lines.append(line)
        return line

    def cut(self) -> None:
        """Ends all requests that are on their way."""
        with self.lock:
            lines = list(self.lines)
        for line in lines:
            line.cut_after(0)

    def _watch(self) -> None:
        while True:
            time.sleep(0.1)
            with self.lock:
                lines = list(self.lines)
            for line in lines:
                line.cut_after(time.monotonic())


class Line:
    """One thread's connection, which is kept open from request to request."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.lock = endpoint, threading.Lock()
        self.deadline: float | None = None  # while a request is on its way
        self.late = False
        self.session = self._open()

    def _open(self) -> requests.Session:
        session = requests.Session()
        session.auth = self.endpoint.authorise
        session.trust_env = not self.endpoint.local  # proxies and certificates of the environment
        session.get_redirect_target = lambda response: None  # else its body is read, all of it
        self.adapter = _Adapter()
        for scheme in ("http://", "https://"):
            session.mount(scheme, self.adapter)
        return session

    def send(
        self,
        path: str,
        seconds: float,
        body: bytes | None = None,
        method: str = "POST",
        largest: int = LARGEST_BODY,
        **more: object,
    ) -> Answer:
        """Sends JSON, or what `requests` takes in `more`, and waits at most `seconds` for all of
        the answer, of at most `largest` bytes. Raises NoAnswerError.
        """
        if body is not None:
            more |= {"data": body, "headers": {"Content-Type": "application/json"}}
        with self.lock:
            self.deadline, self.late = time.monotonic() + seconds, False
        try:
            with self.session.request(
                method,
                self.endpoint.url + path,
                timeout=(min(CONNECT_SECONDS, seconds), seconds),
                allow_redirects=False,
                stream=True,
                **more,
            ) as response:
                answer = Answer(response.status_code, response.headers, _read(response, largest))
            if self.late and not answer.headers.get("Content-Length"):
                raise requests.Timeout  # no telling whether this is all of it
            return answer
        except (requests.RequestException, BaseHTTPError, OSError, ValueError) as error:
            with self.lock:
                late = self.late or isinstance(error, requests.Timeout)
            self.session.close()
            self.session = self._open()
            if isinstance(error, requests.ConnectTimeout):
                raise NoAnswerError(
                    f"no connection within {min(CONNECT_SECONDS, seconds):g} seconds"
                ) from None
            reason = f"no answer within {seconds:g} seconds" if late else _root(error)
            again = not isinstance(error, _TooLargeError)
            raise NoAnswerError(self.endpoint.redact(reason), again) from None
        finally:
            with self.lock:
                self.deadline = None

    def close(self) -> None:
        """Nothing is sent from here on."""
        with self.endpoint.lock:
            self.endpoint.lines.remove(self)
        self.session.close()

    def cut_after(self, now: float) -> None:
        """Cuts the connection if a request on its way is late; `now` 0 makes all of them late."""
        with self.lock:
            if self.deadline is None or 0 < now < self.deadline:
                return
            self.late = True
            for sock in self.adapter.sockets:
                try:
                    # TLS through a proxy with TLS has a socket within; and a TLS socket's own
                    # `shutdown` would let a thread go on writing without TLS.
                    socket.socket.shutdown(getattr(sock, "socket", sock), socket.SHUT_RDWR)
                except OSError:
                    pass  # it is closed already


class _TooLargeError(ValueError):
    """A body that nobody asked for."""


def _read(response: requests.Response, largest: int) -> bytes:
    blocks, size = [], 0
    for block in response.iter_content(65536):
        blocks.append(block)
        size += len(block)
        if size > largest:
            raise _TooLargeError(f"an answer of more than {largest >> 20} MiB")
    return b"".join(blocks)


def _root(error: BaseException) -> str:
    """The first cause of an error, in the words of the system where it has some."""
    while error.__context__ is not None:
        error = error.__context__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def redacted_url(url: str) -> str:
    """A URL without the user, password, query and fragment that may be in it."""
    return re.split("[?#]", re.sub(r"^(\w+://|//)?.*@", r"\1", url, flags=re.S))[0]


def _parts(url: str) -> SplitResult | None:
    """The parts of a base URL; None if it has not the form that is needed."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if valid and not set("@?#") & set(url) else None


class _Adapter(HTTPAdapter):
    """An adapter of `requests` that knows the sockets of its connections."""

    def __init__(self):
        self.sockets: list[socket.socket] = []
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *arguments: object, **settings: object) -> None:
        """Called by `requests`, once."""
        super().init_poolmanager(*arguments, **settings)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, *arguments: object, **settings: object) -> PoolManager:
        """Called by `requests`, with every request behind a proxy."""
        known = len(self.proxy_manager)
        manager = super().proxy_manager_for(*arguments, **settings)
        if len(self.proxy_manager) > known:
            self._watch(manager)
        return manager

    def _watch(self, manager: PoolManager) -> None:
        pools = manager.pool_classes_by_scheme.items()
        manager.pool_classes_by_scheme = {s: _watched(pool, self.sockets) for s, pool in pools}


def _watched(pool: type, sockets: list[socket.socket]) -> type:
    """A kind of connection pool whose connections leave their newest socket in `sockets`."""

    class Connection(pool.ConnectionCls):
        """A connection that shows its socket."""

        def connect(self) -> None:
            """Called by `urllib3`."""
            super().connect()
            sockets[:] = [self.sock]

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})
