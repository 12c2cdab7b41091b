"""The structure that a reader relies on: one-way imports, small files, a README that is true."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import datagen
import evaluate
import train
from janus_min.objectives import OBJECTIVES
from tests.programs import ROOT, environment

PROGRAMS = ("train", "generate", "datagen", "evaluate")
COMMANDS = {"datagen": datagen.COMMANDS, "evaluate": evaluate.COMMANDS}
# Who may import what, of this project's own modules.
ALLOWED = {
    "kernels.launch": set(),
    "kernels.tiles": set(),
    "kernels.by_document": {"kernels.tiles"},
    "kernels.attention": {"kernels.by_document", "kernels.launch", "kernels.tiles"},
    "kernels.linear_cross_entropy": {"kernels.launch"},
    "kernels.ahead_of_time": {
        "kernels.attention",
        "kernels.launch",
        "kernels.linear_cross_entropy",
    },
    "kernels.bench.checks": {"kernels.attention", "kernels.linear_cross_entropy"},
    "kernels.bench.peers": {
        "kernels.attention",
        "kernels.bench.checks",
        "kernels.linear_cross_entropy",
    },
    "kernels.bench.timing": {"kernels.bench.checks", "kernels.bench.peers"},
    "kernels.bench.__main__": {
        "kernels.bench.checks",
        "kernels.bench.peers",
        "kernels.bench.timing",
        "kernels.launch",
    },
    "errors": set(),
    "row": set(),
    "plan": set(),
    "losses": set(),
    "optim": {"parallel"},
    "device": {"errors", "kernels.attention", "kernels.launch"},
    "parallel": {"device", "errors", "interrupt"},
    "progress": set(),
    "interrupt": set(),
    "cli": {"errors", "interrupt"},
    "files": {"errors"},
    "connection": {"errors"},
    "directories": {"errors", "files"},
    "config": {"errors"},
    "tokenizer": {"errors"},
    "chat": {"tokenizer"},
    "formats": {"chat", "errors"},
    "data": {"chat", "errors", "formats", "row", "tokenizer"},
    "show": {"row", "tokenizer"},
    "model": {
        "config",
        "parallel",
        "row",
        "kernels.attention",
        "kernels.linear_cross_entropy",
        "kernels.tiles",
    },
    "recipes": {"config", "errors"},
    "objectives": {"losses", "recipes", "row"},
    "state": {"directories", "errors", "files", "optim", "parallel"},
    "checkpoint": {
        "cli",
        "config",
        "directories",
        "errors",
        "files",
        "model",
        "parallel",
        "state",
        "tokenizer",
    },
    "sampling": {
        "config",
        "errors",
    },
    "cache": {
        "config",
        "kernels.attention",
        "kernels.tiles",
    },
    "decoder": {
        "cache",
        "model",
    },
    "graphs": set(),
    "engine": {
        "cache",
        "decoder",
        "errors",
        "graphs",
        "model",
        "row",
        "sampling",
        "tokenizer",
        "kernels.attention",
    },
    "loading": {
        "checkpoint",
        "decoder",
        "device",
        "model",
        "parallel",
        "tokenizer",
    },
    "best_of_n": {
        "checkpoint",
        "config",
        "device",
        "errors",
        "loading",
        "model",
        "parallel",
        "plan",
        "progress",
        "row",
        "tokenizer",
    },
    "footprint": {
        "config",
        "model",
    },
    "outputs": {
        "errors",
        "files",
    },
    "prompt_files": {
        "bench",
        "chat",
        "errors",
        "formats",
        "sampling",
        "tokenizer",
    },
    "offline": {
        "best_of_n",
        "config",
        "device",
        "directories",
        "engine",
        "errors",
        "files",
        "footprint",
        "interrupt",
        "loading",
        "outputs",
        "parallel",
        "progress",
        "prompt_files",
        "sampling",
        "tokenizer",
    },
    "dialogues": {
        "answers",
        "chat",
        "decoder",
        "engine",
        "errors",
        "files",
        "prompt_files",
        "sampling",
        "tokenizer",
    },
    "conversation": {
        "prompt_files",
        "chat",
        "errors",
        "formats",
        "tokenizer",
    },
    "remote": {
        "answers",
        "collection",
        "connection",
        "errors",
        "files",
        "formats",
        "limits",
        "pipeline",
        "replies",
    },
    "remote_files": {
        "answers",
        "outputs",
        "prompt_files",
        "remote",
    },
    "run": {
        "config",
        "directories",
        "errors",
        "files",
        "objectives",
        "optim",
        "parallel",
        "plan",
        "recipes",
        "row",
        "tokenizer",
        "kernels.attention",
    },
    "prepare": {
        "checkpoint",
        "config",
        "data",
        "device",
        "errors",
        "files",
        "formats",
        "mini_data",
        "model",
        "objectives",
        "parallel",
        "plan",
        "recipes",
        "row",
        "run",
        "tokenizer",
    },
    "reference": {
        "chat",
        "checkpoint",
        "config",
        "device",
        "errors",
        "files",
        "losses",
        "model",
        "parallel",
        "progress",
        "run",
    },
    "allocations": {"kernels.attention", "kernels.linear_cross_entropy"},
    "memory": {
        "allocations",
        "cli",
        "config",
        "model",
        "optim",
        "parallel",
        "recipes",
        "row",
    },
    "resume": {
        "checkpoint",
        "directories",
        "errors",
        "model",
        "optim",
        "reference",
        "run",
        "state",
    },
    "records": {"files", "progress", "run"},
    "limits": set(),
    "replies": set(),
    "endpoint": {"errors"},
    "verdicts": {"connection", "endpoint", "limits", "replies"},
    "journal": {"errors", "files"},
    "client": {
        "connection",
        "endpoint",
        "errors",
        "interrupt",
        "journal",
        "limits",
        "progress",
        "verdicts",
    },
    "batch": {
        "client",
        "endpoint",
        "errors",
        "files",
        "limits",
        "verdicts",
    },
    "prompts": set(),
    "hierarchy": {"errors", "files"},
    "collection": {"duplicates", "hierarchy", "prompts", "replies"},
    "pipeline": {
        "batch",
        "client",
        "collection",
        "errors",
        "files",
        "formats",
        "journal",
        "prompts",
        "replies",
    },
    "exports": {"collection", "files", "formats"},
    "duplicates": set(),
    "sources": {"duplicates", "errors", "formats"},
    "build": {
        "client",
        "collection",
        "duplicates",
        "errors",
        "exports",
        "files",
        "formats",
        "hierarchy",
        "limits",
        "pipeline",
        "prompts",
        "sources",
    },
    "judge_prompts": set(),
    "templates": {"errors", "formats", "judge_prompts", "prompts"},
    "judge": {"replies", "templates"},
    "bench": {"errors", "files", "formats"},
    "judging": {
        "bench",
        "collection",
        "connection",
        "errors",
        "files",
        "formats",
        "judgments",
        "kinds",
        "limits",
        "pipeline",
        "templates",
    },
    "judgments": {"errors", "files", "formats", "kinds", "pipeline", "replies"},
    "intervals": set(),
    "rubric": {"bench", "errors", "formats", "intervals", "judge", "judging", "judgments", "kinds"},
    "pairwise": {
        "bench",
        "errors",
        "intervals",
        "judge",
        "judging",
        "judgments",
        "kinds",
        "people",
    },
    "people": {"errors", "files", "formats", "intervals"},
    "answers": {"bench", "errors", "files", "formats"},
    "length_control": {"errors", "intervals", "sources"},
    "win_rates": {"errors", "intervals", "length_control", "replies"},
    "alpaca_eval": {
        "answers",
        "bench",
        "errors",
        "files",
        "formats",
        "intervals",
        "judging",
        "judgments",
        "kinds",
        "length_control",
        "pipeline",
        "win_rates",
    },
    "ratings": {"bench", "errors", "formats", "intervals", "replies"},
    "mt_bench": {
        "answers",
        "bench",
        "errors",
        "files",
        "formats",
        "judging",
        "judgments",
        "kinds",
        "pipeline",
        "ratings",
        "templates",
    },
    "battles": {"replies"},
    "arena_files": {"battles", "bench", "errors", "files", "formats"},
    "arena_hard": {
        "answers",
        "arena_files",
        "battles",
        "bench",
        "errors",
        "files",
        "formats",
        "judge_prompts",
        "judging",
        "judgments",
        "kinds",
        "pipeline",
    },
    "perspective": {"client", "connection", "endpoint", "journal", "verdicts"},
    "fluency": {
        "chat",
        "checkpoint",
        "errors",
        "loading",
        "losses",
        "model",
        "plan",
        "progress",
        "row",
        "tokenizer",
    },
    "toxicity": {
        "bench",
        "connection",
        "errors",
        "files",
        "fluency",
        "formats",
        "intervals",
        "judging",
        "judgments",
        "perspective",
        "pipeline",
    },
    "reward_pairs": {"bench", "chat", "errors", "formats", "row", "tokenizer"},
    "reward_bench": {
        "bench",
        "best_of_n",
        "checkpoint",
        "errors",
        "files",
        "formats",
        "intervals",
        "judgments",
        "kinds",
        "loading",
        "model",
        "reward_pairs",
        "tokenizer",
    },
    "responses": {"bench", "errors", "intervals", "judging", "judgments", "rouge"},
    "tables": set(),
    "results": {"errors", "tables"},
    "multifaceted": {"intervals", "results", "tables"},
    "general": {"results", "tables"},
    "measures": {"results", "tables"},
    "comparison": {"errors", "kinds", "tables"},
    "summary": {"comparison", "errors", "kinds", "tables"},
    "kinds": {"general", "measures", "multifaceted", "results"},
    "chart": {"comparison", "errors", "kinds", "multifaceted", "tables"},
    "report": {"comparison", "errors", "files", "kinds", "results", "tables"},
    "examiner": {"cli", "errors", "loopback", "mini_data", "teacher", "world"},
    "rouge": set(),
    "stats": {"errors", "formats", "rouge"},
    "sunburst": {"errors", "files", "formats"},
    "loopback": {"errors"},
    "teacher": {"hierarchy", "mini_data", "prompts", "world"},
    "world": {"hierarchy"},
    "mini_data": {"files", "world"},
    "own_pairs": {"errors", "files", "formats"},
    "mini_benches": {"files", "mini_data", "world"},
    "stages": {"errors", "files", "interrupt", "progress"},
    "mini_tables": {"errors", "files", "intervals", "kinds", "mini_data", "tables"},
    "miniature": {
        "cli",
        "errors",
        "examiner",
        "files",
        "kinds",
        "mini_benches",
        "mini_data",
        "mini_tables",
        "progress",
        "recipes",
        "stages",
    },
    "grading": {
        "chat",
        "directories",
        "engine",
        "errors",
        "mini_data",
        "model",
        "sampling",
        "tokenizer",
        "world",
    },
}
RUN_TIME = {"torch", "triton", "numpy", "safetensors", "sentencepiece", "requests"}


def files() -> dict[str, Path]:
    own = {path.stem: path for path in (ROOT / "janus_min").glob("*.py")}
    for path in (ROOT / "kernels").rglob("*.py"):
        own[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    return {name: path for name, path in own.items() if not name.endswith("__init__")}


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, and of what it takes from them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_go_one_way():
    modules = files()
    assert modules.keys() == ALLOWED.keys()
    for name, path in modules.items():
        own = {other.removeprefix("janus_min.") for other in imported(path)} & modules.keys()
        assert own <= ALLOWED[name], f"{name} imports {own - ALLOWED[name]}"
        assert not imported(path) & set(PROGRAMS)


def test_run_time_packages_are_the_six():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {re.match(r"[a-z]+", line)[0] for line in lines} == RUN_TIME
    paths = [*files().values(), *(ROOT / f"{name}.py" for name in PROGRAMS)]
    for path in paths:
        roots = {name.split(".")[0] for name in imported(path)}
        foreign = roots - set(sys.stdlib_module_names) - {"janus_min", "kernels"} - RUN_TIME
        assert not foreign, f"{path} imports {foreign}"


def test_losses_import_torch_alone():
    assert {n.split(".")[0] for n in imported(ROOT / "janus_min" / "losses.py")} == {"torch"}


def called(function: object) -> set[str]:
    """Names of all that a function calls."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {name.id for name in calls if isinstance(name, ast.Name)}


