"""Scores of recorded judgments of MT-Bench: those that were published."""

import pytest

from janus_min.formats import read_jsonl
from janus_min.mt_bench import Options, rescore
from tests.bench.mt_bench import PUBLISHED, check, score_of
from tests.recorded import recorded


@pytest.mark.parametrize(("file", "model"), PUBLISHED)
def test_recorded_judgments_have_the_published_scores(file, model):
    """6.4062 for Llama 2, 7.4000 for Granite, of whose judgments 120 of 160 cannot be read."""
    folder = recorded("mt_bench")
    bench = folder / "question.jsonl"
    result = rescore(Options(rescore=(folder / file,), bench=bench, name=model))
    check(result, PUBLISHED[file, model])
    assert len(result["by_category"]) == 8 and result["bench"]["items"] == 80


@pytest.mark.parametrize("file", sorted({file for file, _ in PUBLISHED}))
def test_each_recorded_judgment_is_read_as_its_score(file):
    rows = [record for _, record in read_jsonl(recorded("mt_bench", file))]
    assert len(rows) % 160 == 0
    assert [score_of(row["judgment"]) for row in rows] == [row["score"] for row in rows]
