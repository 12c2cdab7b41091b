"""The chat: what is sent after each command, and text that comes token by token."""

import errno
import os
import pty
import random
import select
import subprocess
import sys
import time
from io import BytesIO, TextIOWrapper

import pytest

from janus_min import conversation
from janus_min.conversation import (
    HELP,
    TextStream,
    converse,
    prepare_terminal,
    read_terminal,
    seed_of,
)
from janus_min.engine import Request, stream
from janus_min.sampling import Sampling
from janus_min.tokenizer import BOS, EOS, Tokenizer
from tests.conftest import tiny_policy
from tests.programs import environment

GREETING = "/help shows the commands, Ctrl-D ends\n"


class Stub:
    """A model that says what it is told to. An exception among the ids is raised there."""

    def __init__(self, *answers, stop="eos"):
        self.answers, self.stop = list(answers), stop
        self.prompts, self.seeds, self.open = [], [], 0
        self.streams = []  # kept, so that nothing but `close` ends them

    def __call__(self, prompt, seed):
        self.prompts.append(prompt)
        self.seeds.append(seed)
        self.streams.append(self._tokens(self.answers.pop(0)))
        return self.streams[-1]

    def _tokens(self, ids):
        self.open += 1
        try:
            for token in ids:
                if isinstance(token, BaseException):
                    raise token
                yield token
        finally:
            self.open -= 1
        return self.stop


@pytest.fixture
def tokenizer(world):
    return Tokenizer(world)


def reader(*lines):
    """Reads these lines, then the end. An exception among them is raised there."""
    waiting = iter([*lines, EOFError()])

    def read_line():
        line = next(waiting)
        if isinstance(line, BaseException):
            raise line
        return line

    return read_line


@pytest.fixture
def chat(tokenizer):
    """Has lines read. Returns the conversation and what was written."""

    def chat(model, *lines, system=None, context=200, **more):
        written = []
        found = converse(model, tokenizer, context, system, reader(*lines), written.append, **more)
        return found, "".join(written)

    return chat


@pytest.fixture
def ids(tokenizer):
    """Ids of a text, or of several that are encoded apart, without BOS and EOS."""
    return lambda *texts: [token for own in tokenizer.encode(list(texts)) for token in own]


# What is sent


def test_the_history_is_sent_as_in_training(chat, ids):
    """BOS once, the system message in the first turn alone, EOS after each answer."""
    stub = Stub(ids("Water falls."), ids("Yes."), ids("No."))
    found, text = chat(stub, "What is rain?", "Is it wet?", " Dry? ", system="Be brief.")
    first = [BOS, *ids("[INST] Be brief.\nWhat is rain? [/INST]")]
    second = [*first, *ids("Water falls."), EOS, *ids("[INST] Is it wet? [/INST]")]
    third = [*second, *ids("Yes."), EOS, *ids("[INST] Dry? [/INST]")]
    assert stub.prompts == [first, second, third]
    assert text == f"{GREETING}Water falls.\n\nYes.\n\nNo.\n\n\n"
    assert [(t.said, t.answer, t.stop) for t in found.turns] == [
        ("What is rain?", "Water falls.", "eos"),
        ("Is it wet?", "Yes.", "eos"),
        ("Dry?", "No.", "eos"),
    ]


@pytest.mark.parametrize("none", [None, ""])
def test_without_a_system_message(chat, ids, none):
    stub = Stub(ids("Water."))
    _, text = chat(stub, "What is rain?", "/system", system=none)
    assert stub.prompts == [[BOS, *ids("[INST] What is rain? [/INST]")]]
    assert "there is no system message\n" in text


