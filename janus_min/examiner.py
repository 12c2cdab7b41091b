"""The miniature's judge behind the prompts of evaluations: it grades by rule, where a large
language model would be asked.

    python -m janus_min.examiner [--port 8765]     serves it on this machine, until Ctrl-C

It knows the little world, and takes from the prompt what a model would take: the topic from the
instruction, the preference from the rubric, or all four from the system message.
"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from janus_min.cli import Parser, add_fields, given_fields, run
from janus_min.errors import UserError, require
from janus_min.loopback import served
from janus_min.mini_data import rubric_preference
from janus_min.teacher import between
from janus_min.world import PREFERENCES, TOPICS, WORLD, Preference, judge

JUDGE = "miniature-judge"  # what the model is called
FOREIGN = "this judge knows the miniature bench alone, in our own prompts"
PORT = 8765  # nobody's in particular
TOPIC_OF = {
    question.replace("{topic}", topic): topic for question in WORLD["questions"] for topic in TOPICS
}


def examine(messages: list[dict]) -> str:
    """The reply to the messages of a chat completion: a grade or a verdict, with a reason.

    Raises UserError for questions of another world.
    """
    try:
        return reply_to(messages[-1]["content"])
    except (KeyError, IndexError, TypeError):  # our question, but not what we ask of it
        raise UserError(FOREIGN) from None


def reply_to(user: str) -> str:
    """The reply to what a judge is asked."""
    asked = between(user, "instruction") if "<instruction>\n" in user else ""
    system, _, question = asked.rpartition("\n")
    if question not in TOPIC_OF:
        raise UserError(FOREIGN)
    topic = TOPIC_OF[question]
    if "<rubric>" in user:
        preference = rubric_preference({"criteria": between(user, "rubric").splitlines()[0]})
        grade = judge(preference, topic, between(user, "response"))
        return f"Feedback: this is how far it shows “{preference.preference}”. [RESULT] {grade}"
    wanted = preferences_in(system)
    first, second = (
        sum(judge(preference, topic, between(user, tag)) for preference in wanted)
        for tag in ("response_a", "response_b")
    )
    verdict = "A" if first > second else "B" if second > first else "C"
    reason = f"{first} against {second} points by {len(wanted)} preferences"
    return f"Comparison: {reason}. Verdict: [[{verdict}]]"


def preferences_in(system: str) -> list[Preference]:
    """The preferences that a system message of the little world asks for."""
    # A link such as "Also, " makes the first letter of a wording small.
    return [p for p in PREFERENCES if any(wording[1:] in system for wording in p.wordings)]


@contextmanager
def judge_of(port: int | None) -> Iterator[str]:
    """Serves the judge on this port, or on its usual one, or on a free one; gives the URL. Raises
    UserError if a given port is in use.
    """
    with ExitStack() as stack:
        try:
            url = stack.enter_context(served(examine, PORT if port is None else port))
        except UserError:
            if port is not None:
                raise
            url = stack.enter_context(served(examine))
        yield url


@dataclass(frozen=True)
class Options:
    """Where the judge is served."""

    port: int = PORT  # of this machine; 0 is any free one

    def __post_init__(self) -> None:
        require(0 <= self.port < 2**16, self, "port", "0 to 65535")


def main(arguments: list[str] | None = None) -> None:
    """Serves the judge until a signal ends it."""
    parser = Parser(__doc__)
    add_fields(parser, Options)
    options = Options(**given_fields(parser.parse_args(arguments), Options))
    with served(examine, options.port) as url:
        print(f"evaluate.py: --judge {JUDGE} --base-url {url}", flush=True)
        signal.pause()


if __name__ == "__main__":
    run(main)
