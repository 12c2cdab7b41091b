"""AlpacaEval through a judge behind a real server, and judgments that there are already."""

import hashlib
import json
import math
import os
from dataclasses import fields

import pytest

from janus_min import alpaca_eval, judgments
from janus_min import client as client_module
from janus_min.alpaca_eval import Options, Sampling
from janus_min.connection import Connection
from janus_min.errors import UserError
from janus_min.judging import Work
from janus_min.win_rates import is_switched
from tests.runs import rows_in
from tests.servers import ChatServer, Reply, chat, question
from tests.test_judging import LIVES, NOBODY, Lives, between, bodies, silent

UPSTREAM = """\
<|im_start|>system
You choose.
<|im_end|>
<|im_start|>user
"q": {instruction}, { "m": {output_1} }, { "M": {output_2} }
<|im_end|>"""


# A judge, and files to be judged


def write_outputs(path, generator, texts):
    """Outputs in upstream's format: a text for each instruction."""
    records = [
        {"instruction": key, "output": text, "generator": generator, "dataset": "made up"}
        for key, text in texts.items()
    ]
    path.write_text(json.dumps(records))


def instructions(count):
    return [f"What is thing {n}?" for n in range(count)]


def write_case(folder, count=6, same=()):
    """Outputs of both models; those of the numbers in `same` are equal."""
    asked = instructions(count)
    theirs = {text: f"Thing {n} is known." for n, text in enumerate(asked)}
    ours = {t: theirs[t] if n in same else f"Answer {n}." for n, t in enumerate(asked)}
    write_outputs(folder / "gpt4.json", "gpt4", theirs)
    write_outputs(folder / "janus.json", "janus", ours)
    return asked


def chance(text):
    """How good an output is, between 0 and 1: it looks random."""
    return (1 + hashlib.sha256(text.encode()).digest()[0]) / 257


def reply(text, **logprobs):
    """The body of a reply of one token, with the likeliest tokens in its place."""
    body = chat(text, "length")
    tokens = [{"token": name, "logprob": value} for name, value in logprobs.items()]
    entry = {"token": text, "logprob": -0.1, "top_logprobs": tokens}
    body["choices"][0]["logprobs"] = {"content": [entry]}
    return body


def preferring(body, seen=None):
    """The reply of a judge that goes by `chance`."""
    user = question(body)
    first, second = (chance(between(user, f"answer_{name}")) for name in "mM")
    shares = {name: math.log(own / (first + second)) for name, own in zip("mM", (first, second))}
    return reply("m", The=-9.0, **shares)


def expected(ours, theirs):
    """The preference that this judge comes to, in whatever order it sees the two."""
    return 2 - chance(theirs) / (chance(ours) + chance(theirs))


def work_of(folder, url, **changes):
    values = {"responses": folder / "janus.json", "against": folder / "gpt4.json"}
    values |= {"out": folder / "out", "judge": "stub", "base_url": url, "workers": 4} | changes
    parts = (Options, Sampling, Connection)
    names = [{field.name for field in fields(part)} for part in parts]
    own = [{k: values[k] for k in mine & values.keys()} for mine in names]
    return Work(*(part(**given) for part, given in zip(parts, own)), "alpaca-eval")


def judged(folder, server, **changes):
    return alpaca_eval.evaluate(work_of(folder, server.url, **changes), silent)


# A judge that is asked


