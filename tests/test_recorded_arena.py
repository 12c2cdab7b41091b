"""Scores of recorded battles of Arena-Hard: those that were published."""

import pytest

from tests.bench.arena_hard import PUBLISHED, check
from tests.recorded import recorded


@pytest.mark.parametrize("model", PUBLISHED)
def test_recorded_battles_have_the_published_scores(model):
    """37.90 for gpt-4-0613 and 23.34 for gpt-3.5-turbo-0125, with intervals like the published."""
    check(recorded("arena_hard"), model)
