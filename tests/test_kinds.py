"""Results on general benchmarks in the report: tables by hand, what may not be compared, bars."""

import pytest

from janus_min.errors import UserError
from janus_min.kinds import KINDS
from janus_min.report import as_text
from tests.results import (
    alpaca_eval,
    arena_hard,
    group,
    mt_bench,
    responses,
    reward,
    toxicity,
    warnings,
    write_and_load,
)

NOTHING = {  # what a run without a usable answer has
    "alpaca-eval": dict.fromkeys(
        ("win_rate", "standard_error", "interval", "length_controlled", "lc_error", "length")
    ),
    "mt-bench": {"score": None, "interval": None, "turns": dict.fromkeys("12"), "by_category": {}},
    "arena-hard": {"score": None, "interval": None, "length": None},
    "toxicity": {"groups": {"all": group(0, None, None, None)}, "interval": None}
    | {"perplexity": None, "distinct": dict.fromkeys("123")},
    "reward": {"accuracy": None, "interval": None, "score": None, "sections": {}, "by_subset": {}},
}
OK, NONE_OK = {"ok": 9, "failed": 0, "missing": 0}, {"ok": 0, "failed": 0, "missing": 0}
ALPACA = [
    alpaca_eval("janus", 26.94, 27.85),
    alpaca_eval("mistral", None, 14.7, lc_error=None, standard_error=None, length=1675.9),
    alpaca_eval("none", 0, 0, counts=NONE_OK) | NOTHING["alpaca-eval"],
]
MT = [
    mt_bench("janus", 8.004, 7.4, 7.7),
    mt_bench("mistral", 6, None, 6.0, by_category={"writing": None, "coding": 4}),
    mt_bench("none", 0, 0, 0, counts=NONE_OK) | NOTHING["mt-bench"],
]
ARENA = [
    arena_hard("janus", 20.93),
    arena_hard("none", 0, counts=NONE_OK) | NOTHING["arena-hard"],
]
TOXIC = [
    toxicity("janus", 0.4, 0.25),
    toxicity("quark", 0.5, 0.5, groups={"all": group(9, 0.5, 0.5, None)}),
    toxicity("none", 0, 0, counts=NONE_OK) | NOTHING["toxicity"],
]
REWARD = [
    reward("rm", 70.55),
    reward("part", 50, score=None, sections={"Chat": 50.0}, by_subset={}, incomplete=["a", "b"]),
    reward("none", 0, counts=NONE_OK) | NOTHING["reward"],
]
RESPONSES = [
    responses("janus", 1099.96, 0.25),
    responses("mistral", 50.0, None, by_source={"flask": {"words": 8, "rouge_l": 0.125}}),
]
TABLES = [
    (ALPACA, """\
model      LC win rate       win rate    95 % interval   wins   draws   losses   length     failed
janus     26.9 ± 0.9 %   27.9 ± 1.4 %   25.2 to 30.6 %    216       3      586    1,923   0 of 805
mistral              —         14.7 %   12.0 to 17.4 %    216       3      586    1,676   0 of 805
none                 —       no score                —    216       3      586        —     0 of 0

LC win rate: length-controlled, as if both wrote responses of the same length
±: standard error
95 % interval: of the win rate, over instructions
length: mean characters of a response"""),
    (MT, """\
model     turn 1   turn 2    average   95 % interval     failed
janus       8.00     7.40       7.70    7.40 to 8.00   2 of 160
mistral     6.00        —       6.00    5.70 to 6.30   2 of 160
none           —        —   no score               —     0 of 0

model     writing   math   coding
janus        8.25   3.50        —
mistral         —      —     4.00
none            —      —        —

average: of all grades of both turns
95 % interval: of the average, over questions"""),
    (ARENA, """\
model      score    95 % interval   length       failed
janus     20.9 %   19.4 to 22.4 %      573   2 of 1,000
none    no score                —        —       0 of 0

score: wins and half of the ties, where clear wins and losses count three times
95 % interval: of the score, by resampling the games
length: mean tokens of a response, as the file of the answers counts them"""),
    (REWARD, """\
model     Chat   Chat Hard    score   accuracy    95 % interval   pairs
rm      90.0 %      52.5 %   71.2 %     70.5 %   69.5 to 71.5 %   4,000
part    50.0 %           —        —     50.0 %   49.0 to 51.0 %   4,000
none         —           —        —   no score                —       0

model   math-prm   hep-cpp
rm        80.0 %    60.0 %
part           —         —
none           —         —

score: mean of the sections, as RewardBench
accuracy: over all pairs
95 % interval: of the accuracy, over pairs
warning: no score of the whole benchmark, a; b: part"""),
]  # fmt: skip


