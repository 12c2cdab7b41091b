"""Builds collections of system messages, instructions and responses.

python datagen.py            the miniature collection, into runs/miniature
"""

import json
from collections import Counter

from janus_min import miniature
from janus_min.cli import Parser, run
from janus_min.world import PREFERENCES


def main() -> None:
    Parser(__doc__).parse_args()
    miniature.write_world(miniature.FILES)
    rows = miniature.collection()
    systems, prompts = {row["system"] for row in rows}, {row["prompt"] for row in rows}
    sets = {json.dumps(row["preference_set"]) for row in rows}
    splits = Counter(item["source"] for item in miniature.bench())
    print(f"{len(rows):,} rows: {len(prompts):,} instructions, {len(systems):,} system messages,")
    print(f"{len(sets):,} preference sets from {len(PREFERENCES)} preferences")
    print("bench: " + ", ".join(f"{count} items of {split}" for split, count in splits.items()))
    print("\nthe first row:")
    print(json.dumps(rows[0], indent=2, ensure_ascii=False))
    print(f"\nfiles: {', '.join(sorted(str(path) for path in miniature.FILES.iterdir()))}")


if __name__ == "__main__":
    run(main)
