"""An OpenAI-compatible server on this machine whose model is a Python function.

The miniature's teacher and judge are behind it, so that the programs' real code talks to them:
HTTP, retries, journal and all.
"""

import errno
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from janus_min.errors import UserError


class Server(ThreadingHTTPServer):
    """One thread for each connection."""

    daemon_threads = True
    request_queue_size = 128  # clients connect all at once; who finds it full waits for a second

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of clients that are gone."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def served(answer: Callable[[list[dict]], str], port: int = 0) -> Iterator[str]:
    """Serves chat completions while it is entered; gives the base URL.

    `answer` takes the messages of a request and returns the text of the reply. Tokens are counted
    as words; a UserError that it raises is told to whoever asked. Port 0 is any free one; raises
    UserError for one that is in use.
    """

    class Handler(BaseHTTPRequestHandler):
        """One connection."""

        protocol_version = "HTTP/1.1"  # connections stay open
        disable_nagle_algorithm = True
        wbufsize = -1  # headers and body leave together

        def do_POST(self) -> None:
            """Answers one request."""
            length = self.headers["Content-Length"] or ""
            content = self.rfile.read(int(length)) if length.isdecimal() else b""
            try:
                model, messages = asked(content)
                text = answer(messages)
            except UserError as error:
                self.close_connection = not length.isdecimal()  # nobody knows where the next begins
                self._reply(400, {"error": {"message": str(error)}})
                return
            read = sum(len(message["content"].split()) for message in messages)
            message = {"role": "assistant", "content": text}
            reply = {
                "object": "chat.completion",
                "model": model,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": read, "completion_tokens": len(text.split())},
            }
            self._reply(200, reply)

        def _reply(self, status: int, reply: dict) -> None:
            content = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    try:
        server = Server(("127.0.0.1", port), Handler)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise UserError(f"--port {port} is in use: give another one") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def asked(content: bytes) -> tuple[str, list[dict]]:
    """The model and the messages of a request. Raises UserError if it is none."""
    try:
        body = json.loads(content)
        messages = [{"role": m["role"], "content": m["content"]} for m in body["messages"]]
        if messages and all(isinstance(message["content"], str) for message in messages):
            return body["model"], messages
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError("a chat completion is asked for by model and messages of role and content")