def test_the_judge_is_asked_for_one_token_and_its_rivals_and_equal_outputs_are_not_judged(tmp_path):
    asked = write_case(tmp_path, 6, same=(2,))
    with ChatServer(preferring) as server:
        result = judged(tmp_path, server)
    assert len(server.requests) == 5
    for seen in server.requests:
        body = seen.body
        assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 5)
        assert (body["temperature"], body["top_p"]) == (1.0, 1.0)
        instruction = between(question(body), "instruction")
        shown = [between(question(body), f"answer_{name}") for name in "mM"]
        ours_first = shown[0].startswith("Answer")
        assert ours_first == is_switched(instruction) and instruction in asked
    preferences = [
        1.5 if n == 2 else expected(f"Answer {n}.", f"Thing {n} is known.") for n in range(6)
    ]
    assert result["win_rate"] == pytest.approx(100 * (sum(preferences) / 6 - 1), rel=1e-12)
    assert result["counts"] == {
        "ok": 6, "failed": 0, "unanswered": 0, "missing": 0, "same": 1, "cut": 0, "empty": 0
    }  # fmt: skip
    assert (result["model"], result["opponent"], result["judge"]) == ("janus", "gpt4", "stub")
    assert result["length"] == (5 * len("Answer 0.") + len("Thing 2 is known.")) // 6
    assert result["length_controlled"] is None and result["answered_by"] == ["stub-1"]
    assert {is_switched(text) for text in asked} == {True, False}


def test_what_is_written_is_upstreams_format_and_gives_the_same_again(tmp_path):
    asked = write_case(tmp_path, 6, same=(2,))
    with ChatServer(preferring) as server:
        result = judged(tmp_path, server)
    path = tmp_path / "out" / "annotations.json"
    records = json.loads(path.read_text())
    assert [record["instruction"] for record in records] == asked
    for n, record in enumerate(records):
        assert record["generator_1"] == "gpt4" and record["output_1"] == f"Thing {n} is known."
        assert record["generator_2"] == "janus" and record["annotator"] == "stub"
        assert record["dataset"] == "made up"
        tokens = record["raw_completion"] and record["raw_completion"]["logprobs"]["content"]
        assert (tokens is None) == (n == 2)
        assert record["preference"] == (
            1.5 if n == 2 else pytest.approx(expected(record["output_2"], record["output_1"]))
        )
    recorded = alpaca_eval.rescore(Options(annotations=path))
    for key in ("win_rate", "standard_error", "discrete", "wins", "losses", "draws", "length"):
        assert recorded[key] == result[key], key
    assert recorded["bench"]["hash"] == result["bench"]["hash"]
    (tmp_path / "out" / "result.json").write_text(
        json.dumps(result | {"win_rate": 7, "counts": result["counts"] | {"ok": 0}})
    )
    assert alpaca_eval.rescore(Options(rescore=(tmp_path / "out",))) == result


def test_upstreams_prompt_file_is_filled_letter_by_letter(tmp_path):
    write_case(tmp_path, 4)
    prompt = tmp_path / "alpaca_eval_clf.txt"
    prompt.write_text(UPSTREAM)
    with ChatServer(lambda body, seen: reply("m", m=-0.1)) as server:
        result = judged(tmp_path, server, judge_prompt=prompt)
    for seen in server.requests:
        system, user = seen.body["messages"]
        assert system == {"role": "system", "content": "You choose."}
        n = int(user["content"].split("thing ")[1][0])
        texts = [f"Thing {n} is known.", f"Answer {n}."]
        first, second = texts[:: -1 if is_switched(f"What is thing {n}?") else 1]
        assert user["content"] == (
            f'"q": What is thing {n}?, {{ "m": {first} }}, {{ "M": {second} }}'
        )
    # A judge that always says m prefers our output just where it was shown first.
    assert result["wins"] == sum(map(is_switched, instructions(4)))
    assert result["wins"] + result["losses"] == 4


def undecided_on_3(body, seen=None):
    """The judge, of whose replies the one about thing 3 has no preference."""
    thing = between(question(body), "instruction")
    return reply("The", The=-0.1) if thing.endswith(" 3?") else preferring(body)


def test_replies_without_a_preference_are_left_out_and_counted(tmp_path):
    write_case(tmp_path, 12)

    with ChatServer(undecided_on_3) as server:
        result = judged(tmp_path, server)
    assert (result["counts"]["ok"], result["counts"]["failed"]) == (11, 1)
    [failed] = rows_in(tmp_path / "out" / "judgments.failed.jsonl")
    assert failed["id"] == "3" and failed["reply"]["logprobs"]
    assert failed["reason"].startswith("after 1 attempts: neither 'm' nor 'M' is likely")
    records = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [n for n, record in enumerate(records) if record["preference"] is None] == [3]
    recorded = alpaca_eval.rescore(Options(annotations=tmp_path / "out" / "annotations.json"))
    assert recorded["counts"]["failed"] == 1 and recorded["win_rate"] == result["win_rate"]


