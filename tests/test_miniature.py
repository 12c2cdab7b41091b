"""The paper's tables in miniature: which commands, that the programs take them, and the tables."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
import generate
import train
from janus_min import mini_tables, miniature, stages
from janus_min.examiner import examine
from janus_min.formats import read_jsonl
from janus_min.loopback import served
from janus_min.mini_benches import three_systems, write_benches
from janus_min.mini_data import SPLITS, bench, collection, row_preferences, rubric_preference
from janus_min.mini_tables import AGAINST, MODELS, SAMPLES, TEACHER
from janus_min.miniature import Options, stages_of
from janus_min.recipes import RECIPES
from janus_min.stages import JUDGE_URL, Runner, locked
from tests.programs import Program, environment

UNSEEN = SPLITS[1]


def records(path: Path) -> list[dict]:
    return [record for _, record in read_jsonl(path)]


# The benches


def test_three_systems_are_unseen_combinations_under_one_question():
    trained = {row_preferences(row) for row in collection()}
    by_prompt: dict[str, list[dict]] = {}
    for item in three_systems():
        by_prompt.setdefault(item["prompt"], []).append(item)
        preferences = [rubric_preference(rubric) for rubric in item["rubrics"]]
        assert tuple(preferences) not in trained
        assert examine_all(item, item["reference_answer"]) == [5, 5, 5, 5]
    assert len(by_prompt) == 60
    for own in by_prompt.values():
        assert len(own) == len({item["system"] for item in own}) == 3
        assert len({item["reference_answer"] for item in own}) >= 2


def examine_all(item: dict, response: str) -> list[int]:
    """The world's judge on all rubrics of an item."""
    from janus_min.world import judge

    return [judge(rubric_preference(r), item["topic"], response) for r in item["rubrics"]]


def test_benches_are_files_of_the_same_items(tmp_path):
    write_benches(tmp_path)
    files = {path.stem: records(path) for path in tmp_path.iterdir()}
    assert files["bench"] == bench()
    assert files["unseen"] == [item for item in bench() if item["source"] == UNSEEN]
    assert files["silent"] == [item | {"system": ""} for item in bench()]
    assert [item["id"] for item in files["teacher"]] == [item["id"] for item in files["three"]]
    write_benches(tmp_path / "few", topics=2)
    sizes = {path.stem: len(records(path)) for path in (tmp_path / "few").iterdir()}
    assert sizes == {"bench": 6, "unseen": 2, "silent": 6, "three": 6, "teacher": 6}


# The commands


def test_commands_come_after_what_makes_their_files():
    for options in (Options(), Options(ablations=True, seeds=2)):
        found = stages_of(options)
        makers = {str(stage.makes): stage.name for stage in found if stage.makes}
        assert len({stage.name for stage in found}) == len(found) == len(makers) + 1
        before = {}
        for stage in found:
            before[stage.name] = {*stage.needs}.union(*(before[name] for name in stage.needs))
            for word in stage.command[1:]:
                maker = makers.get(word.removesuffix("/model"))
                assert maker in (None, stage.name) or maker in before[stage.name], stage


