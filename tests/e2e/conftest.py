import os
import resource
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from support import ROOT, Server

sys.path.insert(0, str(ROOT / "tests"))  # what other folders' tests use too
from hf_folder import write_hf_folder  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "alone: hangs on how fast devices are; nothing else runs beside it")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # a thousand connections need two thousand files
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))


@pytest.fixture(scope="session")
def model():
    """The default model's file."""
    path = os.environ.get("MOTLEY_TEST_MODEL")
    if not path:
        path = subprocess.run([ROOT / "tools/get_model"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    return Path(path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A random model's folder, of a few kilobytes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_hf_folder(folder)
    return folder


@pytest.fixture(scope="session")
def server(model, tmp_path_factory):
    """One server with the default settings for all tests that leave it as they found it."""
    with Server(model, tmp_path_factory.mktemp("server") / "log") as running:
        yield running
        assert running.stop() == 0, Path(running.log).read_text()


@pytest.fixture
def start(model, tmp_path):
    """start(options...): a server of the test's own."""
    running = []

    def make(*arguments, **options):
        running.append(Server(model, tmp_path / f"server{len(running)}.log", *arguments, **options))
        return running[-1]
    yield make
    for one in running:
        one.__exit__()


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=120)
