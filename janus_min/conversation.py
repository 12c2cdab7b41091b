"""A chat in the terminal, whose system message may change at any turn.

    > Why is the sky blue?
    Air scatters blue light most.

    > /system Answer as a poet.
    the system message is: Answer as a poet.

Every turn is encoded anew from the text of all turns, as in training (`chat.py`): the system
message stands in the first of them, so a new one holds for the whole history. An answer that the
user cut goes on being part of it, as far as it came, and is closed by EOS like all others.

The same words under the same seed get the same answers. Left out: messages of several lines, and
forgetting old turns when the context is full; the user is told, and may say /reset.
"""

import io
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass

from janus_min.chat import encode_conversations
from janus_min.errors import UserError
from janus_min.formats import unicode_text
from janus_min.prompt_files import seed_of
from janus_min.tokenizer import Tokenizer

HELP = """\
/system TEXT   what you value, from now on and for the turns before; /system alone shows it,
               /system - takes it away
/reset         forgets the turns and keeps the system message
/help          shows this
/quit          ends, like Ctrl-D; Ctrl-C cuts an answer
A message that begins with / is typed with a space before it."""

# (prompt ids, seed) -> ids of the answer without EOS, as they are drawn; it returns why the answer
# ended: "eos", or "length" at its longest or at the end of the context.
Stream = Callable[[list[int], int], Generator[int, None, str]]


class TextStream:
    """Ids into text while they come: all pieces together are `Tokenizer.decode` of all ids.

    A letter of several byte tokens is held back until it is whole.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._decode = tokenizer.decode
        self._ids: list[int] = []  # the last ones: enough to know the text of the next
        self._given = 0  # how much of their text has been given out

    def add(self, token: int) -> str:
        """The text that this token completes, which may be none."""
        self._ids.append(token)
        text = self._decode(self._ids)
        # Bytes that are no letter are decoded as U+FFFD each. Up to three may yet become a letter.
        unsure = min(len(text) - len(text.rstrip("\ufffd")), 3)
        given, self._given = self._given, len(text) - unsure
        alone = self._decode([token])
        if alone and alone[-1] != "\ufffd":
            # What follows does not depend on more than this token: that text does not begin here.
            self._ids, self._given = [token], len(alone)
        return text[given : len(text) - unsure]

    def end(self) -> str:
        """What was held back: bytes that never became a letter, as U+FFFD."""
        return self._decode(self._ids)[self._given :]


@dataclass
class Turn:
    """What the user said, and what was answered."""

    said: str
    answer: str
    stop: str  # "eos", "length", or "cut" where the user ended it


class Conversation:
    """A system message and the turns so far."""

    def __init__(self, tokenizer: Tokenizer, system: str | None):
        self.tokenizer, self.system = tokenizer, system or None
        self.turns: list[Turn] = []

    def prompt(self, text: str) -> list[int]:
        """Ids of all that comes before the answer to `text`."""
        said = [*(turn.said for turn in self.turns), text]
        answers = [turn.answer for turn in self.turns]
        return encode_conversations(self.tokenizer, [(self.system, said, answers)])[0]


def converse(
    stream: Stream,
    tokenizer: Tokenizer,
    context: int,
    system: str | None,
    read_line: Callable[[], str],
    write: Callable[[str], None],
    seed: int = 0,
) -> Conversation:
    """Answers what `read_line` reads, until it raises EOFError or is interrupted, or /quit.

    `context` is how many tokens the model has room for, prompt and answer together. Returns the
    conversation as it is in the end.
    """
    conversation = Conversation(tokenizer, system)
    write("/help shows the commands, Ctrl-D ends\n")
    while True:
        try:
            line = read_line()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return conversation
        try:
            text = unicode_text(line, "the line").strip()
        except UserError as error:
            write(f"{error}\n")
            continue
        if line.startswith("/"):  # not after a space
            if text == "/quit":
                return conversation
            write(_command(conversation, text) + "\n")
        elif text:
            _turn(conversation, text, stream, context, write, seed)


def _command(conversation: Conversation, text: str) -> str:
    """Does what the user asks for. Returns what to say."""
    name, _, rest = text.partition(" ")
    rest = rest.strip()
    if name == "/help":
        return HELP
    if name == "/reset" and not rest:
        conversation.turns.clear()
        return "the turns are forgotten, the system message stays"
    if name == "/system":
        if rest:
            conversation.system = None if rest in ("-", '""') else rest
        if conversation.system is None:
            return "there is no system message"
        return f"the system message is: {conversation.system}"
    return f"no such command: {text} (/help shows all; a message may begin with a space)"


def _turn(
    conversation: Conversation,
    text: str,
    stream: Stream,
    context: int,
    write: Callable[[str], None],
    seed: int,
) -> None:
    """Answers one message, if it fits into the context."""
    prompt = conversation.prompt(text)
    if len(prompt) >= context:
        what = "/reset forgets the turns" if conversation.turns else "shorten it"
        write(f"this makes {len(prompt)} tokens, the model's context is {context}: {what}\n")
        return
    answer, stop = _answer(stream(prompt, seed_of(seed, prompt)), conversation.tokenizer, write)
    write("\n")
    if stop == "cut" and not answer:
        write("(cut before its first word, this turn is forgotten)\n\n")
        return
    conversation.turns.append(Turn(text, answer, stop))
    notes = {"cut": "(cut; the answer so far stays in the history)\n"}
    notes["length"] = "(cut at --max-tokens or by the context)\n"
    write(notes.get(stop, "") + "\n")


def _answer(
    tokens: Generator[int, None, str], tokenizer: Tokenizer, write: Callable[[str], None]
) -> tuple[str, str]:
    """Writes an answer while it comes. Returns its text and why it ended."""
    text, pieces = TextStream(tokenizer), []
    try:
        while True:
            try:
                piece = text.add(next(tokens))
            except StopIteration as end:
                pieces.append(text.end())
                write(pieces[-1])
                return "".join(pieces), end.value
            pieces.append(piece)
            write(piece)
    except KeyboardInterrupt:
        tokens.close()
        return "".join(pieces), "cut"


# The terminal


def read_terminal() -> str:
    """A line from stdin, after "> ". Raises EOFError behind the last.

    In a terminal it can be edited; of a file or a pipe it is shown, as if it had been typed.
    """
    if sys.stdin.isatty():
        try:
            import readline  # noqa: F401  # input() edits lines if it is there; Windows has none
        except ImportError:
            pass
        return input("> ")
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    line = line.removesuffix("\n")
    write_terminal(f"> {line}\n")
    return line


def write_terminal(text: str) -> None:
    """Text on stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def prepare_terminal() -> None:
    """Lets bytes that are no text, and letters that the terminal has not, be replaced."""
    for file in (sys.stdin, sys.stdout):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="replace")
