"""The Batch API, spoken to a server that holds to its reference: nothing is asked or paid twice."""

import email
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from janus_min import batch, client, prompts
from janus_min.batch import Batches
from janus_min.build import Options, Work, build_collection
from janus_min.client import CHAT, Client, Connection, Request
from janus_min.errors import UserError
from janus_min.exports import FILES
from janus_min.journal import Journal
from janus_min.mini_data import collection
from janus_min.pipeline import Sampling
from janus_min.sources import Filters
from janus_min.teacher import Teacher, world_hierarchy
from tests.runs import rows_in, write_rows
from tests.servers import KEY, chat

EXPIRED = "This request could not be executed before the completion window expired."


def completion(messages: list[dict], text: str) -> dict:
    """A chat completion; tokens are counted as words."""
    read = sum(len(message["content"].split()) for message in messages)
    return chat(text, usage=(read, len(text.split())))


class BatchServer:
    """Files, batches and chat completions under /v1, while it is entered.

    A batch goes one status further every other time it is asked for. `fault` gives, for a request
    of a batch and how often it was asked before, the status of its error, if it is to have one;
    `ends` are the last statuses of the batches, in the order in which they are started, and
    "completed" for later ones; `code` is why one failed. `page` batches are listed at a time.
    `lost` are paths that are served once without an answer, and `instead` are the answers to
    paths, with their status.
    """

    def __init__(self, answer: Callable[[list[dict]], str]):
        self.answer, self.lock = answer, threading.Lock()
        self.fault: Callable[[dict, int], int | None] = lambda body, times: None
        self.ends: list[str] = []
        self.code, self.page = "token_count", 100
        self.lost: list[str] = []
        self.instead: dict[str, tuple[int, bytes]] = {}
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}
        self.asked: Counter[str] = Counter()  # requests in batches that ended well, by custom_id
        self.polls: Counter[str] = Counter()  # of batches
        self.chats = 0  # requests without a batch

    def __enter__(self) -> "BatchServer":
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def serve(self, method: str, path: str, kind: str, body: bytes) -> tuple[int, bytes]:
        """The status and the body of an answer."""
        match method, *path.removeprefix("/v1/").split("/"):
            case "POST", "chat", "completions":
                self.chats += 1
                messages = json.loads(body)["messages"]
                return 200, json.dumps(completion(messages, self.answer(messages))).encode()
            case "POST", "files":
                return 200, json.dumps(self.upload(kind, body)).encode()
            case "POST", "batches":
                return 200, json.dumps(self.start(**json.loads(body))).encode()
            case "GET", query if query.startswith("batches?limit=100"):
                return 200, json.dumps(self.listed(query.partition("&after=")[2])).encode()
            case "GET", "batches", identity:
                return 200, json.dumps(self.poll(identity)).encode()
            case "GET", "files", identity, "content":
                return 200, self.files[identity]
        raise KeyError(path)

    def upload(self, kind: str, body: bytes) -> dict:
        message = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
        parts = {
            p.get_param("name", header="content-disposition"): p for p in message.get_payload()
        }
        assert parts.keys() == {"purpose", "file"} and parts["file"].get_filename()
        assert parts["purpose"].get_payload() == "batch"
        return {"id": self.keep(parts["file"].get_payload(decode=True))}

    def keep(self, content: bytes) -> str:
        self.files[identity := f"file-{len(self.files)}"] = content
        return identity

    def start(self, input_file_id, endpoint, completion_window, metadata) -> dict:
        assert endpoint == "/v1/chat/completions" and completion_window == "24h"
        assert all(isinstance(text, str) and len(text) <= 512 for text in metadata.values())
        lines = self.lines(input_file_id)
        assert len({line["custom_id"] for line in lines}) == len(lines) > 0
        assert all((line["method"], line["url"]) == ("POST", endpoint) for line in lines)
        order = {"id": f"batch-{len(self.batches)}", "input_file_id": input_file_id}
        order |= {"metadata": metadata, "status": "validating", "errors": None}
        order |= {"end": self.ends.pop(0) if self.ends else "completed"}
        self.batches[order["id"]] = order
        return order

    def listed(self, after: str) -> dict:
        newest = list(reversed(self.batches.values()))
        start = 1 + [order["id"] for order in newest].index(after) if after else 0
        more = start + self.page < len(newest)
        return {"object": "list", "data": newest[start : start + self.page], "has_more": more}

    def lines(self, file: str) -> list[dict]:
        return [json.loads(line) for line in self.files[file].splitlines()]

    def requests(self) -> list[list[dict]]:
        """The bodies in each batch."""
        files = [order["input_file_id"] for order in self.batches.values()]
        return [[line["body"] for line in self.lines(file)] for file in files]

    def poll(self, identity: str) -> dict:
        self.polls[identity] += 1
        order = self.batches[identity]
        way = ["validating", "in_progress", "finalizing", order["end"]]
        if order["status"] != order["end"] and self.polls[identity] % 2 == 0:
            order["status"] = way[way.index(order["status"]) + 1]
            if order["status"] == "failed":
                order["errors"] = {"data": [{"message": f"too much\nfor {KEY}", "code": self.code}]}
            elif order["status"] == order["end"]:
                self.finish(order)
        return order

    def finish(self, order: dict) -> None:
        """Makes the output and error files of a batch, in no order."""
        good, bad = [], []
        for number, line in enumerate(self.lines(order["input_file_id"])):
            key, body = line["custom_id"], line["body"]
            status = self.fault(body, self.asked[key])
            self.asked[key] += 1
            if number and order["end"] in ("expired", "cancelled"):
                error = {"code": "batch_expired", "message": EXPIRED}
                bad.append({"custom_id": key, "response": None, "error": error})
            elif status:
                said = {"error": {"message": f"fault {status} for {KEY}", "type": "stub"}}
                response = {"status_code": status, "request_id": "r", "body": said}
                bad.append({"custom_id": key, "response": response, "error": None})
            else:
                reply = completion(body["messages"], self.answer(body["messages"]))
                response = {"status_code": 200, "request_id": "r", "body": reply}
                good.append({"custom_id": key, "response": response, "error": None})
        for name, found in (("output_file_id", good), ("error_file_id", bad)):
            random.Random(len(self.files)).shuffle(found)
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
            order[name] = self.keep(text.encode() + b"\n") if found else None  # with a blank line
        counts = {"total": len(good + bad), "completed": len(good), "failed": len(bad)}
        order["request_counts"] = counts


