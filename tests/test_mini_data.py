"""The little world: a perfect teacher, a strict judge, and splits that are what they say."""

import itertools
import json
from collections import Counter

import pytest

from janus_min.data import load_examples
from janus_min.formats import pair_row, sft_row
from janus_min.grading import score
from janus_min.mini_benches import showcase, showcase_sets
from janus_min.mini_data import (
    SPLITS,
    UNIFORM_SYSTEM,
    bench,
    collection,
    content_pairs,
    held_out_pairs,
    pairs,
    plain_texts,
    row_preferences,
    rubric,
    rubric_preference,
    split_combinations,
    uniform_collection,
)
from janus_min.tokenizer import Tokenizer
from janus_min.world import (
    BY_DIMENSION,
    DIMENSIONS,
    PREFERENCES,
    TOPICS,
    WORLD,
    answer,
    judge,
    true_sentences,
)
from tests.runs import rows_in


def names(preferences):
    return tuple(preference.preference for preference in preferences)


def test_the_world_has_the_papers_shape():
    assert tuple(BY_DIMENSION) == DIMENSIONS
    for preferences in BY_DIMENSION.values():
        counts = Counter(preference.subdimension for preference in preferences)
        assert len(counts) >= 3 and all(2 <= count <= 4 for count in counts.values())
    wordings = [wording for preference in PREFERENCES for wording in preference.wordings]
    assert len(wordings) == len(set(wordings)) == 8 * len(PREFERENCES)
    sentences = [sentence for slots in TOPICS.values() for sentence in slots.values()]
    assert len(sentences) == len(set(sentences)) == 26 * 12


ALL_SETS = list(itertools.product(*BY_DIMENSION.values()))


@pytest.mark.parametrize("topic", TOPICS)
def test_the_teacher_gets_full_marks_and_tells_the_truth(topic):
    for preferences in ALL_SETS[:: 7 + len(topic)]:
        response = answer(topic, preferences)
        grades = [judge(preference, topic, response) for preference in preferences]
        assert grades == [5, 5, 5, 5], (names(preferences), response)
        right, total = true_sentences(topic, response)
        assert right == total >= 5


def test_every_preference_is_visible_only_where_it_was_asked_for():
    """An answer scores at most 3 by any preference of another set in the same dimension."""
    topic = "tea"
    for preferences in ALL_SETS[::11]:
        response = answer(topic, preferences)
        for asked in preferences:
            for rival in BY_DIMENSION[asked.dimension]:
                if rival != asked:
                    assert judge(rival, topic, response) <= 3, (rival, response)


def test_judge_by_hand():
    """A list of five lines: all with bullets is 5, one line without is 1 + 4·0.8 = 4, two are 3."""
    bullets = next(p for p in PREFERENCES if p.effect == "bullets")
    facts = list(TOPICS["tea"].values())[:5]
    for bare, grade in [(0, 5), (1, 4), (2, 3), (5, 1)]:
        lines = [fact if i < bare else f"- {fact}" for i, fact in enumerate(facts)]
        assert judge(bullets, "tea", "\n".join(lines)) == grade
    number = next(p for p in PREFERENCES if p.effect == "number")
    wanted = TOPICS["tea"]["number"]
    assert judge(number, "tea", wanted) == 5
    assert judge(number, "tea", TOPICS["paper"]["number"]) == 1  # the number of another topic
    assert judge(number, "tea", " ".join(wanted.split()[:-2]) + ".") in (3, 4)


def test_half_of_the_grade_for_the_audience_is_the_register_of_the_facts():
    slots = TOPICS["tea"]
    student = next(p for p in PREFERENCES if p.effect == "subject")
    child = next(p for p in PREFERENCES if p.effect == "play")
    technical = f"{slots['technical_1']} {slots['technical_2']} {slots['subject']}"
    plain = f"{slots['plain_1']} {slots['plain_2']} {slots['subject']}"
    assert judge(student, "tea", technical) == 5
    assert judge(student, "tea", plain) == 3  # the right sentence behind the wrong facts
    assert judge(child, "tea", plain) == 3  # the right facts before the wrong sentence
    assert judge(child, "tea", technical) == 1


