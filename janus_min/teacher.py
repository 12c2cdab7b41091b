"""The miniature's teacher behind the prompts of data generation: it replies by rule, where a large
language model would be asked.

For the instructions of the little world it replies what `mini_data.collection` holds, so that the
collection that is built over HTTP is the very one that the miniatures are trained on. For any other
instruction it makes do with what the request itself says: the starting points, the descriptions,
the preference.
"""

import json
import re

from janus_min import prompts
from janus_min.hierarchy import DIMENSIONS, Hierarchy
from janus_min.mini_data import collection, rubric_texts
from janus_min.world import PREFERENCES


class Teacher:
    """Replies to the requests of all stages."""

    def __init__(self):
        self.rows: dict[str, list[dict]] = {}
        self.systems: dict[tuple[str, ...], str] = {}
        self.outputs: dict[tuple[str, str], str] = {}
        for row in collection():
            self.rows.setdefault(row["prompt"], []).append(row)
            self.systems[descriptions(row["preference_set"])] = row["system"]
            self.outputs[row["system"], row["prompt"]] = row["output"]

    def reply(self, messages: list[dict]) -> str:
        """The reply to the messages of a chat completion."""
        system, user = (message["content"] for message in messages[:2])
        if system == prompts.PREFERENCES_SYSTEM:
            return self.preferences(user)
        if system == prompts.SYSTEM_MESSAGE_SYSTEM:
            return self.system_message(user)
        if system == prompts.RUBRIC_SYSTEM:
            return json.dumps(rubric_texts(between(user, "preference")))
        return self.outputs.get((system, user)) or f"{user[:200]}\n\nAs I was told: {system}"

    def preferences(self, user: str) -> str:
        """Stage 1: the sets of an instruction."""
        instruction = between(user, "instruction")
        if instruction in self.rows:
            sets = [row["preference_set"] for row in self.rows[instruction]]
            named = [{entry["dimension"]: entry for entry in entries} for entries in sets]
        else:
            named = [json.loads(line) for line in between(user, "starting_points").splitlines()]
            about = " ".join(instruction.split()[:8])
            for dimension in DIMENSIONS:
                for entries in named:
                    entries[dimension]["description"] += f" That holds for “{about}”."
        keys = ("subdimension", "preference", "description")
        return json.dumps(
            {"sets": [{d: {k: s[d][k] for k in keys} for d in DIMENSIONS} for s in named]}
        )

    def system_message(self, user: str) -> str:
        """Stage 2: the system message of a set."""
        lines = between(user, "descriptions").splitlines()
        wanted = tuple(sorted(line.removeprefix("- ") for line in lines))
        return self.systems.get(wanted) or (
            "You are an assistant who listens to what each single user values, and who answers "
            f"accordingly. {' '.join(wanted)}"
        )


def descriptions(entries: list[dict]) -> tuple[str, ...]:
    """What a set is known by, in the request for its system message."""
    return tuple(sorted(entry["description"] for entry in entries))


def between(text: str, tag: str) -> str:
    """What stands between <tag> and </tag>, each on a line of its own."""
    return re.search(rf"<{tag}>\n(.*)\n</{tag}>", text, re.S)[1]


def world_hierarchy() -> Hierarchy:
    """The preferences of the little world as seeds."""
    seeds: Hierarchy = {dimension: {} for dimension in DIMENSIONS}
    for p in PREFERENCES:
        seed = {"preference": p.preference, "description": p.wordings[0]}
        seeds[p.dimension].setdefault(p.subdimension, []).append(seed)
    return seeds