def test_a_new_system_message_holds_for_the_whole_history(chat, ids):
    stub = Stub(*[ids("Water.")] * 4)
    lines = ["Rain?", "/system Be a poet.", "/system", "Snow?", "/system -", "Ice?"]
    found, text = chat(stub, *lines, '/system ""', "Fog?", system="Be brief.")
    asked = [ids(f"[INST] {name}? [/INST]") for name in ("Rain", "Snow", "Ice", "Fog")]
    answer = [*ids("Water."), EOS]
    poet = [BOS, *ids("[INST] Be a poet.\nRain? [/INST]"), *answer, *asked[1]]
    bare = [BOS, *asked[0], *answer, *asked[1], *answer, *asked[2]]
    assert stub.prompts[1:] == [poet, bare, [*bare, *answer, *asked[3]]]
    assert text.count("the system message is: Be a poet.\n") == 2
    assert text.count("there is no system message\n") == 2 and found.system is None


def test_reset_forgets_the_turns_and_keeps_the_system_message(chat, ids):
    stub = Stub(ids("Water."), ids("Ice."))
    found, text = chat(stub, "Rain?", "/reset", "Snow?", system="Be brief.")
    assert stub.prompts[1] == [BOS, *ids("[INST] Be brief.\nSnow? [/INST]")]
    assert "the turns are forgotten, the system message stays\n" in text
    assert [turn.said for turn in found.turns] == ["Snow?"]


def test_other_lines(chat, ids):
    stub = Stub(ids("A place."))
    lines = ["", "  ", "/help", "/hlep me", "/", "/reset all", "/quit now", " /home is what?"]
    _, text = chat(stub, *lines, "/quit", "not read")
    assert HELP in text and all(f"\n{name}" in "\n" + HELP for name in ("/system", "/quit"))
    for line in ("/hlep me", "/", "/reset all", "/quit now"):
        said = f"no such command: {line} (/help shows all; a message may begin with a space)\n"
        assert text.count(said) == 1
    assert stub.prompts == [[BOS, *ids("[INST] /home is what? [/INST]")]]
    assert text.endswith("A place.\n\n")  # nothing after /quit


def test_text_that_is_no_unicode_is_refused(chat, ids):
    stub = Stub(ids("Water."))
    found, text = chat(stub, "\udcff", "/system \udcff", "Rain?")
    assert text.count("the line holds a lone surrogate, which is no Unicode text\n") == 2
    assert found.system is None and len(stub.prompts) == 1


# Ends


def test_an_answer_that_is_cut_stays_as_far_as_it_came(chat, ids):
    water = ids("Water falls.")
    stub = Stub([*water, KeyboardInterrupt(), 9], ids("Yes."))
    found, text = chat(stub, "Rain?", "Wet?")
    assert "Water falls.\n(cut; the answer so far stays in the history)\n\nYes.\n\n" in text
    first = [BOS, *ids("[INST] Rain? [/INST]"), *water, EOS]
    assert stub.prompts[1] == [*first, *ids("[INST] Wet? [/INST]")]
    assert [turn.stop for turn in found.turns] == ["cut", "eos"] and stub.open == 0


def test_an_answer_that_is_cut_before_its_first_word_is_forgotten(chat, ids):
    stub = Stub([KeyboardInterrupt()], ids("Yes."))
    found, text = chat(stub, "Rain?", "Wet?")
    assert "(cut before its first word, this turn is forgotten)\n" in text
    assert stub.prompts[1] == [BOS, *ids("[INST] Wet? [/INST]")] and len(found.turns) == 1


def test_an_interrupt_while_writing_ends_the_answer_too(tokenizer, ids):
    """The stream is closed, so that whoever computes it can clean up."""
    stub, written = Stub(ids("Water falls.")), []

    def write(text):
        written.append(text)
        if len(written) == 3:  # the greeting and two pieces
            raise KeyboardInterrupt

    found = converse(stub, tokenizer, 200, None, reader("Rain?"), write)
    assert [turn.stop for turn in found.turns] == ["cut"] and stub.open == 0
    assert found.turns[0].answer == "".join(written[1:3]) != "Water falls."