def test_a_server_without_log_probabilities_ends_the_run(evaluated, tmp_path):
    write_case(tmp_path, 40)
    with ChatServer(lambda body, seen: "m") as server:
        line = evaluated.fails(*flags(server.url, "--workers", 2))
        assert "the reply has no log-probabilities; the server must know 'logprobs'" in line
        assert "nothing came of 10 questions" in line and len(server.requests) < 40


# Length control


def controls(folder, count=12):
    """Files to control length by: weights of janus, difficulties, gamed rows of two models."""
    (folder / "weights.csv").write_text(
        ",np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)\n"
        "janus,-0.7,2.0,0.5\n"
    )
    d = [n / count for n in range(count)]
    lines = [f"{n},{value}" for n, value in enumerate(d)]
    (folder / "d.csv").write_text("\n".join(["index,instruction_difficulty", *lines]) + "\n")
    head = "preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model"
    gamed = [
        f"{0.5 - sign * 0.3},{n},{sign * (1 + n / 10)},{value},False,{model}"
        for model, sign in (("verbose", -1), ("concise", 1))
        for n, value in enumerate(d)
    ]
    (folder / "gamed.csv").write_text("\n".join([head, *gamed]) + "\n")
    return d


WEIGHTS, GAMED = ("weights", "difficulty"), ("df_gamed",)


def test_published_weights_through_all_of_it(tmp_path):
    """100 mean σ(0.5 + 2 d), over all twelve questions; also where a judgment failed."""
    write_case(tmp_path, 12)
    d = controls(tmp_path)
    wanted = 100 * sum(1 / (1 + math.exp(-0.5 - 2 * value)) for value in d) / 12
    files = {"weights": tmp_path / "weights.csv", "difficulty": tmp_path / "d.csv"}
    with ChatServer(undecided_on_3) as server:
        result = judged(tmp_path, server, **files)
    assert result["length_controlled"] == pytest.approx(wanted, rel=1e-12)
    assert result["length_control"] == "published weights" and result["counts"]["failed"] == 1


@pytest.mark.parametrize("names", [WEIGHTS, GAMED])
def test_a_run_its_folder_and_its_file_have_one_length_controlled_win_rate(tmp_path, names):
    write_case(tmp_path, 12)
    controls(tmp_path)
    paths = {"weights": "weights.csv", "difficulty": "d.csv", "df_gamed": "gamed.csv"}
    files = {name: tmp_path / paths[name] for name in names}
    with ChatServer(undecided_on_3) as server:
        result = judged(tmp_path, server, **files)
    assert result["length_controlled"] is not None
    assert alpaca_eval.rescore(Options(rescore=(tmp_path / "out",))) == result
    written = tmp_path / "out" / "annotations.json"
    recorded = alpaca_eval.rescore(Options(annotations=written, **files))
    for key in ("length_controlled", "lc_error", "win_rate", "length_control"):
        assert recorded[key] == result[key], key
    other = {name: tmp_path / paths[name] for name in (WEIGHTS if names == GAMED else GAMED)}
    there = tmp_path / "out" / "result.json"
    before = there.read_bytes()
    changed = alpaca_eval.rescore(Options(rescore=(tmp_path / "out",), out=tmp_path / "o", **other))
    assert changed["length_control"] != result["length_control"] and there.read_bytes() == before
    rows = alpaca_eval.rescore(Options(rescore=(tmp_path / "out",), difficulty_by="rows"))
    assert rows["control"]["by"] == "rows"
    files[names[0]].unlink()
    with pytest.raises(UserError, match="which is not there any more: give --weights and --diffic"):
        alpaca_eval.rescore(Options(rescore=(tmp_path / "out",)))


