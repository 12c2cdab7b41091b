"""The commands of datagen.py, as a user calls them, against real servers on this machine."""

import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import datagen
from janus_min.build import Options, Work, build_bench, build_collection
from janus_min.checkpoint import save_model
from janus_min.client import Connection, Request
from janus_min.errors import UserError
from janus_min.exports import FILES
from janus_min.loopback import served
from janus_min.mini_data import collection
from janus_min.pipeline import Folder, Sampling
from janus_min.sources import Filters
from janus_min.teacher import Teacher, world_hierarchy
from tests.conftest import tiny_policy
from tests.kill import survives
from tests.programs import ROOT, Program, environment
from tests.runs import rows_in, write_rows
from tests.servers import KEY, ChatServer, Reply, error

STAGES = ("instructions", "preferences", "systems", "responses")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher()


@pytest.fixture
def asked(monkeypatch, capsys, tmp_path) -> Program:
    """datagen.py in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return Program(datagen.main, monkeypatch, capsys)


@pytest.fixture
def instructions(tmp_path) -> Path:
    """A file of instructions that are not of the miniature's world."""
    topics = "rain snow tea maps clocks paper bread chess".split()
    rows = [
        {"instruction": f"Tell me in plain words how {topic} was invented."} for topic in topics
    ]
    return write_rows(tmp_path / "instructions.jsonl", rows)


def answers_of(teacher: Teacher):
    return lambda body, seen: teacher.reply(body["messages"])


def build(instructions: Path, out: Path, url: str, sampling=None, filters=None, **changes) -> None:
    """Builds a collection, with near duplicates kept: the instructions here are much alike."""
    connection = {k: changes.pop(k) for k in ("max_cost", "price_in", "workers") if k in changes}
    work = Work(
        Options((instructions,), out, **changes),
        filters or Filters(near_duplicates=1.0),
        sampling or Sampling(model="teacher"),
        Connection(base_url=url, **connection),
    )
    build_collection(work, lambda line: None)


def flags_of(instructions: Path, out: Path) -> tuple:
    """`build` on the command line; the last one is its folder."""
    return ("build", "--instructions", instructions, "--near-duplicates", 1, "--out", out)


def same_files(first: Path, second: Path) -> None:
    for name in (*STAGES, *FILES):
        ours, theirs = (folder / f"{name}.jsonl" for folder in (first, second))
        assert ours.read_bytes() == theirs.read_bytes(), name


# The collection


def test_the_miniature_over_http_is_the_teachers_own(tmp_path, teacher):
    """A part of it; tests/test_main_job.py builds the whole."""
    rows = [row for row in collection() if row["original_source"] == "volcanoes"]
    prompts = dict.fromkeys(row["prompt"] for row in rows)
    file = tmp_path / "miniature.jsonl"
    write_rows(file, [{"prompt": prompt, "source": "volcanoes"} for prompt in prompts])
    write_rows(tmp_path / "hierarchy.json", [world_hierarchy()])
    with served(teacher.reply) as url:
        hierarchy = tmp_path / "hierarchy.json"
        build(file, tmp_path / "out", url, hierarchy=hierarchy, differ=1)
    assert rows_in(tmp_path / "out" / "sft.jsonl") == rows


def test_descriptions_name_a_system_message(teacher):
    """Otherwise the teacher could not know which one is asked for."""
    assert len(teacher.systems) == len(collection())


def test_every_export_trains(tmp_path, teacher, instructions, world, program):
    policy = tiny_policy(vocab_size=2048, hidden_size=16, head_dim=4, max_position_embeddings=2048)
    start = tmp_path / "start"
    save_model(policy, start, world, torch.float32)
    with served(teacher.reply) as url:
        build(instructions, tmp_path / "out", url, test_share=0.2)
    flags = ("--model", start, "--steps", 1, "--row-tokens", 2048, "--warmup-steps", 0)
    for name, recipe, count in (
        ("sft", "janus-7b", 24),
        ("sft-small", "janus-7b", 8),
        ("dpo", "janus-dpo-7b", 8),
        ("orpo", "janus-orpo-7b", 8),
        ("rm", "janus-rm-7b", 6),
        ("rm-test", "janus-rm-7b", 2),
    ):
        data = tmp_path / "out" / f"{name}.jsonl"
        assert len(rows_in(data)) == count
        size = ("--rows-per-step", 1) if name.startswith("sft") else ("--pairs-per-step", 2)
        more = ("--max-tokens", 1024)
        out = program(recipe, *flags, *size, *more, "--data", data, "--out", tmp_path / name)
        assert f"{count} examples" in out or f"{count} pairs" in out, out
        [step] = rows_in(tmp_path / name / "metrics.jsonl")
        assert 0 < step["loss"] < 50