def test_every_loss_is_two_calls_away_from_main():
    """train.py's main calls the objective, the objective calls its loss."""
    assert "objective" in called(train.main)
    for name, objective in OBJECTIVES.items():
        assert f"{name}_loss" in called(objective)


def test_everything_imports_without_triton_and_transformers():
    """As on a system that has no triton wheel, with the run-time packages only."""
    block = "import sys; sys.modules['triton'] = sys.modules['transformers'] = None\n"
    modules = [name if "." in name else f"janus_min.{name}" for name in files()]
    code = block + "\n".join(f"import {name}" for name in [*modules, *PROGRAMS])
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_sizes():
    for path in [*files().values(), *(ROOT / f"{name}.py" for name in PROGRAMS)]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= (400 if "kernels" in path.parts else 310), f"{path} has {lines} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{path}: {node.name} has {length} lines"


def test_public_functions_are_documented_and_all_are_typed():
    for path in files().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"
            if not isinstance(node, ast.FunctionDef):
                continue
            if any(isinstance(d, ast.Name) and d.id == "jit" for d in node.decorator_list):
                continue  # the arguments of kernels have no types in Python
            arguments = [a for a in node.args.args + node.args.kwonlyargs if a.arg != "self"]
            if arguments and arguments[0].arg == "ctx":  # what torch hands to autograd functions
                arguments = arguments[1:]
            assert all(a.annotation for a in arguments), f"{path}: {node.name} is not typed"
            if not node.name.startswith("__"):
                assert node.returns is not None, f"{path}: {node.name} has no return type"
            public = not node.name.startswith("_") and node.name not in SAID_BY_THEIR_CLASS
            assert not public or ast.get_docstring(node), f"{path}: {node.name} has no docstring"