@pytest.mark.parametrize("nothing", ["", "   ", "\n\n", "-", "?", "# ", "1. "])
def test_judge_survives_empty_answers(nothing):
    for preference in PREFERENCES:
        assert judge(preference, "tea", nothing) == 1
    assert true_sentences("tea", nothing)[0] == 0


def test_an_answer_that_has_everything_follows_nothing():
    stuffed = " ".join(TOPICS["tea"].values())
    for preference in BY_DIMENSION["informativeness"] + BY_DIMENSION["harmlessness"]:
        assert judge(preference, "tea", stuffed) == 1


def test_untrue_sentences_are_counted():
    good = TOPICS["tea"]["plain_1"]
    assert true_sentences("tea", f"{good} Tea is a kind of fish.") == (1, 2)
    assert true_sentences("tea", TOPICS["rain"]["plain_1"]) == (0, 1)
    opening = WORLD["tones"]["cheerful"]["opening"]
    assert true_sentences("tea", f"{opening} {good}") == (1, 1)


def test_unseen_combinations_join_a_pair_that_training_never_joins():
    trained, unseen = split_combinations()
    assert len(trained) + len(unseen) == len(ALL_SETS) and min(len(trained), len(unseen)) > 500
    joined = {pair for combination in trained for pair in itertools.combinations(combination, 2)}
    for combination in unseen:
        assert any(pair not in joined for pair in itertools.combinations(combination, 2))
    for preferences in BY_DIMENSION.values():  # but each preference itself is well known
        for preference in preferences:
            assert sum(preference in combination for combination in trained) > 50


def test_pairs_are_an_aligned_response_and_one_that_was_asked_for_otherwise():
    """As in the paper: one of an instruction's system messages with its own response, and the
    response to one of the other two."""
    rows, found = collection(), pairs()
    systems = {row["system"]: row for row in rows}
    prompts = [pair["prompt"] for pair in found]
    assert len(found) == len(set(prompts)) == len({row["prompt"] for row in rows})
    chosen_places = Counter()
    for pair in found:
        own = [row for row in rows if row["prompt"] == pair["prompt"]]
        row = systems[pair["system"]]
        assert row in own and pair["chosen"] == row["output"] != pair["rejected"]
        assert pair["rejected"] in [other["output"] for other in own if other is not row]
        chosen_places[own.index(row)] += 1
    assert all(count > 250 for count in chosen_places.values())


def test_content_pairs_differ_in_everything_but_style():
    systems, found = {row["system"]: row for row in collection()}, content_pairs()
    assert {pair["system"] for pair in found} == systems.keys()
    for pair in found[::40]:
        row = systems[pair["system"]]
        assert pair["chosen"] == row["output"]
        style, *others = row_preferences(row)
        topic, rejected = row["original_source"], pair["rejected"]
        assert judge(style, topic, rejected) == 5
        assert all(judge(other, topic, rejected) < 5 for other in others)


def test_held_out_pairs_are_of_unseen_combinations():
    _, unseen = split_combinations()
    answers = {answer(topic, preferences) for topic in TOPICS for preferences in unseen}
    systems = {row["system"] for row in collection()}
    for pair in held_out_pairs():
        assert pair["chosen"] in answers and pair["rejected"] in answers
        assert pair["chosen"] != pair["rejected"] and pair["system"] not in systems


def test_collections_of_one_system_message_for_each_instruction(world):
    """Of all of them, and of every second one."""
    rows = collection()
    assert rows_in(world / "one.jsonl") == rows[::3] + plain_texts()
    assert rows_in(world / "small.jsonl") == rows[::6]
    prompts = [row["prompt"] for row in rows[::3]]
    assert len(prompts) == len(set(prompts)) == 960 and len(rows[::6]) == 480


def test_the_collection_of_two_leaves_out_one_of_three(world):
    rows = rows_in(world / "two.jsonl")
    rows, whole = [row for row in rows if "prompt" in row], collection()
    assert rows == [row for row in whole if row not in whole[2::3]]
    assert set(Counter(row["prompt"] for row in rows).values()) == {2}


