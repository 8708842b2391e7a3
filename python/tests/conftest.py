import os
import sys
from pathlib import Path

import pytest

import motley
from motley import LLM

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # what other folders' tests use too
FRANCE = "The capital of France is"


def pytest_configure():
    assert not Path(motley.__file__).is_relative_to(ROOT / "python"), "the tests are for the installed package"
    os.environ.pop("MOTLEY_PLUGIN_DIR", None)  # the package brings its own


@pytest.fixture(scope="session")
def model():
    """The default model's file: MOTLEY_TEST_MODEL, set by tools/check_wheel."""
    return os.environ["MOTLEY_TEST_MODEL"]


@pytest.fixture(scope="session")
def llm(model):
    return LLM(model=model, max_model_len=2048)
