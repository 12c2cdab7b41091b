"""Packing, the plan of a run, and the mixture of sources."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from janus_min.plan import best_fit, interleave, make_plan


def random_lengths(count):
    return np.random.default_rng(0).integers(2, 25, count).tolist()


def test_best_fit_keeps_every_item_whole_and_once():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 40, 500).tolist()
    rows = best_fit(lengths, 100)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert all(sum(lengths[i] for i in row) <= 100 for row in rows)
    assert len(rows) <= 1.02 * sum(lengths) / 100  # nearly no room is wasted


def test_best_fit_takes_the_fullest_row_that_fits():
    assert best_fit([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]
    assert best_fit([7, 5, 3, 3], 10) == [[0, 2], [1, 3]]
    assert best_fit([5], 5) == [[0]]


def plan_of(lengths, **changes):
    settings = dict(row_tokens=64, rows_per_step=3, epochs=2, seed=1) | changes
    return make_plan(lengths, **settings)


def test_plan_holds_every_example_once_an_epoch():
    lengths = random_lengths(100)
    plan = plan_of(lengths)
    used = [i for step in plan for row in step for i in row]
    assert Counter(used) == {i: 2 for i in range(100)}
    assert sorted(used[:100]) == list(range(100))  # the first epoch ends where the second begins
    assert used[:100] != used[100:]
    assert all(1 <= len(step) <= 3 for step in plan)
    assert all(sum(lengths[i] for i in row) <= 64 for step in plan for row in step)


def test_plan_is_a_function_of_lengths_recipe_and_seed():
    lengths = random_lengths(50)
    assert plan_of(lengths) == plan_of(lengths)
    assert plan_of(lengths) != plan_of(lengths, seed=2)
    one_epoch = plan_of(lengths, epochs=1)
    assert plan_of(lengths)[: len(one_epoch)] == one_epoch


def pair_plan(lengths, **changes):
    settings = dict(row_tokens=64, pairs_per_step=8, epochs=2, seed=1) | changes
    return make_plan(lengths, **settings)


def test_a_step_of_pairs_has_a_fixed_number_of_them():
    lengths = random_lengths(100)
    plan = pair_plan(lengths)
    pairs = [[i for row in step for i in row] for step in plan]
    assert [len(step) for step in pairs] == ([8] * 12 + [4]) * 2
    first, second = (list(chain(*half)) for half in (pairs[:13], pairs[13:]))
    assert sorted(first) == sorted(second) == list(range(100)) and first != second
    assert all(sum(lengths[i] for i in row) <= 64 for step in plan for row in step)
    assert all(len(step) < 8 for step in plan)  # packed: no row for each pair


def test_the_size_of_rows_does_not_move_pairs_between_steps():
    lengths = random_lengths(100)
    plans = [pair_plan(lengths, row_tokens=size) for size in (24, 64, 1000)]
    steps = [[sorted(i for row in step for i in row) for step in plan] for plan in plans]
    assert steps[0] == steps[1] == steps[2] and plans[0] != plans[2]


@pytest.mark.parametrize("sizes", [[30, 7, 9], [5, 5000], [3000]])
def test_a_mixture_is_the_stream_of_the_library_datasets(sizes):
    """What the official reward model was trained on, draw by draw."""
    datasets = pytest.importorskip("datasets")
    shares = tuple(
        np.array([0.72, 0.14, 0.14][: len(sizes)]) / sum([0.72, 0.14, 0.14][: len(sizes)])
    )
    sources = [
        datasets.Dataset.from_dict({"source": [s] * size, "item": list(range(size))})
        for s, size in enumerate(sizes)
    ]
    theirs = datasets.interleave_datasets(
        sources, probabilities=list(shares), seed=42, stopping_strategy="all_exhausted"
    )
    assert interleave(sizes, shares, seed=42) == list(zip(theirs["source"], theirs["item"]))


def test_a_mixture_reads_each_source_in_order_and_again():
    stream = interleave([4, 100], (0.5, 0.5), seed=0)
    assert [item for source, item in stream if source == 1] == list(range(100))
    first = [item for source, item in stream if source == 0]
    assert first == [i % 4 for i in range(len(first))] and len(first) > 60