@pytest.fixture
def loaded(tmp_path):
    return lambda *results: write_and_load(tmp_path, *results)


def sections(text):
    """What stands between empty lines."""
    return text.split("\n\n")


@pytest.mark.parametrize(("results", "tables"), TABLES)
def test_tables(loaded, results, tables):
    """A dash is what a result does not have; "no score" stands where its main number is lacking."""
    assert "\n\n".join(sections(as_text(loaded(*results)))[2:]) == tables


def test_a_table_of_toxicity(loaded):
    title, above, all_prompts, groups, below = sections(as_text(loaded(*TOXIC)))
    assert title == "Toxicity of continuations: of the worst of each prompt"
    assert above == "scorer: perspective\nbench: bench.jsonl, 921 items\ngenerations: 25"
    left = """\
model   prompts   avg. max. toxicity   toxicity prob.    95 % interval
janus       100        0.400 ± 0.200            0.250   0.300 to 0.500
quark         9                0.500            0.500   0.400 to 0.600
none          0             no score                —                —"""
    right = """\
   output perplexity   dist-2   dist-3        failed
                11.2     0.75     0.80   50 of 2,500
                11.2     0.75     0.80   50 of 2,500
                   —        —        —        0 of 0"""
    lines = zip(left.splitlines(), right.splitlines())
    assert all_prompts == "\n".join(a + b for a, b in lines)
    assert (
        groups
        == """\
group                                   janus   quark   none
toxic: prompts                             30       —      —
toxic: avg. max. toxicity       0.700 ± 0.200       —      —
toxic: toxicity prob.                   0.800       —      —
non-toxic: prompts                         70       —      —
non-toxic: avg. max. toxicity   0.300 ± 0.200       —      —
non-toxic: toxicity prob.               0.125       —      —"""
    )
    assert below.splitlines()[0] == (
        "avg. max. toxicity: mean over prompts of the largest toxicity of a continuation"
    )
    ungrouped = {"all": group(9, 0.5, 0.5), "toxic": group(0, None, None)}
    assert "group" not in as_text(loaded(toxicity("a", 0.5, 0.5, groups=ungrouped)))


def test_a_table_of_responses(loaded):
    _, above, lengths, classes, sources, below = sections(as_text(loaded(*RESPONSES)))
    assert above == "bench: bench.jsonl, 921 items"  # and no judge
    left = """\
model        mean   median   deviation   shortest   longest
janus     1,100.0     95.0        31.5          4     1,200
mistral      50.0     95.0        31.5          4     1,200"""
    right = """\
   ROUGE-L average   ROUGE-L maximum   instructions
             0.250             0.500              2
                 —                 —              —"""
    assert lengths == "\n".join(a + b for a, b in zip(left.splitlines(), right.splitlines()))
    assert (
        classes
        == """\
length               janus   mistral
0 to 49 words       12.5 %    12.5 %
50 to 99 words      62.5 %    62.5 %
100 words or more   25.0 %    25.0 %"""
    )
    assert (
        sources
        == """\
source     janus      mistral
koala    90.0; —            —
flask          —   8.0; 0.125"""
    )
    assert below.splitlines()[-1] == (
        "warning: no ROUGE-L, as no instruction has responses under two different system messages: "
        "mistral"
    )


def test_many_parts_of_a_benchmark_are_rows(loaded):
    nine = {f"c{i}": 1 + i / 4 for i in range(9)}
    subsets = {name: {"accuracy": 10 * v, "pairs": 2} for name, v in nine.items()}
    for head, result, cell in (
        ("category", mt_bench("a", 8, 7, 7.5, by_category=nine), "1.25"),
        ("subset", reward("a", 70, by_subset=subsets), "12.5 %"),
    ):
        rows = [
            line.split(maxsplit=1) for line in sections(as_text(loaded(result)))[3].splitlines()
        ]
        assert rows[0] == [head, "a"] and rows[2] == ["c1", cell] and len(rows) == 10


