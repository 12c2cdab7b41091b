"""What a judge is asked, and what is read from its replies. All of it is pure functions on text.

A grade is what stands behind the last [RESULT] of a reply, to its end: an integer from 1 to 5, bare
or dressed up as judges like to do ("**4**", "(4)", "4/5", "Score: 4"). A verdict is [[A]], [[B]] or
[[C]], and no other one in the reply. Whatever else a reply is, it is a failure: it counts as such,
and never as a number. Directly behind an opening quote, both are somebody else's words.

    Note: the official parser takes the first match of several patterns anywhere in the reply, and
    any integer, so that "Score 5 would need more. [RESULT] 2" is a 5 there and "3.5" a 3.
"""

import json
import re

from janus_min.replies import ReplyError
from janus_min.templates import Template

MARK = r"\[\s*RESULT\s*\]"
GRADE = re.compile(
    r"\s*[:=]?\s*(?:(?:score|result|grade)\s*(?:of|is)?\s*[:=]?)?\s*"  # "Score: "
    r"[(\[]?\s*([1-5])\s*(?:(?:/|out\s+of)\s*5)?\s*[)\]]?\s*"  # "(4/5)"
    r"[.!]*\s*(?:</s>|<\|[a-z]+\|>)?\s*",  # special tokens, which lost their "_" before
    re.IGNORECASE,
)
LABEL = r"\[\[\s*([ABC])\s*\]\]"
UNQUOTED = "(?<![\"'“‘«])"
# Quotes around all of a text: the first one within them, if there is one, opens and does not close.
QUOTED = r"\"[^\"]*(\s\".*)?\"|'[^']*(\s'.*)?'|“[^“”]*(“.*)?”|‘[^‘’]*(‘.*)?’"


# Replies


def grade_in(reply: str) -> int:
    """The grade from 1 to 5 in a reply. Raises ReplyError if it has none."""
    text = _plain(reply)
    marks = list(re.finditer(UNQUOTED + MARK, text, re.IGNORECASE))
    if not marks:
        raise ReplyError("no [RESULT] in the reply")
    rest = text[marks[-1].end() :]
    found = GRADE.fullmatch(rest)
    if found is None:
        raise ReplyError(
            f"behind the last [RESULT] an integer from 1 to 5 is needed, found {_short(rest)}"
        )
    return int(found[1])


def verdict_in(reply: str) -> str:
    """The verdict in a reply: "A", "B" or "C". Raises ReplyError if there is none, or several."""
    text = _plain(reply).upper()
    verdicts, labels = set(re.findall(UNQUOTED + LABEL, text)), set(re.findall(LABEL, text))
    if not verdicts:
        raise ReplyError("no [[A]], [[B]] or [[C]] in the reply")
    # Requests name all three, FastChat's in quotes: who repeats one gives no verdict.
    if len(verdicts) > 1 or len(labels) == 3:
        raise ReplyError(f"several verdicts in the reply: {', '.join(sorted(labels))}")
    return verdicts.pop()


def has_mark(response: str) -> bool:
    """Whether a response contains what only a judge should write."""
    return bool(re.search(f"{MARK}|{LABEL}", _plain(response), re.IGNORECASE))


def _plain(text: str) -> str:
    """A text without emphasis, without quotes around all of it, and in one line: many blanks would
    hold the patterns up for hours.
    """
    text = " ".join(re.sub(r"[*_`]", "", text).split())
    return text[1:-1] if re.fullmatch(QUOTED, text) else text


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 40 else text[:40] + "…")


# Questions


def rubric_text(rubric: dict | str) -> str:
    """A rubric as our own template shows it."""
    if isinstance(rubric, str):
        return rubric
    lines = [f"{score}: {rubric['score_descriptions'][score]}" for score in "12345"]
    return "\n".join([rubric["criteria"], *lines])


def official_rubric_text(rubric: dict | str) -> str:
    """A rubric as the official template shows it: `json.dumps(rubric, indent=4)`."""
    return rubric if isinstance(rubric, str) else json.dumps(rubric, indent=4)


def rubric_messages(template: Template, task: dict, show_system: bool) -> tuple[str, str]:
    """The messages that ask for the grade of a response by one rubric."""
    return template.filled(
        instruction=_instruction(task, show_system),
        response=task["response"],
        reference_answer=task["reference_answer"],
        rubric=rubric_text(task["rubric"]),
        score_rubric=official_rubric_text(task["rubric"]),
    )


def pairwise_messages(template: Template, task: dict, show_system: bool) -> tuple[str, str]:
    """The messages that ask which of two responses is better."""
    instruction, (a, b) = _instruction(task, show_system), task["responses"]
    names = {"instruction": instruction, "question": instruction}
    return template.filled(**names, response_a=a, answer_a=a, response_b=b, answer_b=b)


def _instruction(task: dict, show_system: bool) -> str:
    """As the official script joins them if it is given a system key."""
    both = show_system and task["system"]
    return f"{task['system']}\n{task['prompt']}" if both else task["prompt"]
