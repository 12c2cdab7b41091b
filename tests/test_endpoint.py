"""One connection against a server that misbehaves: deadlines, redirects, keys, endless bodies."""

import json
import shutil
import ssl
import subprocess
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import pytest
import requests

from janus_min.endpoint import LARGEST_BODY, Answer, Endpoint, NoAnswerError
from janus_min.errors import UserError
from janus_min.verdicts import judge_status
from tests.servers import ENDLESS, KEY, ChatServer, Reply, chat, error

CHAT = "/chat/completions"
BODY = json.dumps({"messages": [{"role": "user", "content": "Rain?"}]}).encode()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


def line_to(url):
    return Endpoint(url, "TEST_KEY").line()


def text_of(answer):
    return json.loads(answer.body)["choices"][0]["message"]["content"]


def nobody():
    """A URL on this machine where nobody listens."""
    with ChatServer() as server:
        pass
    return server.url


# Deadlines


def cut_twice(how, headers):
    """A slow answer, a good one, and both again: the times of the slow ones, and their reasons."""
    slow, times, reasons = Reply(200, chat("slow"), headers, how), [], []
    with ChatServer(script=[slow, None, slow, None, Reply(how="reset")]) as server:
        line = line_to(server.url)
        for _ in range(2):
            start = time.monotonic()
            with pytest.raises(NoAnswerError) as caught:
                line.send(CHAT, 0.45, BODY)
            times.append(time.monotonic() - start)
            reasons.append((str(caught.value), caught.value.again))
            assert text_of(line.send(CHAT, 5, BODY)) == "answer to Rain?"
        with pytest.raises(NoAnswerError, match="Connection reset"):  # late is only who is late
            line.send(CHAT, 5, BODY)
    return times, reasons


def test_a_slow_answer_is_cut_at_the_deadline():
    """Although bytes keep coming; the next request on the same line is answered."""
    endless = (("content-length", ""),)  # the end of the body is the end of the connection
    cases = [(how, h) for how in ("drip", "drip headers", "hang") for h in ((), endless)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda case: cut_twice(*case), cases))
    for case, (times, reasons) in zip(cases, results):
        assert reasons == [("no answer within 0.45 seconds", True)] * 2, case
        assert all(0.4 <= seconds < 0.95 for seconds in times), case


def test_an_answer_that_takes_most_of_its_time_is_not_cut():
    with ChatServer(script=[Reply(200, chat("slow"), wait=0.6)] * 2) as server:
        line = line_to(server.url)
        assert text_of(line.send(CHAT, 1.0, BODY)) == "slow"
        assert text_of(line.send(CHAT, 1.0, BODY)) == "slow"  # has a second of its own


def test_a_deadline_cuts_nothing_when_its_request_is_over():
    """The same connection goes on, whatever the watchdog's clock says in between."""
    with ChatServer() as server:
        line = line_to(server.url)
        for _ in range(3):
            line.send(CHAT, 5, BODY)
            line.cut_after(time.monotonic() + 1000)
            line.cut_after(0)
        assert len({seen.client for seen in server.requests}) == 1


def test_a_deadline_never_cuts_the_next_request():
    """Answers that come just when their time is over, with a watchdog that never sleeps."""
    waits = cycle([0.0, 0.008, 0.009, 0.01, 0.011, 0.012, 0.05])
    ended, outcomes = threading.Event(), set()

    def script(seen):
        late = seen.headers.get("x-late")
        return Reply(200, chat("late"), wait=next(waits)) if late else None

    with ChatServer(script=script) as server:
        line = line_to(server.url)

        def watch():
            while not ended.is_set():
                line.cut_after(time.monotonic())
                time.sleep(0)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            for _ in range(100):
                line.session.headers["x-late"] = "1"
                try:
                    outcomes.add(text_of(line.send(CHAT, 0.012, BODY)))
                except NoAnswerError as caught:
                    outcomes.add(str(caught))
                line.session.headers.pop("x-late", None)
                assert text_of(line.send(CHAT, 30, BODY)) == "answer to Rain?"
        finally:
            ended.set()
            thread.join()
    assert {"late", "no answer within 0.012 seconds"} <= outcomes


def test_requests_on_their_way_can_be_ended():
    with ChatServer(script=[Reply(how="hang")]) as server:
        line = line_to(server.url)
        threading.Timer(0.3, line.endpoint.cut).start()
        start = time.monotonic()
        with pytest.raises(NoAnswerError, match="no answer within 30 seconds"):
            line.send(CHAT, 30, BODY)
        assert time.monotonic() - start < 5