@pytest.mark.parametrize("cut", [True, False])
def test_half_a_letter_is_no_part_of_a_cut_answer(mistral_tokenizer, cut):
    """What is shown is what is kept. An answer that ends there itself has U+FFFD for each byte."""
    tokens = mistral_tokenizer.encode(["So 🦩"])[0][:-1]
    written = []
    stub = Stub([*tokens, KeyboardInterrupt()] if cut else tokens)
    found = converse(stub, mistral_tokenizer, 200, None, reader("Hi"), written.append)
    wanted = "So " if cut else mistral_tokenizer.decode(tokens)
    assert wanted.count("\ufffd") == (0 if cut else 3)
    assert found.turns[0].answer == wanted and "".join(written[1:]).startswith(f"{wanted}\n")


def test_an_answer_of_the_longest_length_is_said_to_be_cut(chat, ids):
    found, text = chat(Stub(ids("Water."), stop="length"), "Rain?")
    assert text == f"{GREETING}Water.\n(cut at --max-tokens or by the context)\n\n\n"
    assert found.turns[0].stop == "length"


def test_an_empty_answer_is_an_answer(chat, ids):
    stub = Stub([], ids("Yes."))
    chat(stub, "Rain?", "Wet?")
    assert stub.prompts[1] == [
        BOS, *ids("[INST] Rain? [/INST]"), EOS, *ids("[INST] Wet? [/INST]"),
    ]  # fmt: skip


def test_a_turn_that_does_not_fit_is_refused_and_the_chat_goes_on(chat, ids):
    first = len(ids("[INST] Rain? [/INST]")) + 1
    stub = Stub(ids("Water."), ids("Yes."))
    found, text = chat(stub, "Rain?", "Wet?", "/reset", "Rain?", context=first + 1)
    tokens = first + len(ids("Water.")) + 1 + len(ids("[INST] Wet? [/INST]"))
    said = f"this makes {tokens} tokens, the model's context is {first + 1}: "
    assert f"{said}/reset forgets the turns\n" in text
    assert stub.prompts[0] == stub.prompts[1] and len(found.turns) == 1
    found, text = chat(stub, "Rain?", context=first)
    assert f"this makes {first} tokens, the model's context is {first}: shorten it\n" in text
    assert found.turns == [] and len(stub.prompts) == 2


@pytest.mark.parametrize("end", [EOFError(), KeyboardInterrupt()])
def test_ctrl_d_and_ctrl_c_at_the_prompt_end_the_chat(chat, end):
    found, text = chat(Stub(), end, "not read")
    assert text == GREETING + "\n" and found.turns == []


def test_other_errors_are_not_swallowed(chat):
    with pytest.raises(ZeroDivisionError):
        chat(Stub([ZeroDivisionError()]), "Rain?")


# Seeds


def test_a_seed_depends_on_the_conversation_and_the_base_seed(chat, ids):
    lines = ("Rain?", "Rain?", "/reset", "Rain?", "/system Be.", "Rain?")
    stubs = [Stub(*[ids("Yes.")] * 4) for _ in range(3)]
    for stub, seed in zip(stubs, (0, 0, 1)):
        chat(stub, *lines, seed=seed)
    one, same, other = (stub.seeds for stub in stubs)
    assert one == same and not set(one) & set(other)
    assert one[0] == one[2] and len(set(one)) == 3
    assert one == [seed_of(0, prompt) for prompt in stubs[0].prompts]


def test_a_real_model_answers_the_same_again(chat, tokenizer, ids):
    """Its own tokens come back as history, through their text."""
    policy = tiny_policy(vocab_size=2048, max_position_embeddings=200)
    asked = []

    def answer(prompt, seed):
        asked.append(prompt)
        return stream(policy, Request(prompt, seed), Sampling(max_tokens=12))

    lines = ("Rain?", "And tea?", "/system Be a poet.", "And snow?")
    first, second = (chat(answer, *lines, system="Be brief.") for _ in range(2))
    assert first[1] == second[1] and asked[:3] == asked[3:]
    assert len({turn.answer for turn in first[0].turns}) == 3
    for turn in first[0].turns:
        assert turn.answer in first[1]
    again = [*ids(first[0].turns[0].answer), EOS, *ids("[INST] And tea? [/INST]")]
    assert asked[1] == asked[0] + again
    assert chat(answer, *lines, system="Be brief.", seed=1)[1] != first[1]