def test_commands_of_one_seed_and_of_more():
    commands = [" ".join(stage.command) for stage in stages_of(Options(out=Path("paper")))]
    trained = [re.search(r"train\.py (\S+)", command) for command in commands]
    assert {match[1] for match in trained if match} == {*MODELS, "mini-rm"}
    [dpo] = [command for command in commands if "train.py mini-dpo" in command]
    assert dpo.endswith(
        "train.py mini-dpo --seed 42 --out paper/seed-42/mini-dpo "
        "--model paper/seed-42/mini-sft-small/model "
        "--data runs/miniature/pairs.jsonl paper/seed-42/own-pairs.jsonl"
    )
    [own] = [command for command in commands if "--input runs/miniature/pairs.jsonl" in command]
    assert own.endswith(
        "generate.py --model paper/seed-42/mini-sft-small/model --input runs/miniature/pairs.jsonl "
        "--output paper/seed-42/answers/mini-sft-small-own.jsonl --n 4 --seed 42 --max-tokens 256"
    )
    [pairs] = [command for command in commands if "datagen.py pairs" in command]
    assert pairs.endswith(
        "datagen.py pairs --responses paper/seed-42/answers/mini-sft-small-own.jsonl "
        "--out paper/seed-42/own-pairs.jsonl"
    )
    [orpo] = [stage for stage in stages_of(Options()) if stage.name == "seed-42/mini-orpo"]
    assert orpo.about == repr(RECIPES["mini-orpo"])  # its epochs are in no flag
    quick = [" ".join(stage.command) for stage in stages_of(Options(steps=2))]
    assert not any("own" in command or "--data" in command for command in quick)
    [best] = [command for command in commands if "--n 16" in command]
    assert best.endswith(
        "--model paper/seed-42/mini-sft-small/model --input paper/benches/unseen.jsonl --output "
        "paper/seed-42/answers/best-of-16.jsonl --n 16 --seed 42 --reward-model "
        "paper/seed-42/mini-rm/model --max-tokens 256"
    )
    more = [stage.command for stage in stages_of(Options(seeds=3, ablations=True))]
    for key in ("mini-sft-one", "mini-sft-two"):
        assert sum(key in command for command in more) == 3
    assert {c[c.index("--seed") + 1] for c in more if "--seed" in c} == {"42", "43", "44"}


def test_the_programs_take_all_commands(tmp_path, world, monkeypatch, capsys):
    """In this process, with a few rows of training data, few steps, and short answers."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "runs" / "miniature"
    data.mkdir(parents=True)
    for path in world.glob("*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        (data / path.name).write_text("".join(lines[:8]))
    shutil.copy(world / "tokenizer.model", data)
    monkeypatch.setattr(train.mini_data, "write_world", lambda directory: None)
    monkeypatch.setattr(train, "score_model", lambda *arguments: [])
    options = Options(out=Path("paper"), steps=1, ablations=True)
    write_benches(miniature.benches(options), 1)
    mains = {"generate.py": generate.main, "evaluate.py": evaluate.main}
    with served(examine) as url:
        for stage in stages_of(options)[1:]:  # datagen.py has no flags here
            stage.makes.parent.mkdir(parents=True, exist_ok=True)
            name, *words = (word.replace(JUDGE_URL, url) for word in stage.command)
            if name.endswith("train.py"):
                train.main(words)
            else:
                Program(mains[Path(name).name], monkeypatch, capsys)(*words)
            assert (stage.makes / stage.last).exists(), stage
    miniature.show(options)
    [run] = json.loads(Path("paper/tables.json").read_text())["runs"]
    assert all(1 <= run["grades"][key][split] <= 5 for key in MODELS for split in SPLITS)
    assert all(1 <= grade <= 5 for own in run["ablation"].values() for grade in own.values())
    assert {*run["tie_win"]} == {*MODELS} - {AGAINST} and None not in run["tie_win"].values()
    assert all(1 <= run["best_of"][str(n)] <= 5 for n in SAMPLES)
    assert run["rouge_l"][TEACHER]["instructions"] == 1


# The program


STUB = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1:], sys.argv[2:]))
out = pathlib.Path(flags.get("--out") or flags.get("--output") or "built")
seed = int("".join(c for c in str(out) if c.isdigit())[:2] or 0)
result = {"score": seed / 20, "tie_win": 0.5, "rouge_l": {"average": 0.25, "maximum": 0.5}}
splits = ("trained combinations", "unseen combinations", "unseen wordings")
result["by_source"] = {split: {"score": seed / 20, "tie_win": seed / 100} for split in splits}
if out.suffix:
    out.write_text("{}")
else:
    out.mkdir(exist_ok=True)
    (out / "result.json").write_text(json.dumps(result))
    (out / "model").mkdir(exist_ok=True)
    (out / "model" / "model.safetensors").write_text("")
"""


