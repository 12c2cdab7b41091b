"""The texts that ask a model for data. The paper's own were never published: these are ours.

Marks in braces are filled in a single pass, so that braces in what is filled in stay what they are.
"""

import re

# Stage 1: three preference sets for an instruction

PREFERENCES_SYSTEM = """\
You design data that teaches an assistant to serve users with very different values. A \
preference is a quality that one user wants an answer to have. You think about who might give an \
instruction, and what each of these people would value in the answer to it. You reply with one \
JSON object and nothing else."""

PREFERENCES = """\
Here is an instruction that many different users might give.

<instruction>
{instruction}
</instruction>

{users} by one preference in each of four dimensions:

- style: how the answer is written and laid out
- background_knowledge: what the user already knows, and so what the answer takes for granted
- informativeness: what the answer tells, and what makes it useful
- harmlessness: what the answer is careful about

Below are starting points, one line for each user. Keep the direction of each, but put it into \
new words that fit this very instruction: a short new phrase as the preference, and a description \
that says in one to three sentences what a good answer to this instruction is like for this user, \
without giving the answer. Replace a starting point within its dimension if it does not fit the \
instruction or contradicts another one of the same user. {rule}

<starting_points>
{seeds}
</starting_points>

Reply with a JSON object of this form, with {entries} in "sets" and all four dimensions in each:

{{"sets": [{{
"style": {{"subdimension": "one or two words", "preference": "a short phrase", \
"description": "one to three sentences"}},
"background_knowledge": {{"subdimension": "...", "preference": "...", "description": "..."}},
"informativeness": {{"subdimension": "...", "preference": "...", "description": "..."}},
"harmlessness": {{"subdimension": "...", "preference": "...", "description": "..."}}
}}]}}"""

ONE_USER = {
    "users": "Imagine a user who gives it. Describe what this user values",
    "rule": "The four preferences must go together.",
    "entries": "one entry",
}
MANY_USERS = {
    "users": "Imagine {count} users who give it and who want clearly different answers. Describe "
    "what each of them values",
    "rule": "No two users may have the same preference or the same description.",
    "entries": "{count} entries, one for each user,",
}

# Stage 2: a system message from the descriptions of one set

SYSTEM_MESSAGE_SYSTEM = """\
You write system messages for an assistant. You reply with the text of the message alone, in one \
paragraph."""

SYSTEM_MESSAGE = """\
Write a system message for an assistant whose user values these four things:

<descriptions>
{descriptions}
</descriptions>

Speak to the assistant as "you". Begin by giving it a fitting role, which you invent. Work all \
four things into fluent sentences of your own, so that nothing of them is lost and nothing else \
is asked for. Write one paragraph of about 80 to 170 words, without a list, a heading, quotation \
marks around it, or a word about these directions."""

# Stage 4 of the bench: a rubric for one preference

RUBRIC_SYSTEM = """\
You write grading rubrics. You reply with one JSON object and nothing else."""

RUBRIC = """\
A user of an assistant has this preference:

<preference>
{description}
</preference>

Write a rubric by which a judge can grade how well an answer follows this preference, and \
nothing but this preference, from 1 to 5. The criteria are one question. Each of the five \
descriptions says in one or two sentences what an answer with this score is like, so concretely \
that two judges would agree; 1 ignores the preference or works against it, 5 follows it in every \
respect.

Reply with a JSON object of this form:

{{"criteria": "one question", "score_descriptions": {{"1": "...", "2": "...", "3": "...", \
"4": "...", "5": "..."}}}}"""

# When a reply cannot be used

AGAIN = """\
Your reply cannot be used: {reason}. Please reply once more, whole and in the form that was \
asked for, without any word about the mistake."""


def fill(template: str, **slots: object) -> str:
    """A template with its marks filled in, in one pass; doubled braces become single ones."""
    return re.sub(
        r"\{\{|\}\}|\{(\w+)\}",
        lambda mark: str(slots[mark[1]]) if mark[1] else mark[0][0],
        template,
    )
