"""torchrun itself: what users start, and what happens to a run when one of its ranks dies."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from janus_min.state import states
from tests.conftest import save_tiny
from tests.programs import ROOT, environment
from tests.ranks import train_on
from tests.runs import assert_same_run

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture
def start(tmp_path, world):
    """A smaller vocabulary than that of other tests: steps of milliseconds."""
    return save_tiny(tmp_path / "start", world)


@pytest.fixture
def command(small):
    """A run of minutes on two ranks, unless somebody ends it."""
    return [*map(str, (*TORCHRUN, ROOT / "train.py", *small, "--epochs", 4000, "--out", "run"))]


def begin(command, folder, **more):
    """Starts it, and waits for its first saved states. Returns it and the pids of its ranks."""
    settings = dict(cwd=folder, env=environment(**more), text=True)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    agent = subprocess.Popen(command, **settings, **pipes)
    deadline = time.monotonic() + 60
    while len(states(folder / "run/state")) < 2 and time.monotonic() < deadline:
        assert agent.poll() is None, agent.communicate()
        time.sleep(0.05)
    ranks = map(int, open(f"/proc/{agent.pid}/task/{agent.pid}/children").read().split())
    ranks = [pid for pid in ranks if "train.py" in command_of(pid)]
    assert len(ranks) == 2
    return agent, sorted(ranks, key=rank_of)


def command_of(pid):
    return open(f"/proc/{pid}/cmdline").read()


def rank_of(pid):
    variables = open(f"/proc/{pid}/environ").read().split("\0")
    return next(v for v in variables if v.startswith("RANK="))


def is_alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def all_gone(agent, ranks):
    """Waits for their end, at most 30 seconds. Returns what they wrote on stderr."""
    try:
        _, err = agent.communicate(timeout=30)
        print(err)
    finally:
        for pid in [agent.pid, *ranks]:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
    assert not any(is_alive(pid) for pid in ranks)
    assert agent.returncode != 0
    return err


def goes_on(command, folder):
    """What was saved is complete: two more steps make the run that was never stopped."""
    last = int(states(folder / "run/state")[-1].name.removeprefix("step-")) + 2
    flags = [*command[len(TORCHRUN) + 1 : -1], "--steps", last]  # without --out's value
    flags.remove("--out")
    train_on(2, *flags, "--out", folder / "run", "--resume")
    train_on(2, *flags, "--out", folder / "straight")
    assert_same_run(folder / "run", folder / "straight")


def test_a_rank_that_is_killed_ends_the_run(command, tmp_path):
    agent, ranks = begin(command, tmp_path)
    os.kill(ranks[1], signal.SIGKILL)
    err = all_gone(agent, ranks)
    assert "Signal 9 (SIGKILL) received" in err
    assert "rank 0 has lost another one, whose own message says why" in err
    goes_on(command, tmp_path)


def test_a_signal_to_torchrun_saves_the_step_on_all_ranks(command, tmp_path):
    agent, ranks = begin(command, tmp_path)
    agent.terminate()
    err = all_gone(agent, ranks)
    step = int(re.search(r"interrupted after step (\d+), which is saved", err)[1])
    assert states(tmp_path / "run/state")[-1].name == f"step-{step:08d}"
    assert err.count("interrupted after step") == err.count("finishing this step") == 1
    goes_on(command, tmp_path)


def test_an_error_on_one_rank_ends_the_run_with_its_message(command, tmp_path):
    """Whatever it is: here, a bug in the fifth step of the second rank."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from janus_min.records import Records\n"
        "    write = Records.write\n"
        "    def broken(records, metrics):\n"
        "        if metrics['step'] == 5:\n"
        "            raise ZeroDivisionError('five is right out')\n"
        "        write(records, metrics)\n"
        "    Records.write = broken\n"
    )
    agent, ranks = begin(command, tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    err = all_gone(agent, ranks)
    assert err.count("ZeroDivisionError: five is right out") == 1
    assert err.count("Traceback (most recent call last)") <= 2  # the rank's, and torchrun's
    goes_on(command, tmp_path)