def handler(server: BatchServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.removeprefix("/v1")
            with server.lock:
                status, content = server.instead.get(path) or server.serve(
                    self.command, self.path, self.headers.get("Content-Type", ""), raw
                )
                if path in server.lost:
                    server.lost.remove(path)
                    self.close_connection = True
                    return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *arguments: object) -> None:
            """Nothing: the tests look at what was recorded."""

    return Handler


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting between two tries or polls, and a key."""
    monkeypatch.setattr(batch, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(batch, "wait_before", lambda attempt, asked: 0.001)
    monkeypatch.setattr(client, "wait_before", lambda attempt, asked: 0.001)
    monkeypatch.setenv("TEST_KEY", KEY)


# Batches of plain requests


def echo(messages: list[dict]) -> str:
    return f"“{messages[-1]['content']}”, you say"


def request_of(number: int) -> Request:
    message = {"role": "user", "content": f"question {number}"}
    return Request({"model": "m", "messages": [message], "max_tokens": 16})


class Run:
    """Asks questions 0 to `count` - 1 by batches, with the journal and the state of a folder."""

    def __init__(self, folder: Path, server: BatchServer, count: int = 5):
        self.folder, self.server, self.count = folder, server, count
        self.said: list[str] = []

    def __call__(self, say: Callable[[str], None] | None = None, **settings: object) -> dict:
        """The text of each answer that is there afterwards, by the number of its question."""
        requests = [request_of(number) for number in range(self.count)]
        settings = {"base_url": self.server.url, "key_variable": "TEST_KEY"} | settings
        with Journal(self.folder / "calls.jsonl") as journal:
            self.client = Client(Connection(**settings), journal)
            batches = Batches(self.client, self.folder, say or self.said.append)
            missing = lambda: (r for r in requests * 2 if journal.get(r.key()) is None)  # noqa: E731
            batches.run(missing, "questions")
            lines = {n: journal.get(r.key()) for n, r in enumerate(requests)}
        return {n: line["reply"]["text"] for n, line in lines.items() if line}

    def fails(self, **settings: object) -> str:
        """The line with which a run ends."""
        with pytest.raises(UserError) as caught:
            self(**settings)
        assert "\n" not in str(caught.value) and KEY not in str(caught.value)
        return str(caught.value)

    def wanted(self) -> dict[int, str]:
        return {n: echo(request_of(n).body["messages"]) for n in range(self.count)}

    def state(self) -> dict:
        return json.loads((self.folder / "batches.json").read_text())

    def files(self) -> list[Path]:
        return list(self.folder.glob("batch-*"))


@pytest.fixture
def asked(tmp_path):
    with BatchServer(echo) as server:
        yield Run(tmp_path, server)


def test_answers_find_their_requests_and_leave_nothing_behind(asked):
    assert asked() == asked.wanted()
    assert asked.server.requests() == [[request_of(n).body for n in range(5)]]  # each once
    assert asked.server.chats == 0 and asked.files() == []
    assert asked.state()["batches"] == {}
    statuses = [line.split()[3] for line in asked.said]
    assert statuses == ["validating", "in_progress", "finalizing", "completed"]
    assert asked.client.budget.spent == 0.0 and asked.client.journal.tokens == [10, 20]
    asked.server.instead = {"/batches?limit=100": (500, b""), "/files": (500, b"")}
    assert asked() == asked.wanted()  # and asks nobody


@pytest.mark.parametrize("limit", ["MOST_REQUESTS", "MOST_BYTES"])
def test_many_requests_go_as_several_batches(asked, monkeypatch, limit):
    size = len(batch.as_line({"custom_id": "0" * 32, "method": "POST", "url": "/v1" + CHAT}
                             | {"body": request_of(0).body}))  # fmt: skip
    monkeypatch.setattr(batch, limit, 2 if limit == "MOST_REQUESTS" else size + 1)
    assert asked() == asked.wanted()
    assert list(map(len, asked.server.requests())) == [2, 2, 1]
    assert asked.state()["batches"] == {} and asked.files() == []


@pytest.mark.parametrize("status", [400, 429, 500])
@pytest.mark.parametrize("faulty", [{2}, set(range(5))], ids=["one", "all"])
def test_requests_that_failed_are_asked_once_more(asked, status, faulty):
    """If others came through. What fails in a round in which nothing comes is given up."""
    numbers = {f"question {n}" for n in faulty}

    def fault(body: dict, times: int) -> int | None:
        return status if body["messages"][0]["content"] in numbers and not times else None

    asked.server.fault = fault
    found = asked()
    if len(faulty) == 1:
        assert found == asked.wanted() and list(map(len, asked.server.requests())) == [5, 1]
        return
    assert found == {} and len(asked.server.batches) == 1
    assert asked.client.failures == {
        request_of(n).key(): f"HTTP {status}: fault {status} for [key]" for n in range(5)
    }
    assert KEY not in (asked.folder / "calls.jsonl").read_text()
    assert asked() == asked.wanted()  # the very same batch, but another one
    assert len(asked.server.batches) == 2


def test_a_request_that_always_fails_makes_no_endless_rounds(asked):
    asked.server.fault = lambda body, times: 500 * (body["messages"][0]["content"][-1] == "3")
    found = asked()
    assert found.keys() == {0, 1, 2, 4} and list(asked.client.failures) == [request_of(3).key()]
    assert list(map(len, asked.server.requests())) == [5, 1]
    asked.server.fault = lambda body, times: None
    assert asked() == asked.wanted()


@pytest.mark.parametrize("end", ["expired", "cancelled"])
def test_what_an_expired_batch_has_is_kept_and_the_rest_asked_again(asked, end):
    asked.server.ends = [end, end]
    assert asked() == asked.wanted()
    assert list(map(len, asked.server.requests())) == [5, 4, 3]
    assert set(asked.client.failures.values()) == {f"HTTP 500: {EXPIRED}"}


def test_a_failed_batch_ends_the_run_with_its_reason_and_the_next_run_sends_another(asked):
    asked.server.ends = ["failed"]
    assert asked.fails() == "batch batch-0 failed: too much for [key]"
    assert asked() == asked.wanted() and len(asked.server.batches) == 2


@pytest.mark.parametrize("code", ["token_limit_exceeded", "token_count"])
def test_a_batch_that_had_to_wait_for_others_is_sent_again(asked, monkeypatch, code):
    monkeypatch.setattr(batch, "MOST_REQUESTS", 3)
    asked.server.ends, asked.server.code = ["completed", "failed"], code
    if code == "token_limit_exceeded":
        assert asked() == asked.wanted()
        assert list(map(len, asked.server.requests())) == [3, 2, 2]
    else:
        assert asked.fails() == "batch batch-1 failed: too much for [key]"


def test_a_batch_that_had_nothing_to_wait_for_is_not_sent_for_ever(asked):
    asked.server.ends, asked.server.code = ["failed"] * 9, "token_limit_exceeded"
    assert asked.fails() == "batch batch-0 failed: too much for [key]"
    assert len(asked.server.batches) == 1


# Runs that end early


class Killed(BaseException):
    """What a signal does."""


def test_a_batch_that_was_started_but_not_noted_is_found_again(asked, monkeypatch):
    def killed(self):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Batches, "_save", killed)
        asked()
    assert len(asked.server.batches) == 1 and not (asked.folder / "batches.json").exists()
    assert asked() == asked.wanted()
    assert len(asked.server.batches) == 1 and max(asked.server.asked.values()) == 1


def test_a_batch_is_found_behind_many_others(asked):
    with pytest.raises(Killed):
        asked(say=kill_at("validating"))
    (asked.folder / "batches.json").unlink()
    for _ in range(5):  # of other folders
        asked.server.start("file-0", "/v1" + CHAT, "24h", {"janus_min": "another"})
    asked.server.page = 2
    assert asked() == asked.wanted() and len(asked.server.batches) == 6


@pytest.mark.parametrize("forget_files", [False, True])
def test_a_batch_whose_note_is_lost_is_found_again(asked, forget_files):
    with pytest.raises(Killed):
        asked(say=kill_at("in_progress"))
    replaced = asked.state() | {"batches": {}}
    (asked.folder / "batches.json").write_text(json.dumps(replaced))
    for path in asked.files() if forget_files else []:
        path.unlink()
    assert asked() == asked.wanted()
    assert len(asked.server.batches) == 1 and asked.files() == []


def kill_at(word: str) -> Callable[[str], None]:
    """Ends a run when it says a word."""

    def say(text: str) -> None:
        if word in text:
            raise Killed

    return say


def test_a_batch_that_was_not_noted_is_found_beside_others_that_change_what_is_missing(
    asked, monkeypatch
):
    """The first batch leaves a request unanswered, which then is missing together with those of
    the second one: another batch than was sent."""
    monkeypatch.setattr(batch, "MOST_REQUESTS", 3)
    asked.server.fault = lambda body, times: (
        500 if body["messages"][0]["content"] == "question 1" and not times else None
    )
    save = Batches._save

    def killed(self):
        if len(self.ids) == 2:
            raise Killed
        save(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Batches, "_save", killed)
        asked()
    assert len(asked.server.batches) == 2 and len(asked.state()["batches"]) == 1
    assert asked() == asked.wanted()
    assert list(map(len, asked.server.requests())) == [3, 2, 1]
    assert asked.server.asked == {request_of(n).key(): 1 + (n == 1) for n in range(5)}


def test_requests_that_were_written_but_not_sent_are_sent_once(asked):
    asked.server.instead = {"/files": (400, b'{"error": {"message": "no room"}}')}
    assert asked.fails() == f"{asked.server.url}/files: HTTP 400: no room"
    assert len(asked.files()) == 1
    asked.server.instead = {}
    asked.count = 6  # so that they go in another file
    assert asked() == asked.wanted()
    assert list(map(len, asked.server.requests())) == [6] and asked.files() == []


@pytest.mark.parametrize("status", ["in_progress", "finalizing", "completed"])
def test_a_killed_run_goes_on_with_the_batch_it_waited_for(asked, status):
    with pytest.raises(Killed):
        asked(say=kill_at(status))
    assert list(asked.state()["batches"].values()) == ["batch-0"]
    polled = asked.server.polls["batch-0"]
    assert asked() == asked.wanted()
    assert list(asked.server.batches) == ["batch-0"] and asked.server.polls["batch-0"] > polled


def test_a_run_that_was_killed_between_two_answers_keeps_each_once(asked, monkeypatch):
    add, left = Journal.add, [3]

    def killed(self, *arguments, **content):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        add(self, *arguments, **content)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Journal, "add", killed)
        asked()
    assert asked() == asked.wanted()
    assert asked.client.journal.lines == 5 and len(asked.server.batches) == 1


@pytest.mark.parametrize(
    "path",
    ["/batches", "/files", "/batches?limit=100", "/batches/batch-0", "/files/file-1/content"],
)
def test_an_answer_that_is_lost_starts_nothing_twice(asked, path):
    asked.server.lost = [path, path]
    assert asked() == asked.wanted()
    assert len(asked.server.batches) == 1 and asked.server.lost in ([], ["/batches"])


def test_a_server_that_comes_to_nothing_ends_the_run_with_one_line(asked):
    asked.server.lost = ["/files"] * batch.TRIES
    assert asked.fails().startswith(f"{asked.server.url}/files: ")
    assert asked.server.lost == [] and asked.server.batches == {}


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("/files", (404, b"Not Found"), "{url}/files: HTTP 404: Not Found"),
        ("/files", (401, b'{"error": "bad key %s"}' % KEY.encode()),
         "{url}/files: HTTP 401: bad key [key]"),
        ("/files", (200, b"<html>"), "{url}/files: no file or batch came back"),
        ("/batches", (200, b"{}"), "{url}/batches: no file or batch came back"),
        ("/batches?limit=100", (200, b"[]"), "{url}/batches?limit=100: no file or batch came back"),
        ("/batches/batch-0", (200, b"null"), "{url}/batches/batch-0: no file or batch came back"),
        ("/files/file-1/content", (200, b"<html>"),
         "a batch came back with lines that are no answers"),
        ("/files/file-1/content", (200, b'{"custom_id": "a", "response": {"status_code": 200}}'),
         "a batch came back with lines that are no answers"),
    ],
)  # fmt: skip
def test_what_no_batch_interface_would_answer_ends_the_run_with_one_line(
    asked, path, answer, message
):
    asked.server.instead = {path: answer}
    assert asked.fails() == message.replace("{url}", asked.server.url)
    with Journal(asked.folder / "calls.jsonl") as journal:  # is whole
        assert journal.lines == 0


# Money

PRICES = {"price_in": 0.0, "price_out": 100.0}  # 16 tokens of an answer: 0.0016 dollars at most


def test_a_batch_that_may_cost_too_much_is_not_sent(asked):
    message = asked.fails(**PRICES, max_cost=0.0079)
    assert message == (
        "--max-cost 0.0079: $0.0000 are spent, batches on their way may cost $0.0000, the next one "
        "$0.0080; all answers are kept, and the same command with a higher --max-cost goes on"
    )
    assert asked.server.batches == {} and asked.server.files == {}
    assert asked(**PRICES, max_cost=0.0081) == asked.wanted()
    assert asked.client.budget.spent == pytest.approx(20 * 1e-4)
    assert asked.client.budget.reserved == 0.0
    asked.count = 6  # 0.0020 dollars are spent now
    assert "$0.0020 are spent" in asked.fails(**PRICES, max_cost=0.0035)
    assert asked(**PRICES, max_cost=0.0037) == asked.wanted()


def test_batches_on_their_way_count_and_are_not_lost(asked, monkeypatch):
    monkeypatch.setattr(batch, "MOST_REQUESTS", 2)
    message = asked.fails(**PRICES, max_cost=0.005)
    assert (
        "$0.0000 are spent, batches on their way may cost $0.0032, the next one $0.0032" in message
    )
    assert list(map(len, asked.server.requests())) == [2]
    assert asked(**PRICES, max_cost=0.01) == asked.wanted()
    assert asked.server.asked == {request_of(n).key(): 1 for n in range(5)}


# Whole collections

OWN = ["Why does it rain?", "Write a poem about “ice”.", 'Say "{count}" in JSON.']
TAUGHT = list(dict.fromkeys(row["prompt"] for row in collection()))[::200]
STAGES = ("preferences", "systems", "responses")
MADE = [f"{name}{end}" for name in STAGES for end in (".jsonl", ".failed.jsonl")]
MADE += [f"{name}.jsonl" for name in ("instructions", *FILES)]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher()


@pytest.fixture
def build(tmp_path):
    (tmp_path / "seeds.json").write_text(json.dumps(world_hierarchy()))
    write_rows(tmp_path / "instructions.jsonl", [{"prompt": text} for text in OWN + TAUGHT])

    def run(name: str, server: BatchServer, limit: int | None = None, **more) -> dict[str, bytes]:
        """Builds a collection, and returns its files."""
        files = (tmp_path / "instructions.jsonl",), tmp_path / name, tmp_path / "seeds.json"
        connection = Connection(base_url=server.url, key_variable="TEST_KEY", workers=4)
        filters = Filters(near_duplicates=1.0, limit=limit)
        work = Work(Options(*files, differ=1, **more), filters, Sampling(model="m"), connection)
        build_collection(work, lambda text: None)
        return {file: (tmp_path / name / file).read_bytes() for file in MADE}

    return run


@pytest.fixture
def live(build, teacher):
    """The files of a build by single calls."""
    with BatchServer(teacher.reply) as server:
        files = build("live", server)
        assert server.batches == {} and server.chats == len(OWN + TAUGHT) * 7
    return files


def test_batches_build_what_single_calls_build(build, teacher, live):
    with BatchServer(teacher.reply) as server:
        assert build("batches", server, batch=True) == live
        assert server.chats == 0 and len(server.batches) == len(STAGES)
        assert sum(map(len, server.requests())) == len(OWN + TAUGHT) * 7
        assert build("batches", server, batch=True) == live  # and asks nothing more
        assert len(server.batches) == len(STAGES)
    assert live["responses.jsonl"].count(b"\n") == 3 * len(OWN + TAUGHT)


def test_batches_ask_only_for_what_single_calls_have_not_brought(build, teacher, live):
    with BatchServer(teacher.reply) as server:
        build("mixed", server, limit=4)
        assert server.chats == 4 * 7
        assert build("mixed", server, batch=True) == live
        rest = len(OWN + TAUGHT) - 4
        assert list(map(len, server.requests())) == [rest, 3 * rest, 3 * rest]
        assert server.chats == 4 * 7


def test_single_calls_wait_for_batches_on_their_way(build, teacher, live, monkeypatch):
    """What these bring is paid for."""

    def killed(self, content):
        raise Killed

    with BatchServer(teacher.reply) as server:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Batches, "_keep", killed)
            build("paid", server, batch=True)
        with pytest.raises(UserError, match="batches are on their way, which are paid for; go on"):
            build("paid", server)
        assert server.chats == 0
        assert build("paid", server, batch=True) == live and len(server.batches) == len(STAGES)


@pytest.mark.parametrize("attempts", [2, 3])
def test_replies_that_cannot_be_read_lead_to_other_rounds(build, teacher, live, attempts):
    """One instruction is understood at the second try, one never, and all others at once."""

    def answer(messages: list[dict]) -> str:
        if messages[0]["content"] == prompts.PREFERENCES_SYSTEM:
            if OWN[1] in messages[1]["content"]:
                return f"I would rather not say: {len(messages)}."
            if OWN[0] in messages[1]["content"] and len(messages) == 2:
                return "{"
        return teacher.reply(messages)

    with BatchServer(answer) as server:
        files = build("rounds", server, batch=True, attempts=attempts)
        sizes = list(map(len, server.requests()))
        total = len(OWN + TAUGHT)
        assert sizes[:attempts] == [total, 2, 1][:attempts] and len(sizes) == attempts + 2
        shown = [body["messages"][2]["content"] for body in server.requests()[1]]
        assert shown == ["{", "I would rather not say: 2."]
    [failed] = map(json.loads, files["preferences.failed.jsonl"].splitlines())
    assert failed["id"] == 1 and failed["reason"].startswith(f"after {attempts} attempts: no JSON")
    lines = live["preferences.jsonl"].splitlines()
    assert files["preferences.jsonl"].splitlines() == [lines[0], *lines[2:]]


def test_what_a_batch_did_not_answer_fails_with_its_reason_and_is_asked_for_next_time(
    build, teacher, live, tmp_path
):
    with BatchServer(teacher.reply) as server:
        server.fault = lambda body, times: 400 * (OWN[0] in body["messages"][1]["content"])
        with pytest.raises(UserError, match="without an answer: 1; the same command asks"):
            build("faults", server, batch=True)
        [failed] = rows_in(tmp_path / "faults" / "preferences.failed.jsonl")
        assert failed == {"id": 0, "unanswered": True, "reason": "HTTP 400: fault 400 for [key]"}
        server.fault = lambda body, times: None
        assert build("faults", server, batch=True) == live
        assert max(server.asked.values()) == 3  # the one that failed; all others once
        assert sorted(server.asked.values())[-2] == 1