def test_training_never_shows_what_the_bench_calls_unseen():
    rows, items = collection(), bench()
    sets = {tuple(entry["preference"] for entry in row["preference_set"]) for row in rows}
    seen_pairs = {pair for one in sets for pair in itertools.combinations(one, 2)}
    texts = [row["text"] for row in plain_texts()]
    read = [*(row["system"] for row in rows), *texts]
    for text in texts:  # nor do plain texts join what the collection keeps apart
        mentioned = [
            p for p in PREFERENCES if any(w[1:].lower() in text.lower() for w in p.wordings)
        ]
        assert 1 <= len(mentioned) <= 4
        assert all(pair in seen_pairs for pair in itertools.combinations(names(mentioned), 2))
    everything = "\n".join(read).lower()
    systems = {row["system"] for row in rows}
    for item in items:
        preferences = [rubric_preference(r) for r in item["rubrics"]]
        joined = list(itertools.combinations(names(preferences), 2))
        assert item["system"] not in systems
        assert (names(preferences) in sets) == (item["source"] != "unseen combinations")
        assert all(pair in seen_pairs for pair in joined) == (
            item["source"] != "unseen combinations"
        )
        held_back = [wording for p in preferences for wording in p.wordings[6:]]
        assert not any(wording[1:].lower() in everything for wording in held_back)
        used = sum(wording[1:].lower() in item["system"].lower() for wording in held_back)
        assert used == (4 if item["source"] == "unseen wordings" else 0)
    assert Counter(item["source"] for item in items) == {split: 120 for split in SPLITS}


def test_collection_has_three_system_messages_for_each_instruction():
    rows = collection()
    systems = {}
    for row in rows:
        systems.setdefault(row["prompt"], set()).add(row["system"])
        assert [entry["dimension"] for entry in row["preference_set"]] == list(DIMENSIONS)
    assert all(len(messages) == 3 for messages in systems.values())
    assert len(systems) == 12 * 10 * 8
    assert collection() == rows  # the same every time


def test_uniform_collection_differs_in_system_message_and_answer_alone():
    uniform = uniform_collection()
    assert [row["prompt"] for row in uniform] == [row["prompt"] for row in collection()[::3]]
    assert {row["system"] for row in uniform} == {UNIFORM_SYSTEM}
    for row in uniform[::50]:
        right, total = true_sentences(row["original_source"], row["output"])
        assert right == total == 4


def test_rubrics_name_their_preference():
    for preference in PREFERENCES:
        assert rubric_preference(json.loads(json.dumps(rubric(preference)))) == preference
        assert list(rubric(preference)["score_descriptions"]) == list("12345")


def test_score_by_hand():
    items = [item for item in bench() if item["source"] == SPLITS[0]][:2]
    perfect = [item["reference_answer"] for item in items]
    assert score("x", items, perfect).mean == 5.0
    half = score("x", items, [perfect[0], "Nonsense."])
    assert half.mean == 3.0 and half.items == 2 and half.sentences == half.true + 1
    assert str(half).startswith("x: 3.00 of 5  (2 answers, ")


def test_showcase_shows_three_users_whose_sets_were_not_trained():
    trained = {
        tuple(entry["preference"] for entry in row["preference_set"]) for row in collection()
    }
    prompts = showcase()
    assert len({system for system, _ in prompts}) == 3
    assert len({prompt for _, prompt in prompts}) == 1
    assert not trained & {names(preferences) for preferences in showcase_sets()}


def test_files_are_read_by_the_trainer(world):
    tokenizer = Tokenizer(world)
    texts = len(plain_texts())
    for name, count, parse in (
        ("multifaceted", 2880 + texts, sft_row),
        ("uniform", 2 * 960 + 2 * texts, sft_row),
        ("small", 480, sft_row),
        ("one", 960 + texts, sft_row),
        ("two", 1920 + texts, sft_row),
        ("texts", texts, sft_row),
        ("chosen", 960, sft_row),
        ("pairs", 960, pair_row),
        ("content-pairs", 8640, pair_row),
        ("pairs-held-out", 300, pair_row),
    ):
        path = world / f"{name}.jsonl"
        examples, dropped = load_examples(path, tokenizer, parse, max_tokens=1024)
        assert len(examples) == count and not dropped, name
    items = rows_in(world / "bench.jsonl")
    assert items == bench()
    texts = [item["reference_answer"] for item in items] + [item["system"] for item in items]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(texts)] == texts
