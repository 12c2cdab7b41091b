"""Which examples stand in which row of which optimizer step.

The plan is made before training starts and is a pure function of (lengths, recipe, seed), so the
number of steps is known, a resumed run continues it exactly, and no split of the work can change
what a step contains.
"""

from bisect import bisect_left, insort

import numpy as np

# Examples that are packed together: enough for full rows, few enough to stay shuffled.
PACKING_WINDOW = 4096

Plan = list[list[list[int]]]  # steps -> rows -> indices of examples


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Packs whole items into rows: longest first, each into the fullest row with room for it.

    Returns the indices of the items in each row. No item is cut and none is left out.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        assert lengths[index] <= capacity, f"item {index} has {lengths[index]} of {capacity} tokens"
        fit = bisect_left(room, (lengths[index], -1))
        if fit == len(room):
            rows.append([])
            free, row = capacity, len(rows) - 1
        else:
            free, row = room.pop(fit)
        rows[row].append(index)
        insort(room, (free - lengths[index], row))
    return rows


def make_plan(
    lengths: list[int],
    *,
    row_tokens: int,
    epochs: int,
    seed: int,
    rows_per_step: int | None = None,
    pairs_per_step: int | None = None,
) -> Plan:
    """Every optimizer step of a run. Each epoch holds each example once, in an order of its own.

    A step is `rows_per_step` rows, as full as packing makes them, or `pairs_per_step` examples in
    as few rows as hold them; the last step of an epoch has what is left.
    """
    plan: Plan = []
    for epoch in range(epochs):
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
        if pairs_per_step is not None:
            plan += _packed(order, lengths, row_tokens, pairs_per_step)
            continue
        rows = [row for rows in _packed(order, lengths, row_tokens, PACKING_WINDOW) for row in rows]
        rows = [rows[i] for i in random.permutation(len(rows))]
        plan += [
            rows[start : start + rows_per_step] for start in range(0, len(rows), rows_per_step)
        ]
    return plan


def _packed(order: np.ndarray, lengths: list[int], capacity: int, size: int) -> Plan:
    """The rows of each `size` examples in this order."""
    groups = [order[start : start + size].tolist() for start in range(0, len(order), size)]
    return [
        [[group[i] for i in row] for row in best_fit([lengths[i] for i in group], capacity)]
        for group in groups
    ]


def interleave(
    sizes: list[int], probabilities: tuple[float, ...], seed: int
) -> list[tuple[int, int]]:
    """Mixes sources: (source, item) of a stream in which each source has its share.

    Sources are drawn at random and read in order, from the start again when they end; the stream
    ends when every item of every source has been read. It is the stream that `interleave_datasets`
    of the library `datasets` makes with "all_exhausted", which the official reward model was
    trained on.
    """
    random = np.random.default_rng(seed)
    read = [0] * len(sizes)
    stream: list[tuple[int, int]] = []
    while True:
        for source in random.choice(len(sizes), size=1000, p=probabilities).tolist():
            stream.append((source, read[source] % sizes[source]))
            read[source] += 1
            if all(done >= size for done, size in zip(read, sizes)):
                return stream
