"""Scores models.

python evaluate.py                 the newest miniature model on the miniature bench
python evaluate.py --model DIR     another miniature model
"""

import json
from dataclasses import dataclass
from pathlib import Path

from janus_min.cli import Parser, add_fields, given_fields, run
from janus_min.grading import newest_model, score_model
from janus_min.sampling import load_for_generation


@dataclass(frozen=True)
class Options:
    """What is scored."""

    model: Path | None = None  # directory of a miniature model; the newest one unless given


def main() -> None:
    parser = Parser(__doc__)
    add_fields(parser, Options)
    options = Options(**given_fields(parser.parse_args(), Options))
    directory = options.model or newest_model()
    policy, tokenizer = load_for_generation(directory)
    about = directory.parent / "recipe.json"
    recipe = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    print(f"model: {directory}")
    for score in score_model(policy, tokenizer, recipe.get("miniature") == "uniform"):
        print(score)


if __name__ == "__main__":
    run(main)