def test_deadlines_and_the_key_over_tls(tmp_path, monkeypatch):
    """As on the way to a real server, whose certificate is checked."""
    openssl = shutil.which("openssl") or pytest.skip("needs openssl to make a certificate")
    names = ["-subj", "/CN=127.0.0.2", "-addext", "subjectAltName=IP:127.0.0.2"]
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    slow = [Reply(200, chat("slow"), how=how) for how in ("drip", "drip headers", "hang")]
    script = [slow[0], None, slow[1], None, slow[2], None, None]
    with ChatServer(script=script, host="127.0.0.2", tls=context) as server:
        with pytest.raises(NoAnswerError, match="certificate verify failed"):
            line_to(server.url).send(CHAT, 5, BODY)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert.pem"))
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.2 login mallory password other\n")
        monkeypatch.setenv("NETRC", str(netrc))
        line = line_to(server.url)
        for _ in range(3):
            start = time.monotonic()
            with pytest.raises(NoAnswerError, match=r"no answer within 0.5 seconds"):
                line.send(CHAT, 0.5, BODY)
            assert time.monotonic() - start < 5
            assert text_of(line.send(CHAT, 5, BODY)) == "answer to Rain?"
        line.send(CHAT, 5, BODY)
        assert server.requests[-1].client == server.requests[-2].client
    assert {seen.headers["authorization"] for seen in server.requests} == {f"Bearer {KEY}"}


# Answers that are none


@pytest.mark.parametrize(
    ("how", "reason"),
    [("reset", "Connection reset by peer"), ("half", "incomplete|IncompleteRead")],
)
def test_broken_answers(how, reason):
    with ChatServer(script=[Reply(200, chat("half an answer"), how=how), None]) as server:
        line = line_to(server.url)
        with pytest.raises(NoAnswerError, match=reason) as caught:
            line.send(CHAT, 5, BODY)
        assert caught.value.again
        assert text_of(line.send(CHAT, 5, BODY)) == "answer to Rain?"


def test_nobody_there():
    start = time.monotonic()
    with pytest.raises(NoAnswerError, match=r"^Connection refused$") as caught:
        line_to(nobody()).send(CHAT, 5, BODY)
    assert caught.value.again and time.monotonic() - start < 5


def test_an_endless_body_is_refused():
    """And never held in memory."""
    with ChatServer(script=[Reply(how="endless"), None]) as server:
        line = line_to(server.url)
        tracemalloc.start()
        with pytest.raises(NoAnswerError, match="an answer of more than 32 MiB") as caught:
            line.send(CHAT, 20, BODY)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert not caught.value.again and peak < 1.3 * LARGEST_BODY < ENDLESS
        assert text_of(line.send(CHAT, 5, BODY)) == "answer to Rain?"


def test_the_body_of_a_redirect_is_bounded_too():
    """`requests` would read all of it, to see whether it should follow."""
    reply = Reply(302, headers=(("Location", "/v2"),), how="endless")
    with ChatServer(script=[reply]) as server:
        tracemalloc.start()
        with pytest.raises(NoAnswerError, match="an answer of more than 32 MiB"):
            line_to(server.url).send(CHAT, 20, BODY)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1.3 * LARGEST_BODY


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    """To another port; no key goes there, and no request."""
    with ChatServer() as other:
        target = (("Location", f"{other.url}{CHAT}"),)
        with ChatServer(script=[Reply(status, b"moved", target), None]) as server:
            line = line_to(server.url)
            answer = line.send(CHAT, 5, BODY)
            assert answer.status == status and answer.body == b"moved"
            line.send(CHAT, 5, BODY)
        assert other.requests == [] and len(server.requests) == 2


@pytest.mark.parametrize("location", ["http://[", "//", "http://\udcff", "", "x" * 10000])
def test_strange_redirects_are_answers_like_others(location):
    target = (("Location", location.encode("utf-8", "replace").decode()),)
    with ChatServer(script=[Reply(302, b"moved", target)]) as server:
        assert line_to(server.url).send(CHAT, 5, BODY).status == 302


# Keys


def test_the_key_is_in_the_header_and_nowhere_else():
    with ChatServer() as server:
        line = line_to(server.url)
        line.send(CHAT, 5, BODY)
    [seen] = server.requests
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.path == f"/v1{CHAT}" and seen.headers["content-type"] == "application/json"
    assert seen.body == json.loads(BODY)
    for thing in (line, line.endpoint, line.session, line.adapter):
        assert KEY not in repr(thing) and KEY not in str(thing)


def test_other_methods_and_forms():
    """What files of batches need: GET, and a form with a file."""
    with ChatServer(answer=lambda body, seen: Reply(200, {"id": 1})) as server:
        line = line_to(server.url)
        assert line.send("/batches", 5, method="GET").status == 200
        line.send("/files", 5, data={"purpose": "batch"}, files={"file": ("x.jsonl", b"{}")})
    get, form = server.requests
    assert get.path == "/v1/batches" and get.headers["authorization"] == f"Bearer {KEY}"
    assert b'name="purpose"' in form.body and b"x.jsonl" in form.body


