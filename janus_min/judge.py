"""What a judge is asked, and what is read from its replies. All of it is pure functions on text.

A grade is what stands behind the last [RESULT] of a reply, to its end: an integer from 1 to 5, bare
or dressed up as judges like to do ("**4**", "(4)", "4/5", "Score: 4"). A verdict is [[A]], [[B]] or
[[C]], and no other one in the reply. Whatever else a reply is, it is a failure: it counts as such,
and never as a number. Directly behind an opening quote, both are somebody else's words.

    Note: the official parser takes the first match of several patterns anywhere in the reply, and
    any integer, so that "Score 5 would need more. [RESULT] 2" is a 5 there and "3.5" a 3.
"""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from janus_min import judge_prompts
from janus_min.errors import UserError
from janus_min.formats import read_jsonl
from janus_min.prompts import fill
from janus_min.replies import ReplyError

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
# What must be in a template of the user's, and what else may be.
NEEDED = {
    "rubric": ({"instruction"}, {"response"}, {"reference_answer"}, {"rubric", "score_rubric"}),
    "pairwise": (
        {"instruction", "question"},
        {"response_a", "answer_a"},
        {"response_b", "answer_b"},
    ),
}


class Template(NamedTuple):
    """The two messages to a judge, with marks in braces."""

    system: str  # may be empty
    user: str

    def filled(self, **slots: str) -> tuple[str, str]:
        """The messages. What is filled in is never searched for marks."""
        return self.system, fill(self.user, **slots).strip()


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


# Templates


def own_template(kind: str) -> Template:
    """Our own prompt for "rubric" or "pairwise"."""
    if kind == "rubric":
        return Template(judge_prompts.RUBRIC_SYSTEM, judge_prompts.RUBRIC)
    return Template(judge_prompts.PAIRWISE_SYSTEM, judge_prompts.PAIRWISE)


def read_template(path: Path, kind: str) -> Template:
    """The user's own prompt, from one of these files:

        .py              the official repository's utils/prompts.py: constants NAME_SYSTEM_PROMPT
                         and NAME_USER_PROMPT_TEMPLATE (it is read, and not run)
        .json, .jsonl    an object with system_prompt and prompt_template, as FastChat's; of several
                         the first one whose template has the marks that `kind` needs
        any other        the text of the user message; there is no system message

    Raises UserError if the marks do not fit the kind.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    readers: dict[str, Callable[[str, Path], list[Template]]] = {
        ".py": _python_templates,
        ".json": _json_templates,
        ".jsonl": lambda _, path: _chat_templates([record for _, record in read_jsonl(path)]),
    }
    templates = readers.get(path.suffix, lambda text, _: [Template("", text)])(text, path)
    fitting = [template for template in templates if not _missing(template, kind)]
    if not templates:
        raise UserError(f"{path} has no prompt: neither *_USER_PROMPT_TEMPLATE nor prompt_template")
    if not fitting:
        missing = ", ".join(_missing(templates[0], kind))
        raise UserError(f"{path}: the prompt lacks the mark {missing}")
    known = set().union(*NEEDED[kind])
    if strange := sorted(set(_marks(fitting[0].user)) - known):
        raise UserError(
            f"{path}: unknown mark {{{strange[0]}}}; known are {', '.join(sorted(known))}; braces "
            "that are no marks are doubled"
        )
    return fitting[0]


def _python_templates(text: str, path: Path) -> list[Template]:
    try:
        nodes = ast.parse(text, path.name).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: not Python ({str(error) or 'nested too deep'})") from None
    constants = {
        target.id: node.value.value
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }
    suffix = "USER_PROMPT_TEMPLATE"
    return [
        Template(constants.get(name.removesuffix(suffix) + "SYSTEM_PROMPT", ""), value)
        for name, value in constants.items()
        if name.endswith(suffix)
    ]


def _json_templates(text: str, path: Path) -> list[Template]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    return _chat_templates(values if isinstance(values, list) else [values])


def _chat_templates(values: list) -> list[Template]:
    return [
        Template(str(value.get("system_prompt") or ""), value["prompt_template"])
        for value in values
        if isinstance(value, dict) and isinstance(value.get("prompt_template"), str)
    ]


def _marks(text: str) -> list[str]:
    return [mark for mark in re.findall(r"\{\{|\}\}|\{(\w+)\}", text) if mark]


def _missing(template: Template, kind: str) -> list[str]:
    marks = set(_marks(template.user))
    lacking = [names for names in NEEDED[kind] if not names & marks]
    return [" or ".join(f"{{{name}}}" for name in sorted(names)) for names in lacking]
