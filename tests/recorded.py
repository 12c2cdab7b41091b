"""Recorded outputs of real judges. They lie beside the clone, as several licences demand."""

import os
from pathlib import Path

import pytest

from tests.programs import ROOT


def recorded(*parts: str) -> Path:
    """A recorded file or folder; without the recorded files, the test that asks is skipped.

    They are in the folder that the environment variable JANUS_RECORDED names, or else in
    ../shared/recorded beside the clone.
    """
    named = os.environ.get("JANUS_RECORDED")
    folder = Path(named) if named else ROOT.parent / "shared" / "recorded"
    if not named and not folder.is_dir():
        pytest.skip("recorded judge data not beside the clone")
    path = folder.joinpath(*parts)
    assert path.exists(), f"JANUS_RECORDED or ../shared/recorded has no {Path(*parts)}"
    return path