def test_where_rows_are_missing_a_difficulty_is_that_of_the_question(tmp_path):
    """Without thing 0, upstream gives thing 1 its difficulty, and so on."""
    write_case(tmp_path, 12)
    d = controls(tmp_path)
    path = write_annotations(tmp_path, [annotation(n) for n in range(1, 12)])
    files = {"weights": tmp_path / "weights.csv", "difficulty": tmp_path / "d.csv"}
    for more, own in (({"bench": tmp_path / "gpt4.json"}, d[1:]), ({"difficulty_by": "rows"}, d)):
        found = alpaca_eval.rescore(Options(annotations=path, **files, **more))
        chances = [1 / (1 + math.exp(-0.5 - 2 * value)) for value in own[:11]]
        assert found["length_controlled"] == pytest.approx(100 * sum(chances) / 11), more
        assert found["counts"]["missing"] == ("bench" in more)
    with pytest.raises(UserError) as caught:
        alpaca_eval.rescore(Options(annotations=path, **files))
    assert str(caught.value) == (
        f"{path} has 11 instructions, {tmp_path / 'd.csv'} 12 difficulties: give all instructions "
        "as --bench, or --difficulty-by rows, which is upstream's rule"
    )


def test_files_for_length_control_are_read_before_anybody_is_asked(evaluated, tmp_path):
    write_case(tmp_path, 12)
    controls(tmp_path)
    with ChatServer(preferring) as server:
        for more, line in (
            (("--weights", "no.csv", "--difficulty", "d.csv"), "no.csv"),
            (("--weights", "weights.csv", "--difficulty", "d.csv", "--name", "new"),
             "weights.csv has no weights of 'new'"),
            (("--df-gamed", "weights.csv", "--difficulty", "d.csv"), "column 'preference'"),
        ):  # fmt: skip
            assert line in evaluated.fails(*flags(server.url, *more))
            assert line in evaluated.fails(*flags(server.url, *more, "--dry-run"))
        assert not server.requests and not (tmp_path / "out").exists()


def test_the_baseline_against_itself_and_others_under_its_name(tmp_path):
    write_case(tmp_path, 12)
    controls(tmp_path)
    files = {"df_gamed": tmp_path / "gamed.csv"}
    rows = [annotation(n, 1.5, output_2="x" * 30) for n in range(12)]  # the baseline's own
    path = write_annotations(tmp_path, rows)
    assert alpaca_eval.rescore(Options(annotations=path, **files))["length_controlled"] == 50
    path = write_annotations(tmp_path, [annotation(n) for n in range(12)])
    with pytest.raises(UserError, match="both models have one name"):
        alpaca_eval.rescore(Options(annotations=path, name="gpt4", **files))


# Faults and kills


def child(folder, url, life):
    """An evaluation in a process of its own that does not wait long after a fault."""
    os.environ["OPENAI_API_KEY"] = f"life {life}"
    client_module.wait_before = lambda attempt, asked: 0.02
    alpaca_eval.evaluate(work_of(folder, url, workers=8), silent)


def test_killed_again_and_again_under_faults_it_ends_with_the_same_files(tmp_path, rough):
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        write_case(tmp_path / name, 200, same=(5,))
    with ChatServer(preferring) as server:
        judged(tmp_path / "calm", server)
        calm = bodies(server)
    lives = Lives(preferring)
    with ChatServer(lives.answer, faults=0.2, script=lives) as server:
        codes = [lives.live(n, child, tmp_path / "killed", server.url) for n in range(LIVES)]
        assert codes[-1] == 0 and all(code != 0 for code in codes[:-1])
        assert bodies(server).keys() == calm.keys()
    for name in ("result.json", "annotations.json", "questions.jsonl", "judgments.jsonl"):
        first, second = (tmp_path / own / "out" / name for own in ("calm", "killed"))
        assert first.read_bytes() == second.read_bytes(), name


# Judgments that there are


def annotation(n, preference=1.2, **more):
    return {
        "instruction": f"What is thing {n}?", "output_1": "x" * 30, "generator_1": "gpt4",
        "output_2": "y" * (10 + n), "generator_2": "janus", "preference": preference,
        "annotator": "gpt-4", "dataset": "made up",
    } | more  # fmt: skip


