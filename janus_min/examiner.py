"""The miniature's judge behind the prompts of evaluations: it grades by rule, where a large
language model would be asked.

It knows the little world, and takes from the prompt what a model would take: the topic from the
instruction, the preference from the rubric, or all four from the system message.
"""

from janus_min.mini_data import rubric_preference
from janus_min.teacher import between
from janus_min.world import PREFERENCES, TOPICS, WORLD, Preference, judge

TOPIC_OF = {
    question.replace("{topic}", topic): topic for question in WORLD["questions"] for topic in TOPICS
}


def examine(messages: list[dict]) -> str:
    """The reply to the messages of a chat completion: a grade or a verdict, with a reason."""
    user = messages[-1]["content"]
    system, _, question = between(user, "instruction").rpartition("\n")
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