@pytest.fixture
def stubs(tmp_path, monkeypatch) -> Path:
    """An empty folder, with programs that only leave made-up results."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("datagen", "train", "generate", "evaluate"):
        (folder / f"{name}.py").write_text(STUB)
    monkeypatch.setattr(miniature, "PROGRAMS", folder)
    monkeypatch.setattr(stages, "PAUSE", 0.01)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return folder


@pytest.fixture
def paper(monkeypatch, capsys) -> Program:
    return Program(miniature.main, monkeypatch, capsys)


def test_the_whole_program(stubs, paper):
    out = paper("--seeds", 2, "--out", "paper")
    count = len(stages_of(Options(seeds=2)))
    assert out.startswith(f"{count} commands, ") and out.count(": done in 0:0") == count
    assert "\nseed-42/mini-dpo: python ../programs/train.py mini-dpo --seed 42 " in out
    lines = Path("paper/tables.txt").read_text()
    assert lines in out
    assert "Seeds 42 to 43: mean ± standard deviation (n - 1) over seeds." in lines
    assert "Janus SFT (mini-sft)" in lines and "2.12 ± 0.04" in lines and "42.5 ± 0.7 %" in lines
    assert "| 16 | 2.12 ± 0.04 |" in Path("paper/tables.md").read_text()
    runs = json.loads(Path("paper/tables.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == [42, 43] and runs[0]["best_of"]["4"] == 2.1

    again = paper("--seeds", 2, "--out", "paper")
    assert f"done before: {count} of {count} stages" in again and ": done in" not in again
    assert again.endswith(out[out.rindex("paper/tables") :])

    for part in ("mini-sft/model/model.safetensors", "results/rubric/mini-dpo/result.json"):
        Path("paper/seed-42", part).unlink()
    again = paper("--seeds", 2, "--out", "paper")
    done = re.findall(r"^(\S+): done in", again, re.M)
    assert sorted(done) == ["seed-42/mini-dpo-rubric", "seed-42/mini-sft"]


def test_a_folder_is_the_same_from_within(stubs, paper, monkeypatch):
    paper("--steps", 2, "--out", "paper")
    monkeypatch.chdir("paper")
    assert ": done in" not in paper("--steps", 2, "--out", ".")


def test_a_failing_program_is_one_line(stubs, paper):
    (stubs / "train.py").write_text("import sys\nsys.exit('error: no space left')\n")
    line = paper.fails("--out", "paper", "--jobs", 1)
    assert line == (
        "error: seed-42/mini-base ended with status 1 (no space left); its log is "
        "paper/seed-42/logs/mini-base.log, its command: python ../programs/train.py "
        "mini-base --seed 42 --out paper/seed-42/mini-base\n"
    )


def test_dry_run_prints_the_commands_and_leaves_nothing(stubs, paper):
    lines = paper("--dry-run").splitlines()
    assert len(lines) == len(stages_of(Options()))
    assert all(line.startswith("python ../programs/") for line in lines)
    assert "--base-url http://127.0.0.1:8765/v1" in lines[-20]
    assert not list(Path().iterdir())


def test_a_quick_look_says_so_and_has_files_of_its_own(stubs, paper):
    out = paper("--steps", 2, "--out", "paper")
    assert "--steps 2: a quick look, whose numbers mean nothing." in out
    assert (Path("paper") / "benches-quick").is_dir() and "train.py mini-rm --seed 42" in out
    for steps, names in ((2, 50), (None, 1)):  # without --steps all but datagen.py runs again
        found = stages_of(Options(out=Path("paper"), steps=steps))
        assert sum(map(Runner(found, Path("paper")).is_done, found)) == names


@pytest.mark.parametrize("flag", ["seeds", "jobs", "steps"])
def test_counts_are_at_least_one(paper, flag):
    assert paper.fails(f"--{flag}", 0) == f"error: --{flag} is 0, must be at least 1\n"


def test_mistakes_are_one_line(stubs, paper):
    assert paper.fails("--port", 0) == "error: --port is 0, must be 1 to 65535\n"
    Path("file").write_text("")
    assert paper.fails("--out", "file") == "error: --out file is a file; a folder is needed\n"
    assert "unrecognized arguments: mini-sft" in paper.fails("mini-sft")
    with locked(Path("paper")):
        assert "paper is in use: another run" in paper.fails("--out", "paper")
    with served(examine) as url:
        port = url.split(":")[2].split("/")[0]
        line = f"error: --port {port} is in use: give another one\n"
        assert paper.fails("--out", "paper", "--port", port) == line


def test_the_judge_alone_is_served_until_a_signal():
    module = [sys.executable, "-m", "janus_min.examiner", "--port"]
    settings = dict(env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([*module, "0"], **settings)
    line = process.stdout.readline()
    found = re.fullmatch(
        r"evaluate\.py: --judge miniature-judge --base-url http://127\.0\.0\.1:(\d+)/v1\n", line
    )
    second = subprocess.run([*module, found[1]], **settings)
    assert second.returncode == 2
    assert second.stderr == f"error: --port {found[1]} is in use: give another one\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "\ninterrupted\n")
    wrong = subprocess.run([*module, "65536"], **settings)
    assert wrong.stderr == "error: --port is 65536, must be 0 to 65535\n"


# The tables


def made_up(seed: int, **changes: object) -> dict:
    """The numbers of a seed."""
    grades = {key: dict.fromkeys(SPLITS, 3.0 + seed / 10) for key in MODELS}
    return {
        "seed": seed,
        "grades": grades,
        "tie_win": {key: 0.75 for key in MODELS if key != AGAINST},
        "best_of": {str(n): 4.0 for n in SAMPLES},
        "rouge_l": {key: {"average": 0.5, "maximum": 0.6} for key in (*MODELS, TEACHER)},
        "ablation": {},
    } | changes


def column(runs: list[dict], sheet: mini_tables.Sheet, head: str) -> dict[str, str]:
    """A column's cells by the keys of the rows."""
    return dict(zip(sheet.rows, dict(mini_tables.table(sheet, runs))[head]))