# Methods that are what their class says it is.
SAID_BY_THEIR_CLASS = {"forward", "backward", "attend", "error", "refuse"}


def test_nothing_is_pickled_and_no_certificate_ignored():
    folders = [ROOT.glob("*.py"), *(ROOT / f for f in ("janus_min", "kernels", "tests"))]
    paths = [*folders[0], *(path for folder in folders[1:] for path in folder.rglob("*.py"))]
    for path in paths:
        if path.name != "test_layout.py":
            text = path.read_text(encoding="utf-8")
            for word in ("torch.load(", "torch.save(", "import pickle", "verify=False", "CURL_CA"):
                assert word not in text, f"{path} has {word}"


# The README


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_tree_lists_every_module_and_nothing_else():
    tree = re.search(r"```\n(janus_min/.*?)```", README, re.S)[1]
    listed = set(re.findall(r"(\w+\.(?:py|json|html))", tree))
    real = {path.name for path in (ROOT / "janus_min").glob("*.*") if path.stem != "__init__"}
    real |= {path.name for path in (ROOT / "kernels").rglob("*.py") if path.stem != "__init__"}
    real |= {f"{name}.py" for name in PROGRAMS}
    assert listed == real


def test_readme_pointers_exist():
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", README):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(class|def) {name}\b|^{name} = ", text, re.M), f"{file}::{name}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_explains_itself_and_the_readme_uses_flags_that_exist(program):
    def explained(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, ROOT / f"{program}.py", *command, "--help"],
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and done.stderr == ""
        assert f"python {program}.py" in done.stdout
        return done.stdout

    commands = re.findall(rf"(?:python|torchrun [^\n`|]*?) {program}\.py([^\n`|]*)", README)
    assert commands, f"the README does not show {program}.py"
    texts = {(): explained()}
    for line in commands:
        words = tuple(word for word in line.split()[:1] if word in COMMANDS.get(program, ()))
        texts.setdefault(words, None)
        texts[words] = texts[words] or explained(*words)
        for flag in re.findall(r"--[a-z-]+", line):
            assert flag in texts[words], f"{program}.py has no {flag}"