def test_a_result_without_parts_has_one_table(loaded):
    alone = mt_bench("a", 8, 7, 7.5, by_category={}), reward("a", 70, sections={}, by_subset={})
    for result in alone:
        text = as_text(loaded(result))
        assert len(sections(text)) == 4
    assert " score" not in sections(text)[2]  # RewardBench's, of other pairs


# What may be compared


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (alpaca_eval("a", 1, 1), alpaca_eval("b", 1, 1, opponent="x"),
         "opponent: 'gpt-4-turbo' and 'x'"),
        (arena_hard("a", 1), arena_hard("b", 1, opponent="x"), "opponent: 'gpt-4-0314' and 'x'"),
        (toxicity("a", 0.5, 0.5), toxicity("b", 0.5, 0.5, generations=5), "generations: 25 and 5"),
        (toxicity("a", 0.5, 0.5), toxicity("b", 0.5, 0.5, judge="own"),
         "judge: 'perspective' and 'own'"),
        (mt_bench("a", 8, 7, 7.5), mt_bench("b", 8, 7, 7.5, settings={"prompt": "p"}),
         "prompt: None and 'p'"),
    ],
)  # fmt: skip
def test_what_differs_is_refused(tmp_path, loaded, one, other, found):
    results = loaded(one, other)
    with pytest.raises(UserError) as error:
        as_text(results)
    files = [tmp_path / number / "result.json" for number in "01"]
    assert str(error.value) == (
        f"{files[0]} and {files[1]} differ in {found} "
        "(--mixed puts them into one table nevertheless)"
    )
    name = found.split(":")[0]
    text = as_text(results, mixed=True)
    assert sections(text)[2].splitlines()[0].endswith(f"   {name}")
    assert warnings(text) == [f"the rows cannot be compared, they differ in {name}"]


def test_shares_of_failed_scores_are_compared_too(loaded):
    half = {"ok": 1, "failed": 1, "missing": 0}
    with pytest.raises(UserError, match=r"share of failed judgments.*2.0 % and 50.0 %"):
        as_text(loaded(toxicity("a", 0.5, 0.5), toxicity("b", 0.5, 0.5, counts=half)))


def test_rewards_and_responses_have_no_judge_to_differ(loaded):
    for pair in ((reward("a", 70), reward("b", 60)), (RESPONSES[0], RESPONSES[0])):
        text = as_text(loaded(*pair))
        assert "judge" not in text and warnings(text) == []


@pytest.mark.parametrize(
    ("result", "count", "warning"),
    [
        (alpaca_eval("b", 1, 1), "dropped",
         "judgments without a usable preference, which are left out"),
        (alpaca_eval("b", 1, 1), "twice", "judgments that are there twice, of which one counts"),
        (alpaca_eval("b", 1, 1), "same", "responses that are the opponent's own, which are draws"),
        (alpaca_eval("b", 1, 1), "missing",
         "items of the bench without a response, which are left out"),
        (mt_bench("b", 8, 7, 7), "cut", "responses that were cut short at their limit of tokens"),
        (mt_bench("b", 8, 7, 7), "missing",
         "turns of questions without an answer, which are left out"),
        (mt_bench("b", 8, 7, 7), "marked",
         "responses that contain a grade such as [[5]]; read them"),
        (arena_hard("b", 20), "cut",
         "pairs of responses of which one was cut short at its limit of tokens"),
        (arena_hard("b", 20), "empty", "pairs of responses of which one has no text"),
        (arena_hard("b", 20), "marked",
         "pairs of responses of which one contains a label such as [[A>B]]; read them"),
        (arena_hard("b", 20), "differ", "judgments whose label is not the one in their text"),
        (toxicity("b", 0, 0), "missing", "prompts without any score, which are left out"),
        (toxicity("b", 0, 0), "empty", "continuations without any text, which have no score"),
        (toxicity("b", 0, 0), "ungrouped",
         "prompts without a toxicity of their own, which are in no group"),
        (toxicity("b", 0, 0), "uneven", "prompts with fewer continuations than others"),
        (toxicity("b", 0, 0), "implausible",
         "perplexities too large to be true, which are left out"),
        (reward("b", 70), "ties", "pairs with equal rewards, which count as wrong"),
        (reward("b", 70), "cut", "pairs that were cut at the longest length"),
        (reward("b", 70), "missing", "pairs without rewards, which are left out"),
    ],
)  # fmt: skip
def test_warnings(loaded, result, count, warning):
    result = result | {"counts": result["counts"] | {count: 1234}}
    assert warnings(as_text(loaded(result))) == [f"{warning}: 1,234 of b"]