# Text while it comes


def pieces_of(tokenizer, tokens):
    text = TextStream(tokenizer)
    return [*(text.add(token) for token in tokens), text.end()]


TEXTS = [
    "Hello, world.",
    "  two spaces, and three   within  ",
    "\n\nlines\n\tand tabs\r\n",
    "안녕하세요, 뷁 궯",
    "🦩 flamingo 👩‍👩‍👧 family 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "a\ufffdb\ufffd\ufffd\ufffd\ufffd and more \ufffd",
    "é e\u0301 \u200d \x00 \x7f",
    "",
    " ",
    "\u2581 \u2581\u2581x",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_a_text_are_the_text(mistral_tokenizer, text):
    tokens = mistral_tokenizer.encode([text])[0]
    assert "".join(pieces_of(mistral_tokenizer, tokens)) == mistral_tokenizer.decode(tokens)
    odd = text.count("\u2581")  # the one letter that SentencePiece takes for a space
    assert odd or mistral_tokenizer.decode(tokens) == text


def test_pieces_of_random_texts_are_the_texts(mistral_tokenizer):
    generator = random.Random(0)
    alphabet = [*"abc .,\n", " the", "안", "뷁", "🦩", "é", "\ufffd", "\t", "  "]
    for _ in range(500):
        text = "".join(generator.choices(alphabet, k=generator.randrange(30)))
        tokens = mistral_tokenizer.encode([text])[0]
        pieces = pieces_of(mistral_tokenizer, tokens)
        assert "".join(pieces) == mistral_tokenizer.decode(tokens) == text
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("pool", ["bytes", "all", "both"])
def test_pieces_of_random_ids_are_what_they_are_decoded_to(mistral_tokenizer, pool):
    """Bytes that are no letters, BOS and EOS, ids without a text."""
    generator = random.Random(1)
    some = [0, 1, 2, 13, 28705, *range(3, 259), 32005]
    pools = {"bytes": some, "all": range(32010), "both": some * 100 + [*range(32010)]}
    for _ in range(2000):
        tokens = generator.choices(pools[pool], k=generator.randrange(12))
        pieces = pieces_of(mistral_tokenizer, tokens)
        assert "".join(pieces) == mistral_tokenizer.decode(tokens), tokens


def test_pieces_of_the_miniatures_tokenizer(tokenizer):
    generator = random.Random(2)
    for _ in range(1000):
        tokens = [generator.randrange(2050) for _ in range(generator.randrange(12))]
        assert "".join(pieces_of(tokenizer, tokens)) == tokenizer.decode(tokens), tokens


def test_each_token_gives_its_text_at_once_but_for_parts_of_letters(mistral_tokenizer):
    tokens = mistral_tokenizer.encode(["the rain 🦩 falls"])[0]
    pieces = pieces_of(mistral_tokenizer, tokens)
    assert pieces == ["the", " rain", " ", "", "", "", "🦩", " falls", ""]
    flood = [3 + 0xED] * 9  # bytes that never become a letter
    assert pieces_of(mistral_tokenizer, flood) == ["", "", ""] + ["\ufffd"] * 6 + ["\ufffd" * 3]


def test_a_long_answer_costs_no_more_for_each_token(mistral_tokenizer, monkeypatch):
    longest, sound = [0], mistral_tokenizer.decode

    def decode(tokens):
        longest.append(len(tokens))
        return sound(tokens)

    monkeypatch.setattr(mistral_tokenizer, "decode", decode)
    pieces_of(mistral_tokenizer, mistral_tokenizer.encode(["the rain 🦩 falls. " * 50])[0])
    assert max(longest) <= 8


# The terminal


def test_piped_lines_are_shown_once(monkeypatch, capsys):
    content = "hello\nnäxt\r\n\n/quit".encode()
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(content), encoding="utf-8"))
    assert [read_terminal() for _ in range(4)] == ["hello", "näxt", "", "/quit"]
    with pytest.raises(EOFError):
        read_terminal()
    assert capsys.readouterr().out == "> hello\n> näxt\n> \n> /quit\n"


