"""Files of what was paid for: torn, damaged, full disks, a second program, a great many lines."""

import errno
import json
import os
import random
import threading
import time

import pytest

from janus_min.errors import UserError
from janus_min.journal import Journal

TEXTS = ("plain", "비가 온다 🌧️", "a \ud83d lone surrogate", "line\nbreak \u2028 \r \x00", "")


def key(number):
    return f"{number:016x}{0:016x}"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "replies.jsonl"


def write(path, count=3):
    with Journal(path) as journal:
        for number in range(count):
            journal.add(key(number), (number, 2), reply={"text": f"비 {number} 🌧️"})
    return path.read_bytes()


def texts(path):
    """All that is kept: key -> text."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    return {line["key"]: line["reply"]["text"] for line in lines}


def test_what_is_added_is_found_now_and_later(path):
    """Hangul, emoji and what no encoding has."""
    with Journal(path) as journal:
        for number, text in enumerate(TEXTS):
            journal.add(key(number), (10, number), reply={"text": text})
        journal.add("", (7, 0), failed=key(99), reason="empty")
        now = [journal.get(key(number)) for number in range(len(TEXTS))]
        assert journal.get(key(99)) is None and journal.tokens == [57, 10]
    with Journal(path) as journal:
        assert [journal.get(key(number)) for number in range(len(TEXTS))] == now
        assert journal.tokens == [57, 10] and journal.lines == 6 and journal.get(key(99)) is None
    whole = [text.replace("\ud83d", "?") for text in TEXTS]
    assert [line["reply"]["text"] for line in now] == whole
    assert "비가 온다 🌧️" in path.read_text(encoding="utf-8")


def test_of_two_lines_with_one_key_the_newer_counts(path):
    with Journal(path) as journal:
        journal.add(key(1), (1, 1), reply={"text": "old"})
        journal.add(key(1), (1, 1), reply={"text": "new"})
        assert journal.get(key(1))["reply"]["text"] == "new"
        half = key(1)[:16] + "f" * 16  # the index knows half of a key
        assert journal.get(half) is None
    with Journal(path) as journal:
        assert journal.get(key(1))["reply"]["text"] == "new"


def test_a_torn_tail_is_taken_away(path):
    """The file is cut at each of its last 60 bytes, and the line is then written again."""
    whole = write(path)
    start = whole.rindex(b"\n", 0, -1) + 1
    assert len(whole) - start > 62
    for cut in range(1, 61):
        path.write_bytes(whole[:-cut])
        with Journal(path) as journal:
            kept = cut == 1  # all but the line break: nothing is missing
            assert journal.lines == 2 + kept and (journal.get(key(2)) is not None) == kept
            assert path.read_bytes() == (whole if kept else whole[:start])
            if not kept:
                journal.add(key(2), (2, 2), reply={"text": "비 2 🌧️"})
        assert path.read_bytes() == whole
    path.write_bytes(whole + b"\0" * 300)  # as after a power failure
    write_again = Journal(path)
    write_again.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "garbage", [b"garbage\n", b"\n", b'{"key": "x"}\n', b'{"key": "", "tokens": [1, 2], "x\n']
)
def test_garbage_in_the_middle_is_an_error(path, garbage):
    """With the file and the line, and nothing is changed."""
    lines = write(path).splitlines(keepends=True)
    path.write_bytes(lines[0] + garbage + lines[1])
    before = path.read_bytes()
    for _ in range(2):  # it is not held on to, either
        with pytest.raises(UserError, match=f"^{path}:2: damaged line; .* mend or remove") as error:
            Journal(path)
        assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_a_line_that_is_damaged_within_is_an_error_when_it_is_asked_for(path):
    whole = write(path)
    path.write_bytes(whole.replace(b'"text": "\xeb\xb9\x84 1', b'"text":, "\xeb\xb9\x84 1'))
    with Journal(path) as journal:
        start = whole.index(b"\n") + 1
        assert journal.get(key(0)) and journal.get(key(2)) is not None
        with pytest.raises(UserError, match=f"^{path}, byte {start}: damaged line"):
            journal.get(key(1))


def test_a_file_that_shrinks_while_it_is_open_is_an_error(path):
    with Journal(path) as journal:
        journal.add(key(1), (1, 1), reply={"text": "x"})
        os.truncate(path, 10)
        with pytest.raises(UserError, match="was cut short while it was in use"):
            journal.get(key(1))


def test_one_program_at_a_time(path):
    write(path)
    with Journal(path):
        with pytest.raises(UserError, match=f"^{path} is in use: another program works"):
            Journal(path)
    Journal(path).close()


def test_nothing_is_written_after_the_end(path):
    whole = write(path)
    journal = Journal(path)
    journal.close()
    journal.add(key(5), (1, 1), reply={"text": "late"})
    journal.close()
    assert path.read_bytes() == whole


def test_a_full_disk_leaves_whole_lines(path, monkeypatch):
    """Half of a line is written, then there is no space."""
    whole = write(path)
    write_really = os.write

    def write_half(descriptor, data):
        if len(data) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_really(descriptor, data[: len(data) // 2])

    with Journal(path) as journal:
        monkeypatch.setattr(os, "write", write_half)
        with pytest.raises(OSError, match="No space left"):
            journal.add(key(3), (1, 1), reply={"text": "x" * 100})
        monkeypatch.undo()
        assert path.read_bytes() == whole
        assert journal.get(key(3)) is None and journal.tokens == [3, 6]
        journal.add(key(4), (1, 1), reply={"text": "there is space again"})
        assert journal.get(key(4))["reply"]["text"] == "there is space again"
    assert len(texts(path)) == 4


def test_a_write_in_several_pieces_is_one_line(path, monkeypatch):
    """The system may take less than it is given; other threads must wait."""
    write_really = os.write
    with Journal(path) as journal:
        barrier = threading.Barrier(4)

        def write_little(descriptor, data):
            time.sleep(0)  # another thread's turn
            return write_really(descriptor, bytes(data[:7]))

        monkeypatch.setattr(os, "write", write_little)

        def work(first):
            barrier.wait()
            for number in range(first, first + 25):
                journal.add(key(number), (1, 1), reply={"text": str(number)})

        threads = [threading.Thread(target=work, args=(25 * n,)) for n in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        monkeypatch.undo()
        assert all(journal.get(key(n))["reply"]["text"] == str(n) for n in range(100))
    assert texts(path) == {key(n): str(n) for n in range(100)}


def test_long_lines_are_read_whole(path):
    with Journal(path) as journal:
        for size in (16000, 16384, 50000):
            journal.add(key(size), (1, 1), reply={"text": "비" * size})
        for size in (16000, 16384, 50000):
            assert len(journal.get(key(size))["reply"]["text"]) == size


def test_many_lines_with_keys_in_any_order(path):
    """Each key is found, before and after it is sorted in, and none that is not there."""
    chance = random.Random(0)
    keys = [f"{chance.getrandbits(128):032x}" for _ in range(6000)]
    keys += ["0" * 32, "f" * 32, "7" + "f" * 31, "8" + "0" * 31]  # the ends, and the sign bit
    strangers = [f"{chance.getrandbits(128):032x}" for _ in range(2000)]
    with Journal(path) as journal:
        for number, one in enumerate(keys):
            journal.add(one, (1, 0), n=number)
            if number in (10, 4095, 4096, 4097, 4098):
                assert [journal.get(k)["n"] for k in keys[: number + 1 : 9]] == list(
                    range(0, number + 1, 9)
                )
        assert len(journal.index.keys) > 4096 and journal.index.recent
        journal.add(keys[3], (1, 0), n=-3)
    with Journal(path) as journal:
        assert journal.get(keys[3])["n"] == -3
        keys[3] = keys[0]
        assert all(journal.get(one)["n"] == n for n, one in enumerate(keys) if n != 3)
        assert not any(journal.get(one) for one in strangers)
        assert journal.tokens == [6005, 0]


def test_the_index_is_small(path):
    """A million lines must not take the memory of a small model: 16 bytes each, and a rest."""
    index = Journal(path).index
    chance = random.Random(0)
    for number in range(200_000):
        index.add(chance.getrandbits(64), number)
    arrays = index.keys.nbytes + index.starts.nbytes
    assert arrays == 16 * len(index.keys) and len(index.keys) + len(index.recent) == 200_000
    assert len(index.recent) <= 4096 + len(index.keys) // 16
    assert arrays + 120 * len(index.recent) < 200_000 * 32
