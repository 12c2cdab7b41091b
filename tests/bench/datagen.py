"""How fast the HTTP client is, what memory it takes, and how long a build takes to go on.

python -m tests.bench.datagen [--requests 200000] [--cached 197000]

The server runs in a process of its own, with 200 ms of latency and replies of 4 KB; 64 workers
could ideally get 320 replies a second. For memory, the latency is 20 ms, so that many requests
take minutes and not an hour.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from janus_min.client import Client, Connection, Request
from janus_min.collection import responses_stage
from janus_min.files import Writer
from janus_min.formats import read_jsonl
from janus_min.journal import Journal
from janus_min.pipeline import Folder, Pipeline, Sampling

TEXT = "word and " * 455  # 4 KB
WORKERS = 64


async def serve(latency: float) -> None:
    """Answers every request after `latency` seconds. Prints its port."""
    message = {"role": "assistant", "content": TEXT}
    body = {"choices": [{"message": message, "finish_reason": "stop"}]}
    body["usage"] = {"prompt_tokens": 200, "completion_tokens": 1000}
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = request.split(b"content-length:")[1].split(b"\r\n")[0]
                await reader.readexactly(int(length))
                await asyncio.sleep(latency)
                writer.write(head.encode() + b"\r\n\r\n" + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def resident() -> int:
    """MiB of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


def requests(count: int, latency: float, folder: Path) -> None:
    """Fetches so many replies; prints the rate, and the memory on the way."""
    command = [sys.executable, "-m", "tests.bench.datagen", "--serve", str(latency)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    memory = {}

    def jobs(journal: Journal):
        for number in range(count):
            message = {"role": "user", "content": f"{number} " + "word " * 200}
            request = Request({"model": "m", "messages": [message], "max_tokens": 1000})
            if number in (2_000, 20_000, 50_000, 100_000, count - 1):
                memory[number] = resident()
            yield lambda request=request: None if journal.get(request.key()) else request

    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        with Journal(folder / "calls.jsonl") as journal:
            client = Client(Connection(base_url=url, workers=WORKERS), journal)
            start = time.perf_counter()
            client.run(jobs(journal), count, "requests")
            seconds = time.perf_counter() - start
    finally:
        server.kill()
    ideal = WORKERS / latency
    print(
        f"{count:,} requests, {1000 * latency:.0f} ms: {count / seconds:.0f}/s, ideal {ideal:.0f}"
    )
    print("memory, MiB, after so many requests: " + str(memory))


def cached(count: int, folder: Path) -> None:
    """A stage whose replies are all in the journal: how long until its file is there."""
    stage, sampling = responses_stage(), Sampling(model="m")
    entry = {"dimension": "style", "subdimension": "tone", "preference": "warm words"}
    entry |= {"description": "A description of what such a user values. " * 4}
    writer = Writer(folder / "systems.jsonl")
    for number in range(count):
        record = {"id": number // 3, "set": number % 3, "main_source": "a", "original_source": "b"}
        record |= {"prompt": f"{number} " + "word " * 50, "preference_set": [entry] * 4}
        writer.add(record | {"system": "You are an assistant who cares. " * 25})
    writer.close()
    with Folder(folder, {}) as work:
        pipeline = Pipeline(work, sampling, Connection(), 3)
        for _, record in read_jsonl(writer.path):
            key = pipeline.outcome(stage, record).key()
            work.journal.add(key, (200, 1000), reply={"text": TEXT, "finish": "stop"})
    size = (folder / "calls.jsonl").stat().st_size >> 20
    start = time.perf_counter()
    with Folder(folder, {}) as work:
        opened = time.perf_counter() - start
        Pipeline(work, sampling, Connection(), 3).run(stage, writer.path)
    seconds = time.perf_counter() - start
    print(f"{count:,} cached replies, {size} MiB: {seconds:.1f} s, {opened:.1f} s of it to open")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=float)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--cached", type=int, default=197_000)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        asyncio.run(serve(arguments.serve))
        return
    print(f"machine: {os.cpu_count()} CPUs")
    for work in (
        lambda folder: requests(6_000, 0.2, folder),
        lambda folder: cached(arguments.cached, folder),
        lambda folder: requests(arguments.requests, 0.02, folder),
    ):
        with tempfile.TemporaryDirectory() as name:
            work(Path(name))


if __name__ == "__main__":
    main()