def write_annotations(folder, records):
    path = folder / "annotations.json"
    path.write_text(json.dumps(records))
    return path


def test_recorded_judgments_with_texts_for_numbers_failed_ones_and_one_twice(tmp_path):
    """Preferences 2, 0 (a draw in older files) and "1.25" are y of 1, 0.5 and 0.25; the second
    judgment of thing 0 does not count.
    """
    records = [annotation(0, 2), annotation(1, 0), annotation(2, "1.25"), annotation(3, None)]
    records += [annotation(0, 1), annotation(4, 2.5)]
    result = alpaca_eval.rescore(Options(annotations=write_annotations(tmp_path, records)))
    assert result["win_rate"] == pytest.approx(175 / 3)
    assert (result["wins"], result["draws"], result["losses"]) == (1, 1, 1)
    counts = result["counts"]
    assert (counts["ok"], counts["failed"], counts["twice"]) == (3, 2, 1)
    assert (result["model"], result["opponent"], result["judge"]) == ("janus", "gpt4", "gpt-4")
    assert result["length"] == 12  # of all five


def test_length_is_counted_in_code_points(tmp_path):
    """Not in what people see as one character, nor in UTF-16 units or bytes."""
    path = write_annotations(tmp_path, [annotation(0, output_2="日本🙂e\u0301")])
    assert alpaca_eval.rescore(Options(annotations=path))["length"] == 5


def test_a_name_picks_one_of_several_models_or_renames_the_only_one(tmp_path):
    records = [annotation(0, 2), annotation(0, 1, generator_2="rival")]
    path = write_annotations(tmp_path, records)
    assert alpaca_eval.rescore(Options(annotations=path, name="rival"))["wins"] == 0
    path = write_annotations(tmp_path, records[:1])
    assert alpaca_eval.rescore(Options(annotations=path, name="new"))["model"] == "new"


def test_scoring_needs_no_network_and_leaves_the_result_where_it_is_told(evaluated, tmp_path):
    path = write_annotations(tmp_path, [annotation(n) for n in range(3)])
    for flag in ("--annotations", "--rescore"):
        out = evaluated("alpaca-eval", flag, path, "--out", flag.strip("-"), "--base-url", NOBODY)
        assert "janus" in out and "20.0" in out
        result = json.loads((tmp_path / flag.strip("-") / "result.json").read_text())
        assert result["win_rate"] == pytest.approx(20)


def test_a_limit_takes_the_first_and_the_rest_is_asked_later(tmp_path):
    write_case(tmp_path, 8)
    ours = json.loads((tmp_path / "janus.json").read_text())
    ours[0] |= {"stop": "length"}
    ours[1] |= {"output": " "}
    (tmp_path / "janus.json").write_text(json.dumps(ours))
    with ChatServer(preferring) as server:
        first = judged(tmp_path, server, limit=3)
        assert first["counts"] | {"cut": 1, "empty": 1, "ok": 3} == first["counts"]
        whole = judged(tmp_path, server)
        assert whole["counts"]["ok"] == len(server.requests) == 8


def test_unanswered_questions_are_asked_again(tmp_path, rough):
    """One that is refused has no reply; the next run asks for it alone."""
    write_case(tmp_path, 8)

    def refuse(seen):
        thing = between(question(seen.body), "instruction")
        return Reply(400, {"error": {"message": "no"}}) if thing.endswith(" 5?") else None

    with ChatServer(preferring, script=refuse) as server:
        counts = judged(tmp_path, server)["counts"]
        assert (counts["ok"], counts["failed"], counts["unanswered"]) == (7, 1, 1)
    with ChatServer(preferring) as server:
        assert judged(tmp_path, server)["counts"]["ok"] == 8
        assert len(server.requests) == 1


# What users do wrong


def flags(url, *more):
    files = ("--responses", "janus.json", "--against", "gpt4.json")
    return ("alpaca-eval", *files, "--judge", "stub", "--out", "out", "--base-url", url, *more)


def no_generator(folder):
    (folder / "janus.json").write_text(json.dumps([{"instruction": "a", "output": "b"}]))