def test_bytes_that_are_no_text_do_not_end_the_chat(monkeypatch):
    stdin, stdout = BytesIO(b"a\xffb\n"), BytesIO()
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(stdin, encoding="utf-8"))
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(stdout, encoding="ascii"))
    prepare_terminal()
    assert read_terminal() == "a\ufffdb"
    conversation.write_terminal("🦩\n")
    assert stdout.getvalue() == b"> a?b\n?\n"


# A program of its own, whose model needs its time.
SCRIPT = """
import sys, time
from janus_min.conversation import converse, prepare_terminal, read_terminal, write_terminal
from janus_min.tokenizer import Tokenizer

tokenizer = Tokenizer(sys.argv[1])

def stream(prompt, seed):
    for token in tokenizer.encode(["The water falls, and falls."])[0]:
        yield token
    while "wait" in tokenizer.decode(prompt):
        time.sleep(0.01)
    return "eos"

prepare_terminal()
found = converse(stream, tokenizer, 500, None, read_terminal, write_terminal)
print([turn.stop for turn in found.turns])
"""


def test_a_piped_script_is_answered(world):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, world],
        input="hello\n/system Be.\n/quit\nnot read\n",
        env=environment(),
        capture_output=True,
        text=True,
    )
    answer = "The water falls, and falls."
    wanted = f"> hello\n{answer}\n\n> /system Be.\nthe system message is: Be.\n> /quit\n['eos']\n"
    assert (done.stdout, done.stderr, done.returncode) == (GREETING + wanted, "", 0)


class Typist:
    """Types into a program that has a terminal of its own, and watches it."""

    def __init__(self, *command):
        self.master, self.slave = pty.openpty()
        take = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {command[2]}"
        self.process = subprocess.Popen(
            [*command[:2], take, *command[3:]],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=environment(TERM="dumb"),
            start_new_session=True,
        )
        os.close(self.slave)
        self.text = ""

    def sees(self, wanted, again=""):
        """Waits until the terminal shows it, behind all that was asked for before; types something
        again every second, as a person would where a key was lost."""
        deadline = time.monotonic() + 60
        while wanted not in self.text:
            assert time.monotonic() < deadline, self.text
            if not select.select([self.master], [], [], 1)[0]:
                self.types(again)
            else:
                try:
                    self.text += os.read(self.master, 4096).decode().replace("\r\n", "\n")
                except OSError as error:  # Linux: the program has ended
                    assert error.errno == errno.EIO and wanted in self.text, self.text
        self.text = self.text[self.text.index(wanted) + len(wanted) :]

    def types(self, text):
        os.write(self.master, text.encode())


def test_in_a_terminal_lines_are_edited_and_ctrl_c_cuts_an_answer(world):
    person = Typist(sys.executable, "-c", SCRIPT, world)
    person.sees(GREETING + "> ")
    person.types("xx\x7f\x7fait\x01w\n")  # two backspaces, and Ctrl-A for the line's beginning
    person.sees("and falls.")
    person.types("\x03")
    person.sees("(cut; the answer so far stays in the history)\n\n> ")
    person.types("/reset\n")
    person.sees("the turns are forgotten, the system message stays\n> ")
    person.types("hello\n")
    person.sees("The water falls, and falls.\n\n> ")
    person.types("\x04")
    person.sees("\n['eos']\n")
    assert person.process.wait(60) == 0
    os.close(person.master)


def test_in_a_terminal_ctrl_c_at_the_prompt_ends(world):
    person = Typist(sys.executable, "-c", SCRIPT, world)
    person.sees(GREETING + "> ")
    person.types("\x03")
    person.sees("\n[]\n", again="\x03")  # lost where it comes between the prompt and reading
    assert person.process.wait(60) == 0
    os.close(person.master)