def test_one_seed_has_no_spread_and_two_have():
    """1.0 and 1.2 lie 0.1 from their mean: s = √(2 · 0.01 / 1) = 0.141."""
    one, two = made_up(0, best_of={"1": 1.0, "4": 1.0}), made_up(1, best_of={"1": 1.2, "4": None})
    assert column([one], mini_tables.BEST_OF, UNSEEN) == {"1": "1.00", "4": "1.00", "16": "—"}
    cells = column([one, two], mini_tables.BEST_OF, UNSEEN)
    assert cells == {"1": "1.10 ± 0.14", "4": "1.00", "16": "—"}


def test_the_uniform_model_is_not_compared_with_itself():
    cells = column([made_up(1)], mini_tables.MAIN, "tie+win")
    assert cells == dict.fromkeys(MODELS, "75.0 %") | {AGAINST: "—"}


def test_numbers_are_read_from_results_and_what_is_missing_is_a_dash(tmp_path):
    folder = tmp_path / "seed-42" / "results" / "rubric" / "mini-sft"
    folder.mkdir(parents=True)
    found = {"by_source": {SPLITS[0]: {"score": 4.5}, UNSEEN: {"score": None}}}
    (folder / "result.json").write_text(json.dumps(found))
    run = mini_tables.numbers(tmp_path, 42)
    assert run["grades"]["mini-sft"] == {SPLITS[0]: 4.5, UNSEEN: None, SPLITS[2]: None}
    assert run["ablation"]["with/mini-sft"] == run["grades"]["mini-sft"]
    text = mini_tables.text(mini_tables.sheets(True), [run], ["About it."], markdown=True)
    assert text.startswith("About it.\n\n### Table 1.") and "4.50" in text
    row = next(line for line in text.splitlines() if line.startswith("| Janus SFT"))
    assert row == "| Janus SFT (mini-sft) | 4.50 | — | — | — |"
    assert "| 2 (mini-sft-two), tested without system message | — | — | — |" in text


@pytest.mark.parametrize("runs", [[made_up(1)], [made_up(1), made_up(2)], [{"seed": 1}]])
def test_the_picture_has_every_number(tmp_path, runs):
    pytest.importorskip("matplotlib")
    path = tmp_path / "tables.svg"
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        mini_tables.draw(mini_tables.sheets(True), runs, path)
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text())
    for sheet in mini_tables.sheets(True):
        assert sheet.title in texts and {*sheet.rows.values()} <= {*texts}
        for _, cells in mini_tables.table(sheet, runs)[1:]:
            assert {*cells} <= {*texts}


def test_without_matplotlib_there_is_no_picture_and_a_word_about_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    miniature.show(Options(out=tmp_path))
    end = "(no picture: a picture needs matplotlib: pip install matplotlib)\n"
    assert capsys.readouterr().out.endswith(f"{tmp_path}/tables.md, .txt, .json {end}")
    assert not (tmp_path / "tables.png").exists()