def unknown(folder):
    write_outputs(folder / "janus.json", "janus", {"What is new?": "It is."})


def few(folder):
    write_outputs(folder / "janus.json", "janus", {"What is thing 0?": "It is."})


def twice(folder):
    records = json.loads((folder / "janus.json").read_text())
    (folder / "janus.json").write_text(json.dumps([*records, records[0]]))


def two_models(folder):
    records = json.loads((folder / "janus.json").read_text())
    records[1]["generator"] = "rival"
    (folder / "janus.json").write_text(json.dumps(records))


@pytest.mark.parametrize(
    ("spoil", "more", "line"),
    [
        (no_generator, (), "janus.json, entry 0: keys"),
        (unknown, (), "janus.json: 1 instructions are not in gpt4.json, such as 'What is new?'"),
        (few, (), "janus.json: no outputs to 5 of 6 instructions of gpt4.json; --allow-missing "
         "compares the others"),
        (twice, (), "janus.json, entry 6: 'What is thing 0?' has an output already"),
        (two_models, (), "janus.json: 'generator' has 2 names: 'janus', 'rival'; needed is one"),
        (None, ("--name", "gpt4"), "both models have one name; give --name and --against-name"),
        (None, ("--weights", "w.csv"), "--weights needs --difficulty"),
        (None, ("--difficulty", "d.csv"), "--difficulty needs --weights or --df-gamed"),
        (None, ("--weights", "w.csv", "--df-gamed", "g.csv"), "--weights are published ones, "
         "--df-gamed makes new ones: give one"),
        (None, ("--difficulty-by", "luck"), "--difficulty-by is luck, must be questions or rows"),
        (None, ("--annotations", "a", "--limit", "3"), "--annotations and --limit do not go"),
        (None, ("--annotations", "a", "--dry-run"), "--annotations and --dry-run do not go"),
        (None, ("--annotations", "a", "--rescore", "b"), "--rescore and --annotations do not go"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(evaluated, tmp_path, spoil, more, line):
    write_case(tmp_path)
    if spoil:
        spoil(tmp_path)
    assert line in evaluated.fails(*flags(NOBODY, *more))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("records", "more", "line"),
    [
        ([], (), "annotations.json has no judgment"),
        ([{"question_id": 1, "games": []}], (), "annotations.json, entry 0: keys ['instruction', "
         "'output_1', 'generator_1', 'output_2', 'generator_2', 'preference'] are needed, found "
         "['games', 'question_id']"),
        ([annotation(0, output_1=3)], (), "entry 0: 'output_1'"),
        ([annotation(0), annotation(1, generator_2="rival")], (),
         "'generator_2' has 2 names: 'janus', 'rival'; --name takes one"),
        ([annotation(0), annotation(1, generator_1="rival")], (),
         "'generator_1' has 2 names: 'gpt4', 'rival'; needed is one"),
        ([annotation(0), annotation(9)], ("--bench", "gpt4.json"),
         "'What is thing 9?' is not in gpt4.json"),
    ],
)  # fmt: skip
def test_mistakes_in_files_of_judgments(evaluated, tmp_path, records, more, line):
    write_case(tmp_path)
    path = write_annotations(tmp_path, records)
    assert line in evaluated.fails("alpaca-eval", "--annotations", path, *more)


def test_items_without_an_output_are_left_out_if_told_so_and_a_dry_run_asks_nobody(
    evaluated, tmp_path
):
    write_case(tmp_path)
    few(tmp_path)
    out = evaluated(*flags(NOBODY, "--allow-missing", "--dry-run"))
    assert out.startswith("1 calls, about ") and " and 1 written\n" in out
    assert "judgments of 1 tokens" in out and not (tmp_path / "out").exists()
    with ChatServer(preferring) as server:
        result = judged(tmp_path, server, allow_missing=True)
    assert result["counts"]["missing"] == 5 and result["counts"]["ok"] == 1
    assert judgments.stored_head(tmp_path / "out", "alpaca-eval")[0]["opponent"] == "gpt4"