def test_bad_servers_change_nothing_in_the_files(tmp_path, teacher, instructions, rough):
    """A fifth of all requests fail in one of seven ways; a reply that is no JSON is one of them."""
    with ChatServer(answers_of(teacher)) as good:
        build(instructions, tmp_path / "good", good.url)
    with ChatServer(answers_of(teacher), faults=0.2) as bad:
        build(instructions, tmp_path / "bad", bad.url)
    same_files(tmp_path / "good", tmp_path / "bad")
    assert bad.paid == good.paid == 8 + 24 + 24
    assert sum(bad.failures.values()) == len(bad.requests) - bad.paid > 3


def test_a_reply_that_cannot_be_used_is_asked_for_again(tmp_path, teacher, instructions):
    """Whatever is wrong with it, nothing of it gets into a file, and each reply is paid once."""
    bad = {
        "cut short": lambda text: text[: len(text) // 2],
        "list": lambda text: json.dumps(json.loads(text)["sets"][:2]),
        "other keys": lambda text: text.replace("harmlessness", "safety"),
        "the same twice": lambda text: text.replace('"style"', '"harmlessness"'),
        "prose": lambda text: "I would rather not say.",
    }
    spoil = iter(bad.values())

    def answer(body: dict, seen: object) -> str:
        text = teacher.reply(body["messages"])
        if len(body["messages"]) == 4:  # the second attempt names what was wrong
            assert "cannot be used" in body["messages"][3]["content"]
            return text
        return next(spoil, lambda text: text)(text)

    with ChatServer(answer) as server:
        build(instructions, tmp_path / "out", server.url, workers=1)
    assert len(server.requests) == 8 + len(bad) + 24 + 24
    assert len(rows_in(tmp_path / "out" / "sft.jsonl")) == 24


def test_what_never_works_is_recorded_with_its_reason(tmp_path, teacher, instructions):
    def answer(body: dict, seen: object) -> str | Reply:
        if "chess" not in body["messages"][1]["content"]:
            return teacher.reply(body["messages"])
        return "no" if body["messages"][0]["content"].startswith("You design") else "yes"

    out = tmp_path / "out"
    with ChatServer(answer) as server:
        build(instructions, out, server.url)
        [failed] = rows_in(out / "preferences.failed.jsonl")
        assert failed["id"] == 7 and "after 3 attempts: no JSON" in failed["reason"]
        assert len(rows_in(out / "sft.jsonl")) == 21 and len(rows_in(out / "dpo.jsonl")) == 7
        before = len(server.requests)
        build(instructions, out, server.url)
        assert len(server.requests) == before  # it is known to fail
        build(instructions, out, server.url, attempts=5)
        assert len(server.requests) == before + 2  # two attempts more


def test_what_got_no_answer_is_asked_for_by_the_next_run(tmp_path, teacher, instructions):
    refuse = True

    def script(seen: object) -> Reply | None:
        asks = refuse and "chess" in seen.body["messages"][1]["content"]
        return Reply(400, error("this is too long")) if asks else None

    out = tmp_path / "out"
    with ChatServer(answers_of(teacher), script=script) as server:
        with pytest.raises(UserError, match="without an answer: 1; the same command"):
            build(instructions, out, server.url)
        assert len(rows_in(out / "sft.jsonl")) == 21  # what there is, is written
        [failed] = rows_in(out / "preferences.failed.jsonl")
        assert failed == {"id": 7, "unanswered": True, "reason": "HTTP 400: this is too long"}
        refuse = False
        build(instructions, out, server.url)
    assert rows_in(out / "preferences.failed.jsonl") == []
    assert len(rows_in(out / "sft.jsonl")) == 24
    assert server.paid == 8 + 24 + 24


KILLS, SECONDS = 5, 0.1  # 30 kills with 0.4 seconds were done by hand


def test_killed_anywhere_and_resumed_it_ends_with_the_same_files(tmp_path, teacher, instructions):
    """No request whose answer was in the journal is seen again."""
    chance = random.Random(0)
    command = [sys.executable, ROOT / "datagen.py", "build", "--instructions", instructions]
    command += ["--model", "teacher", "--near-duplicates", "1", "--workers", "4"]

    def slow(body: dict, seen: object) -> str:
        time.sleep(SECONDS)
        return teacher.reply(body["messages"])

    def run(out: Path, seconds: float | None) -> None:
        process = subprocess.Popen(
            [*map(str, command), "--base-url", server.url, "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(OMP_NUM_THREADS="1"),
        )
        if seconds is None:
            said = process.communicate()[0].decode()
            assert process.returncode == 0, said
            return
        seen = len(server.requests)
        while len(server.requests) == seen and process.poll() is None:
            time.sleep(0.01)
        time.sleep(seconds)
        process.kill()
        process.communicate()

    def kept() -> set[str]:
        """Questions whose answers are in the journal, as far as whole lines go."""
        text = (tmp_path / "killed" / "calls.jsonl").read_bytes()
        return {json.loads(line)["key"] for line in text.split(b"\n")[:-1]}

    with ChatServer(slow) as server:
        run(tmp_path / "whole", None)
        asked_for = len(server.requests)
        assert asked_for == 8 + 24 + 24
    with ChatServer(slow) as server:
        done: set[str] = set()
        for _ in range(KILLS):
            seen = len(server.requests)
            run(tmp_path / "killed", chance.uniform(0.0, 3 * SECONDS))
            again = {Request(request.body).key() for request in server.requests[seen:]}
            assert not again & done
            done = kept()
        assert done and done <= {Request(request.body).key() for request in server.requests}
        seen = len(server.requests)
        run(tmp_path / "killed", None)
        assert not {Request(request.body).key() for request in server.requests[seen:]} & done
    same_files(tmp_path / "whole", tmp_path / "killed")


def test_killed_between_any_two_changes_of_files(tmp_path, teacher):
    """Every file is whole or not there, whatever was the last thing that was done."""
    file = write_rows(tmp_path / "one.jsonl", [{"prompt": "How was chess invented?"}])
    with ChatServer(answers_of(teacher)) as server:
        build(file, tmp_path / "whole", server.url, sets=2, workers=1)
        point = 0
        while not survives(
            lambda: build(file, tmp_path / "killed", server.url, sets=2, workers=1),
            tmp_path / "killed",
            point := point + 1,
        ):
            build(file, tmp_path / "killed", server.url, sets=2, workers=1)
            same_files(tmp_path / "whole", tmp_path / "killed")
            shutil.rmtree(tmp_path / "killed")
    assert point > 20


def test_a_file_that_was_not_noted_is_not_believed(tmp_path, teacher, instructions, monkeypatch):
    """Killed between the file and the note, then started with the settings of the older note."""
    out, few = tmp_path / "out", Filters(near_duplicates=1.0, limit=3)
    with ChatServer(answers_of(teacher)) as server:
        build(instructions, out, server.url, filters=few)
        noted = Folder.finish

        def killed(self: Folder, name: str, *more: object) -> None:
            if name == "instructions":
                raise KeyboardInterrupt
            noted(self, name, *more)

        monkeypatch.setattr(Folder, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            build(instructions, out, server.url)
        monkeypatch.setattr(Folder, "finish", noted)
        build(instructions, out, server.url, filters=few)
    assert len(rows_in(out / "instructions.jsonl")) == 3


def test_settings_may_not_change_while_a_batch_is_on_its_way(tmp_path):
    """It is paid for, although the journal has nothing yet."""
    out = tmp_path / "out"
    with Folder(out, {"model": "first"}):
        pass
    with Folder(out, {"model": "second"}):  # nothing was asked
        pass
    (out / "batches.json").write_text('{"batches": {"abc": "batch-1"}, "over": []}')
    with pytest.raises(UserError, match="model was 'second', is 'third'"):
        Folder(out, {"model": "third"})


def test_a_small_limit_first_then_all_pays_nothing_twice(tmp_path, teacher, instructions):
    out = tmp_path / "out"
    with ChatServer(answers_of(teacher)) as server:
        build(instructions, out, server.url, filters=Filters(near_duplicates=1.0, limit=3))
        assert len(server.requests) == 3 * 7 and len(rows_in(out / "sft.jsonl")) == 9
        build(instructions, out, server.url)
        assert len(server.requests) == 8 * 7 and len(rows_in(out / "sft.jsonl")) == 24
        build(instructions, out, server.url)
        assert len(server.requests) == 8 * 7


def test_a_finished_build_needs_neither_key_nor_server(tmp_path, teacher, instructions, asked):
    with served(teacher.reply) as url:
        build(instructions, tmp_path / "out", url)
    flags = ("build", "--instructions", instructions, "--out", tmp_path / "out")
    more = ("--model", "teacher", "--near-duplicates", 1)
    assert "sft.jsonl: 24" in asked(*flags, *more, "--base-url", "https://nobody.invalid/v1")


def test_an_edited_stage_file_is_what_the_next_stage_reads(tmp_path, teacher, instructions):
    out = tmp_path / "out"
    with ChatServer(answers_of(teacher)) as server:
        build(instructions, out, server.url)
        systems = (out / "systems.jsonl").read_text().splitlines(keepends=True)
        (out / "systems.jsonl").write_text("".join(systems[3:]))
        build(instructions, out, server.url)
    assert {record["id"] for record in rows_in(out / "responses.jsonl")} == set(range(1, 8))
    assert server.paid == 8 * 7


def test_the_order_and_names_of_files_are_settings(tmp_path, teacher, instructions):
    """Numbers and sources of instructions come from them."""
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": "How was ink invented?"}])

    def work_of(*files: Path) -> Work:
        filters = Filters(near_duplicates=1.0)
        return Work(Options(files, tmp_path / "out"), filters, Sampling(model="m"), connection)

    with served(teacher.reply) as url:
        connection = Connection(base_url=url)
        build_collection(work_of(instructions, other), lambda line: None)
        with pytest.raises(UserError, match="instructions was"):
            build_collection(work_of(other, instructions), lambda line: None)
        with pytest.raises(UserError, match="instructions was"):
            renamed = other.rename(tmp_path / "renamed.jsonl")
            build_collection(work_of(instructions, renamed), lambda line: None)


def test_what_overlaps_with_a_bench_is_counted_or_dropped(asked, instructions, tmp_path, teacher):
    bench = write_rows(tmp_path / "bench.jsonl", [rows_in(instructions)[0]])
    flags = ("build", "--instructions", instructions, "--bench", bench, "--near-duplicates", 1)
    with served(teacher.reply) as url:
        flags += ("--model", "m", "--base-url", url)
        assert "8, 1 of them overlap the bench" in asked(*flags, "--out", "kept")
        out = asked(*flags, "--no-keep-overlap", "--out", "dropped")
        assert "7; dropped: 1 overlaps the bench" in out
    assert len(rows_in(tmp_path / "dropped" / "sft.jsonl")) == 21


def test_starting_points_are_not_taken_as_they_are(tmp_path, teacher, instructions):
    """A weak model copies them; then many instructions would have the same preferences."""

    def answer(body: dict, seen: object) -> str:
        if len(body["messages"]) == 4 or "response_format" not in body:
            return teacher.reply(body["messages"])
        points = re.search(r"<starting_points>\n(.*)\n</", body["messages"][1]["content"], re.S)[1]
        return json.dumps({"sets": [json.loads(line) for line in points.splitlines()]})

    with ChatServer(answer) as server:
        build(instructions, tmp_path / "out", server.url)
    again = [request.body for request in server.requests if len(request.body["messages"]) == 4]
    assert len(again) == 8
    assert "must fit the instruction" in again[0]["messages"][3]["content"]


# The bench


def test_a_bench_has_the_published_columns_and_unseen_system_messages(
    tmp_path, teacher, instructions
):
    with served(teacher.reply) as url:
        build(instructions, tmp_path / "collection", url, sets=1)
        connection, filters = Connection(base_url=url), Filters(near_duplicates=1.0)
        for seed, count in ((0, 0), (1, 8)):  # with the collection's seed all are known
            unseen = (tmp_path / "collection" / "sft.jsonl",)
            options = Options(
                (instructions,), tmp_path / f"bench-{seed}", sets=1, seed=seed, unseen=unseen
            )
            work = Work(options, filters, Sampling(model="teacher"), connection)
            if not count:
                with pytest.raises(ValueError, match="has no record"):
                    build_bench(work, lambda line: None)
                failed = rows_in(options.out / "systems.failed.jsonl")
                assert len(failed) == 8 and "exists already" in failed[0]["reason"]
                continue
            build_bench(work, lambda line: None)
    items = rows_in(tmp_path / "bench-1" / "bench.jsonl")
    assert [item["id"] for item in items] == [str(n) for n in range(8)]
    for item in items:
        assert list(item) == ["id", "source", "system", "prompt", "reference_answer", "rubrics"]
        assert item["source"] == "instructions" and len(item["rubrics"]) == 4
        for rubric in item["rubrics"]:
            assert list(rubric) == ["criteria", "score_descriptions"]
            assert list(rubric["score_descriptions"]) == list("12345")
    assert not {i["system"] for i in items} & {
        row["system"] for row in rows_in(tmp_path / "collection" / "sft.jsonl")
    }


# Before and beside


def test_a_dry_run_counts_and_leaves_nothing(asked, instructions, tmp_path):
    flags = ("build", "--instructions", instructions, "--dry-run", "--near-duplicates", 1)
    out = asked(*flags, "--price-in", 10, "--price-out", 30)
    assert "8 instructions" in out and re.search(r"in all +56 ", out)
    read, written = (
        int(n.replace(",", "")) for n in re.findall(r"in all.* (\S+) +(\S+)\n", out)[0]
    )
    assert f"${(10 * read + 30 * written) / 1e6:,.2f}" in out
    assert list(tmp_path.iterdir()) == [instructions]
    assert "rubrics" in asked("bench", *flags[1:])


def test_stats_and_sunburst_of_a_collection(asked, teacher, instructions, tmp_path, world):
    with served(teacher.reply) as url:
        build(instructions, tmp_path / "out", url)
    data = tmp_path / "out" / "sft.jsonl"
    out = asked("stats", "--data", data, "--tokenizer", world, "--json", "stats.json")
    found = json.loads((tmp_path / "stats.json").read_text())
    assert found["rows"] == 24 and found["instructions"] == 8 and "24" in out
    assert "page.html" in asked("sunburst", "--data", data, "--out", "page.html")
    preference = rows_in(data)[0]["preference_set"][0]["preference"]
    assert preference in (tmp_path / "page.html").read_text(encoding="utf-8")
    asked("sunburst", "--out", "seeds.html")
    assert "everyday" in (tmp_path / "seeds.html").read_text(encoding="utf-8")


# Mistakes


def test_mistakes_end_in_one_line(asked, instructions, tmp_path):
    out = tmp_path / "out"
    flags = flags_of(instructions, out)
    model = ("--model", "teacher")
    assert "--instructions FILE is needed" in asked.fails("build", "--out", out)
    assert "--out DIR is needed" in asked.fails("build", "--instructions", instructions)
    assert "--model is needed" in asked.fails(*flags)
    assert "set the environment variable OPENAI_API_KEY" in asked.fails(*flags, *model)
    assert "MY_KEY" in asked.fails(*flags, *model, "--key-variable", "MY_KEY")
    assert "--max-cost needs prices" in asked.fails(*flags, *model, "--max-cost", 1)
    assert "--extra is [1], must be a JSON object" in asked.fails(*flags, *model, "--extra", "[1]")
    said = asked.fails(*flags, *model, "--extra", '{"n": 2}')
    assert "--extra is" in said and "without model, messages, n and stream" in said
    assert "--temperature is 3.0" in asked.fails(*flags, *model, "--temperature", 3)
    assert "--top-p is 0.0" in asked.fails(*flags, *model, "--top-p", 0)
    for flag, value in (
        ("sets", 0),
        ("differ", 5),
        ("attempts", 0),
        ("test-share", 1),
        ("seed", -1),
    ):
        assert f"--{flag} is {value}" in asked.fails(*flags, *model, f"--{flag}", value)
    other = write_rows(tmp_path / "other.jsonl", [{"answer": "Yes."}])
    said = asked.fails("build", "--instructions", other, "--out", tmp_path / "no", *model)
    assert "other.jsonl:1" in said and "['answer']" in said
    assert "no instruction is left" in asked.fails(*flags, *model, "--min-characters", 1000)
    local = ("--base-url", "http://127.0.0.1:9/v1")
    said = asked.fails(*flags, *model, *local)
    assert "http://127.0.0.1:9/v1: the first requests all failed: Connection refused" in said
    assert "unrecognized arguments: --bad" in asked.fails("build", "--bad")
    assert "--data FILE is needed" in asked.fails("stats")
    assert "--out FILE.html is needed" in asked.fails("sunburst")
    assert "--pairs is 0" in asked.fails("stats", "--pairs", 0)
    assert "--subdimensions is 0" in asked.fails("sunburst", "--subdimensions", 0)
    assert "--preferences is 0" in asked.fails("sunburst", "--preferences", 0)
    assert "--seed is -1" in asked.fails("sunburst", "--seed", -1)
    assert "--seed is -1" in asked.fails("stats", "--seed", -1)
    said = asked.fails("stats", "--data", instructions, "--json", "nowhere/x.json")
    assert "nowhere/x.json: there is no folder nowhere" in said
    assert "seeds.json not found" in asked.fails(*flags, *model, "--hierarchy", "seeds.json")
    assert "unrecognized arguments: collect" in asked.fails("collect")
    unseen = ("--unseen", instructions)
    assert "--unseen: no system message" in asked.fails("bench", *flags[1:], *model, *unseen)


def test_a_folder_of_other_settings_is_refused_by_their_names(
    asked, instructions, tmp_path, teacher
):
    flags = ("build", "--instructions", instructions, "--near-duplicates", 1)
    with served(teacher.reply) as url:
        flags += ("--base-url", url, "--out", tmp_path / "out")
        asked(*flags, "--model", "first")
        said = asked.fails(*flags, "--model", "second", "--seed", 3)
        assert "model was 'first', is 'second'; seed was 0, is 3" in said
        with (tmp_path / "instructions.jsonl").open("a") as file:
            file.write('{"instruction": "One more."}\n')
        assert "instructions was" in asked.fails(*flags, "--model", "first")


def test_a_wrong_model_and_an_exceeded_budget_stop_at_once(
    asked, instructions, tmp_path, teacher, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    flags = flags_of(instructions, tmp_path / "o")
    message = f"The model `nope` does not exist for {KEY}"

    def script(seen: object) -> Reply | None:
        known = seen.body["model"] == "teacher"
        return None if known else Reply(404, error(message, code="model_not_found"))

    with ChatServer(answers_of(teacher), script=script) as server:
        said = asked.fails(*flags, "--base-url", server.url, "--model", "nope")
        assert "HTTP 404: The model `nope` does not exist for [key]" in said
        asked(*flags, "--base-url", server.url, "--model", "teacher")  # nothing was paid before
    prices = ("--price-in", 1, "--price-out", 1, "--max-cost", 0.02)
    flags = (*flags[:-1], tmp_path / "p", "--model", "teacher")
    with ChatServer(answers_of(teacher)) as server:
        said = asked.fails(*flags, "--base-url", server.url, *prices)
        assert "--max-cost 0.02" in said and "goes on" in said
        assert 0 < sum(server.paid_tokens) / 1e6 <= 0.02
        asked(*flags, "--base-url", server.url)
        assert server.paid == 8 * 7
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_what_is_no_chat_api_is_said_so(asked, instructions, tmp_path, monkeypatch):
    monkeypatch.setattr("janus_min.client.wait_before", lambda attempt, asked: 0.01)
    flags = flags_of(instructions, tmp_path / "o")
    page = Reply(200, "<html>Welcome</html>", (("Content-Type", "text/html"),))
    with ChatServer(script=lambda seen: page) as server:
        said = asked.fails(*flags, "--base-url", server.url, "--model", "m")
    assert "the answer is not JSON but text/html" in said
    assert len(server.requests) < 40


def test_extra_parameters_are_sent_and_ours_can_be_taken_away(tmp_path, teacher, instructions):
    sampling = Sampling(model="m", json_mode=False, extra='{"top_p": null, "min_p": 0.1}')
    with ChatServer(answers_of(teacher)) as server:
        build(instructions, tmp_path / "out", server.url, sampling=sampling)
    for request in server.requests:
        assert request.body.keys() == {"model", "messages", "temperature", "max_tokens", "min_p"}