def test_netrc_does_not_replace_the_key(tmp_path, monkeypatch):
    """Neither for this machine nor for others; and it is no key either."""
    netrc = tmp_path / ".netrc"
    netrc.write_text(
        "machine 127.0.0.1 login mallory password other\n"
        "machine api.example.com login mallory password other\n"
    )
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert requests.utils.get_netrc_auth("http://127.0.0.1/v1") == ("mallory", "other")
    with ChatServer() as server:
        line_to(server.url).send(CHAT, 5, BODY)
        monkeypatch.delenv("TEST_KEY")
        line_to(server.url).send(CHAT, 5, BODY)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in server.requests[1].headers
    monkeypatch.setenv("TEST_KEY", KEY)
    url = "https://api.example.com/v1"
    prepared = line_to(url).session.prepare_request(requests.Request("POST", url))
    assert prepared.headers["Authorization"] == f"Bearer {KEY}"


def test_what_a_server_says_is_one_short_line_without_the_key():
    endpoint = Endpoint("http://127.0.0.1:1/v1", "TEST_KEY")
    said = endpoint.redact(f" Wrong key\n\t{KEY}{KEY}!" + " more" * 1000)
    assert said.startswith("Wrong key [key][key]! more") and len(said) < 310 and "\n" not in said


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1",
        "http://localhost:8000/v1/",
        "http://LOCALHOST/v1",
        "http://[::1]:8000/v1",
        "https://api.example.com/v1",
        "HTTPS://api.example.com",
    ],
)
def test_urls_that_may_be_used(url):
    endpoint = Endpoint(url, "TEST_KEY")
    assert endpoint.url == url.rstrip("/") and endpoint.local == ("example" not in url)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",
        "http://127.0.0.1.example.com/v1",
        "http://localhost.example.com",
        "http://10.0.0.1/v1",
        "http://[::2]/v1",
    ],
)
def test_keys_do_not_travel_in_the_clear(url):
    with pytest.raises(UserError, match="readable by all; https is needed unless") as caught:
        Endpoint(url, "TEST_KEY")
    assert url in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.example.com/v1",
        "ftp://api.example.com/v1",
        "file:///etc/passwd",
        "https://",
        "https:///v1",
        "http://[::1",
        "https://api.example.com:port/v1",
        "https://api.example.com:99999/v1",
        "https://api.example.com/v1?key=PASSWORD",
        "https://api.example.com/v1#PASSWORD",
        "https://user:PASSWORD@api.example.com/v1",
        "https://PASSWORD@api.example.com/v1",
        "https://:PASSWORD@api.example.com/v1",
        "http://:PASSWORD@api.example.com/v1",
        "https://user:first@PASSWORD@api.example.com/v1",
        "https://user:first/PASSWORD@api.example.com/v1",
        "http://localhost@PASSWORD@api.example.com/v1",
        "user:PASSWORD@api.example.com/v1",
        "//user:PASSWORD@api.example.com/v1",
    ],
)
def test_urls_that_may_not_be_used(url):
    """Said without the secrets in them."""
    with pytest.raises(UserError, match=r"^--base-url is .*, must be like https://") as caught:
        Endpoint(url, "TEST_KEY")
    assert "PASSWORD" not in str(caught.value) and "user" not in str(caught.value)[:40]


def test_a_missing_key_is_named(monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    for nothing in (None, "", "  \n"):
        if nothing is not None:
            monkeypatch.setenv("TEST_KEY", nothing)
        with pytest.raises(UserError, match=r"^no key: set the environment variable TEST_KEY$"):
            Endpoint("https://api.example.com/v1", "TEST_KEY")
        Endpoint("http://localhost/v1", "TEST_KEY")  # servers on this machine want none


@pytest.mark.parametrize("bad", ["sk-SECRET\nX-Header: 1", "sk-SECRET-ключ", "sk-\x7fSECRET"])
def test_a_key_that_no_header_may_have(bad, monkeypatch):
    monkeypatch.setenv("TEST_KEY", bad)
    with pytest.raises(UserError, match=r"^the key in TEST_KEY has characters that no") as caught:
        Endpoint("https://api.example.com/v1", "TEST_KEY")
    assert "SECRET" not in str(caught.value)
    monkeypatch.setenv("TEST_KEY", f" {KEY}\n")  # as files of keys end
    Endpoint("https://api.example.com/v1", "TEST_KEY")


def test_an_error_with_the_key_in_it_is_told_without():
    """Wherever in the body of an error the key is."""
    endpoint = Endpoint("http://127.0.0.1:1/v1", "TEST_KEY")
    for spaces in range(0, 1200, 7):
        body = b"you sent " + b" " * spaces + KEY.encode()
        for answer in (
            Answer(500, {}, body),
            Answer(500, {}, json.dumps(error(body.decode())).encode()),
        ):
            assert endpoint.redact(judge_status(answer).reason) == "HTTP 500: you sent [key]"


def test_behind_a_proxy_sockets_are_watched_once(monkeypatch):
    """`requests` asks for the proxy's manager with every request."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    line = Endpoint("https://example.com/v1", "OPENAI_API_KEY").line()
    for _ in range(3):
        manager = line.adapter.proxy_manager_for("http://127.0.0.1:9")
    pools = manager.pool_classes_by_scheme["https"].__mro__
    assert [pool.__name__ for pool in pools].count("HTTPSConnectionPool") == 2
