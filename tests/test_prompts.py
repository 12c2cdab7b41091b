"""The texts that ask a model for data: marks are filled once, and are those that a stage gives."""

import re

import pytest

from janus_min import prompts
from janus_min.collection import preferences_stage, rubrics_stage, systems_stage
from janus_min.hierarchy import DIMENSIONS, read_hierarchy
from janus_min.prompts import fill

STRANGE = 'a {instruction} {0} {{x}} {count!r} }} {{ \\1 \\g<0> "q"'
ENTRY = {"dimension": "style", "subdimension": "s", "preference": "p", "description": STRANGE}


def test_what_is_filled_in_stays_what_it_is():
    assert fill("<{instruction}> {b}", instruction=STRANGE, b="{instruction}") == (
        f"<{STRANGE}> {{instruction}}"
    )


def test_doubled_braces_become_single_ones():
    assert fill('{{"sets": [{{"style": {{}}}}, …]}} {n}', n=3) == '{"sets": [{"style": {}}, …]} 3'
    assert fill("}}{{") == "}{"


def test_a_mark_without_a_text_is_a_mistake():
    with pytest.raises(KeyError, match="count"):
        fill("{instruction} {count}", instruction="a")


def test_templates_have_the_marks_that_their_stages_fill():
    marks = {
        name: set(re.findall(r"(?<!\{)\{(\w+)\}(?!\})", str(text)))
        for name, text in vars(prompts).items()
        if name.isupper()
    }
    numbers = prompts.ONE_USER.keys()
    assert prompts.MANY_USERS.keys() == numbers
    assert {name: found for name, found in marks.items() if found} == {
        "PREFERENCES": {"instruction", "seeds", *numbers},
        "MANY_USERS": {"count"},
        "SYSTEM_MESSAGE": {"descriptions"},
        "RUBRIC": {"description"},
        "AGAIN": {"reason"},
    }


@pytest.mark.parametrize(
    ("stage", "task"),
    [
        (preferences_stage(read_hierarchy(), 3, 4, 0), {"id": 0, "prompt": STRANGE}),
        (preferences_stage(read_hierarchy(), 1, 4, 0), {"id": 0, "prompt": STRANGE}),
        (systems_stage(3), {"preference_set": [ENTRY] * len(DIMENSIONS)}),
        (rubrics_stage(), {"preference": ENTRY}),
    ],
    ids=["preferences", "preferences of one", "systems", "rubrics"],
)
def test_requests_hold_strange_texts_verbatim_and_no_mark_of_their_own(stage, task):
    user = stage.ask(task).user
    assert STRANGE in user
    assert not re.search(r"\{\w+\}|\{\{", user.replace(STRANGE, ""))
