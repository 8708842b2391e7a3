"""An installation: what programs and plugins outside this repository build against."""
import json
import os
import shutil
import subprocess

import pytest

from support import ANSWER_SECONDS_MAX, BUILD, ROOT, motley

FRANCE = "The capital of France is"
BUILD_SECONDS_MAX = 300


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=BUILD_SECONDS_MAX, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """A motley installed where nothing of the build directory is needed; moved once, as nothing may depend on it."""
    first = tmp_path_factory.mktemp("install") / "first"
    run("cmake", "--install", BUILD, "--prefix", first)
    return first.rename(first.with_name("prefix"))


def build(source, binary, prefix, *definitions):
    run("cmake", "-S", source, "-B", binary, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", *definitions)
    run("cmake", "--build", binary)


def test_install_holds_the_three_headers_and_no_other(prefix):
    headers = sorted(str(p.relative_to(prefix)) for p in (prefix / "include").rglob("*") if p.is_file())
    assert headers == [f"include/motley/{name}" for name in ("backend.h", "blocks.hpp", "llm.hpp", "types.h")]


def test_installed_command_finds_its_plugins(prefix):
    found = json.loads(run(prefix / "bin/motley", "devices", "--json", cwd="/"))
    assert "CPU:0" in [device["name"] for device in found["devices"]]


def test_example_builds_against_the_package_and_runs(prefix, model, tmp_path):
    build(ROOT / "examples", tmp_path, prefix, "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror")
    environment = {k: v for k, v in os.environ.items() if k != "MOTLEY_PLUGIN_DIR"}
    answer = run(tmp_path / "complete", model, FRANCE, cwd="/", env=environment)
    assert answer == motley("complete", model, "--prompt", FRANCE, "--max-tokens", 32).stdout
    done = subprocess.run([tmp_path / "complete", "/nonexistent", FRANCE], capture_output=True, text=True,
                          timeout=ANSWER_SECONDS_MAX)
    assert done.returncode == 1 and done.stdout == ""
    assert "/nonexistent" in done.stderr and len(done.stderr.splitlines()) == 1


def test_library_shows_the_public_classes_alone(prefix):
    names = [line.split(maxsplit=2)[2] for line in
             run("nm", "-DC", "--defined-only", prefix / "lib/libmotley.so").splitlines()]
    assert any(name.startswith("motley::LLM::LLM(") for name in names)
    public = ("motley::LLM::", "motley::Run::", "motley::Error::", "typeinfo for motley::Error",
              "typeinfo name for motley::Error", "vtable for motley::Error")
    assert [name for name in names if not name.startswith(public)] == []


def test_plugin_builds_against_the_installed_headers_alone(prefix, tmp_path):
    for folder in ("kit", "ref"):
        shutil.copytree(ROOT / "backends" / folder, tmp_path / "backends" / folder)
    build(ROOT / "tests/install", tmp_path / "build", prefix, f"-DBACKENDS={tmp_path / 'backends'}")
    found = json.loads(run(prefix / "bin/motley", "devices", "--json",
                           env={**os.environ, "MOTLEY_PLUGIN_DIR": str(tmp_path / "build")}))
    assert [device["name"] for device in found["devices"]] == ["REF:0"]
