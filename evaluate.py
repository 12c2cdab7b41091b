"""Scores models.

python evaluate.py                 the newest miniature model on the miniature bench
python evaluate.py --model DIR     another miniature model
"""

from dataclasses import dataclass
from pathlib import Path

from janus_min import miniature
from janus_min.checkpoint import load_policy
from janus_min.cli import Parser, add_fields, given_fields, run
from janus_min.sampling import prepare_for_decoding
from janus_min.tokenizer import Tokenizer


@dataclass(frozen=True)
class Options:
    """What is scored."""

    model: Path | None = None  # directory of a miniature model; the newest one unless given


def main() -> None:
    parser = Parser(__doc__)
    add_fields(parser, Options)
    options = Options(**given_fields(parser.parse_args(), Options))
    directory = options.model or miniature.newest_model()
    tokenizer = Tokenizer(directory)
    policy = prepare_for_decoding(load_policy(directory, impl="torch"))
    print(f"model: {directory}")
    for score in miniature.score_model(policy, tokenizer, uniform=True):
        print(score)


if __name__ == "__main__":
    run(main)
