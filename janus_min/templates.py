"""Templates of what a judge is asked: our own, or files of the user's, in the forms in which the
official repositories keep theirs.
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

# What must be in a template; marks that stand together are names of the same.
NEEDED = {
    "rubric": ({"instruction"}, {"response"}, {"reference_answer"}, {"rubric", "score_rubric"}),
    "pairwise": (
        {"instruction", "question"},
        {"response_a", "answer_a"},
        {"response_b", "answer_b"},
    ),
    "alpaca-eval": ({"instruction"}, {"output_1"}, {"output_2"}),
    "arena-hard": ({"question_1", "question"}, {"answer_1"}, {"answer_2"}),
    "single": ({"question"}, {"answer"}),
    "single-math": ({"question"}, {"ref_answer_1"}, {"answer"}),
    "multi-turn": ({"question_1"}, {"answer_1"}, {"question_2"}, {"answer_2"}),
    "math-multi-turn": (
        {"question_1"},
        {"ref_answer_1"},
        {"question_2"},
        {"ref_answer_2"},
        {"answer_1"},
        {"answer_2"},
    ),
}
# The templates that an evaluation takes.
TEMPLATES = {
    "rubric": ("rubric",),
    "pairwise": ("pairwise",),
    "alpaca-eval": ("alpaca-eval",),
    "mt-bench": ("single", "single-math", "multi-turn", "math-multi-turn"),
    "arena-hard": ("arena-hard",),
}


class Template(NamedTuple):
    """The two messages to a judge, with marks in braces."""

    system: str  # may be empty
    user: str

    def filled(self, **slots: str) -> tuple[str, str]:
        """The messages. What is filled in is never searched for marks."""
        return self.system, fill(self.user, **slots).strip()


def own_template(kind: str) -> Template:
    """Our own prompt of a kind in NEEDED."""
    return Template(*judge_prompts.OWN[kind])


def read_template(path: Path, kind: str) -> Template:
    """The user's own prompt, from one of these files:

        .py              the official repository's utils/prompts.py: constants NAME_SYSTEM_PROMPT
                         and NAME_USER_PROMPT_TEMPLATE (it is read, and not run)
        .json, .jsonl    an object with system_prompt and prompt_template, as FastChat's; of several
                         the first one whose template has just the marks that `kind` needs
        .yaml, .yml      system_prompt and prompt_template in double quotes, as Arena-Hard's
        .txt, .md, none  the text of the user message, without a system message; or both of them in
                         <|im_start|>role … <|im_end|>, as AlpacaEval's

    Raises UserError for other names, and if the marks do not fit the kind.
    """
    readers: dict[str, Callable[[str, Path], list[Template]]] = {
        ".py": _python_templates,
        ".json": _json_templates,
        ".jsonl": lambda _, path: _chat_templates([record for _, record in read_jsonl(path)]),
        **dict.fromkeys((".yaml", ".yml"), _yaml_templates),
        **dict.fromkeys((".txt", ".md", ""), _text_templates),
    }
    if (suffix := path.suffix.lower()) not in readers:
        raise UserError(f"{path}: a prompt's name ends in {', '.join(filter(None, readers))}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    templates = readers[suffix](text, path)
    fitting = [template for template in templates if not _missing(template, kind)]
    if not templates:
        raise UserError(f"{path} has no prompt: neither *_USER_PROMPT_TEMPLATE nor prompt_template")
    if not fitting:
        missing = ", ".join(_missing(templates[0], kind))
        raise UserError(f"{path}: the prompt lacks the mark {missing}")
    known = set().union(*NEEDED[kind])
    found = min(fitting, key=lambda template: len(_strange(template, known)))  # the first of them
    if strange := _strange(found, known):
        raise UserError(
            f"{path}: unknown mark {{{strange[0]}}}; known are {', '.join(sorted(known))}; braces "
            "that are no marks are doubled"
        )
    return found


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


def _yaml_templates(text: str, path: Path) -> list[Template]:
    """Texts in double quotes are those of JSON, on one line; YAML's other forms are not read."""
    found = {}
    for key, quoted in re.findall(
        r'^(system_prompt|prompt_template):\s*\[?(".*")\]?\s*$', text, re.M
    ):
        try:
            found[key] = json.loads(quoted)
        except ValueError as error:
            raise UserError(f"{path}: {key} is no text in double quotes ({error})") from None
    return _chat_templates([found])


def _text_templates(text: str, path: Path) -> list[Template]:
    parts = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", text, re.S)
    if not parts:
        return [Template("", text)]
    if [role for role, _ in parts] not in (["system", "user"], ["user"]):
        roles = ", ".join(role for role, _ in parts)
        raise UserError(f"{path}: messages of system and user are needed, found those of {roles}")
    return [Template(*([""] + [message.strip() for _, message in parts])[-2:])]


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


def _strange(template: Template, known: set[str]) -> list[str]:
    return sorted(set(_marks(template.user)) - known)
