"""Where the tests find programs, model, bundle and text. Everything is optional: what is missing skips aloud."""
import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = pathlib.Path(os.environ.get("FIXPOINT_BIN", ROOT / "build" / "release" / "bin"))


def _path(variable):
    value = os.environ.get(variable, "")
    if not value:
        pytest.skip(f"{variable} is not set")
    path = pathlib.Path(value)
    if not path.exists():
        pytest.fail(f"{variable}={value} does not exist")
    return path


@pytest.fixture(scope="session")
def calibrate():
    program = BIN / "fixpoint-calibrate"
    if not program.exists():
        pytest.skip(f"{program} is not built")
    return program


@pytest.fixture(scope="session")
def model():
    """The real model, a GGUF file."""
    return _path("FIXPOINT_MODEL")


@pytest.fixture(scope="session")
def bundle():
    """A bundle calibrated from the real model."""
    return _path("FIXPOINT_BUNDLE")


@pytest.fixture(scope="session")
def data():
    """Folder with dev.txt and calibration.txt."""
    return _path("FIXPOINT_DATA")