# The name `kernels`


def test_peers_work_although_the_package_kernels_is_installed(tmp_path):
    """PyPI's `kernels` is imported by transformers if its metadata is there, and finds ours."""
    metadata = tmp_path / "kernels-0.18.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    (metadata / "RECORD").write_text("")
    settings = dict(
        cwd=ROOT,
        env=environment(PYTHONPATH=f"{ROOT}:{tmp_path}"),
        capture_output=True,
        text=True,
    )
    plain = "import transformers; transformers.MistralForCausalLM"
    peers = "from tests.peers import transformers; transformers.MistralForCausalLM; import trl"
    done = subprocess.run([sys.executable, "-c", plain], **settings)
    assert done.returncode != 0 and "from 'kernels'" in done.stderr  # the limit in the README
    done = subprocess.run([sys.executable, "-c", peers + "; trl.DPOTrainer"], **settings)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "pytest", "tests/test_model.py", "-k", "rms_norm or theta"]
    done = subprocess.run(command, **settings)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout


def test_what_benchmarks_and_tests_import_from_here_exists():
    """Benchmarks are not run by the tests; this much of them is."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            if node.module.split(".")[0] in ("janus_min", "kernels"):
                module = importlib.import_module(node.module)
                for name in (f"{node.module}.{alias.name}" for alias in node.names):
                    is_module = name.removeprefix("janus_min.") in files()
                    assert is_module or hasattr(module, name.split(".")[-1]), f"{path}: {name}"