# Bars


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (ALPACA[::2], {
            "LC win rate": [(26.94, None, "26.9 ± 0.9 %"), None],
            "win rate": [(27.85, [25.15, 30.55], "27.9 ± 1.4 %"), None],
        }),
        (MT[1:], {
            "turn 1": [(6, None, "6.00"), None],
            "turn 2": [None, None],
            "average": [(6, [5.7, 6.3], "6.00"), None],
        }),
        (ARENA, {"score": [(20.93, [19.43, 22.43], "20.9 %"), None]}),
        (TOXIC[1:], {
            "avg. max. toxicity": [(0.5, [0.4, 0.6], "0.500"), None],
            "toxicity prob.": [(0.5, None, "0.500"), None],
        }),
        (REWARD[::2], {
            "Chat": [(90, None, "90.0 %"), None],
            "Chat Hard": [(52.5, None, "52.5 %"), None],
            "accuracy": [(70.55, [69.55, 71.55], "70.5 %"), None],
        }),
        ([RESPONSES[0], responses("b", 1, 1, histogram={"edges": [0, 50], "counts": [0, 0]})], {
            "0 to 49 words": [(12.5, None, "12.5 %"), (0, None, "0.0 %")],
            "50 to 99 words": [(62.5, None, "62.5 %"), None],
            "100 words or more": [(25, None, "25.0 %"), None],
            "50 words or more": [None, (0, None, "0.0 %")],
        }),
    ],
)  # fmt: skip
def test_bars(loaded, results, expected):
    """Value, interval and text of each; none without a number."""
    kind = KINDS[results[0]["kind"]]
    found = dict(kind.bars(loaded(*results)))
    assert list(found) == list(expected)
    for head, bars in expected.items():
        for bar, own in zip(found[head], bars, strict=True):
            value, interval, text = own or (None, None, "no score")
            assert bar.value == (value if value is None else pytest.approx(value)), head
            assert bar.interval == (interval and pytest.approx(interval)), head
            assert bar.text == text, head
            assert bar.value is None or kind.axis.low <= bar.value <= kind.axis.high


# A user's mistakes


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (alpaca_eval("a", "x", 1), "'length_controlled' must be a number or null, found 'x'"),
        (alpaca_eval("a", 1, 1, wins=None), "'wins' must be a whole number, found None"),
        (alpaca_eval("a", 1, 1, opponent=None), "'opponent' must be text, found None"),
        (mt_bench("a", 8, 7, 7, turns={"1": 8}),
         "'turns' has the keys ['1'], needed are ['1', '2']"),
        (mt_bench("a", 8, 7, 7, by_category={"math": "x"}),
         "'by_category.math' must be a number or null, found 'x'"),
        (arena_hard("a", 20, interval=[1, 2, 3]),
         "'interval' must be two numbers or null, found [1, 2, 3]"),
        (toxicity("a", 0, 0, groups={"toxic": group(1, 1, 1)}),
         "'groups' has the keys ['toxic'], needed are ['all']"),
        (toxicity("a", 0, 0, groups={"all": group(1, 1, 1), "toxic": group(0.5, 1, 1)}),
         "'groups.toxic.prompts' must be a whole number, found 0.5"),
        (toxicity("a", 0, 0, generations=None), "'generations' must be a whole number, found None"),
        (reward("a", 70, by_subset={"x": {"accuracy": 1}}),
         "'by_subset.x' has the keys ['accuracy'], needed are ['accuracy', 'pairs']"),
        (reward("a", 70, incomplete="Chat"),
         "'incomplete' must be a list of texts, found 'Chat'"),
        (responses("a", 1, 1, histogram={"edges": ["x"], "counts": [1]}),
         "'histogram.edges' must be a list of numbers, found ['x']"),
        (responses("a", 1, 1, histogram={"edges": [0], "counts": [0.5]}),
         "'histogram.counts' must be a list of whole numbers, found [0.5]"),
        (responses("a", 1, 1, rouge_l={"average": 1}),
         "'rouge_l' has the keys ['average'], needed are ['average', 'maximum', 'instructions', "
         "'responses']"),
    ],
)  # fmt: skip
def test_broken_results_say_where_and_what(tmp_path, loaded, result, message):
    with pytest.raises(UserError) as error:
        loaded(result)
    assert str(error.value) == f"{tmp_path / '0/result.json'}: {message}"
