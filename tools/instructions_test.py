"""tools/instructions fails when it should: on counts of this build against a table that was tampered with."""
import importlib.machinery
import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools/instructions"
BUILD = Path(os.environ.get("MOTLEY_BUILD", ROOT / "build"))
HOT = "avx512 quantised_tile<Shifted<Q4_1, HalfPair>, 16>"


def module():
    loader = importlib.machinery.SourceFileLoader("instructions", str(TOOL))
    made = importlib.util.module_from_spec(importlib.util.spec_from_loader("instructions", loader))
    loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """What this build has, as a table: it must not matter here what is committed."""
    path = tmp_path_factory.mktemp("table") / "table.json"
    compare(path, "--write")
    return json.loads(path.read_text())


def compare(path, *more):
    done = subprocess.run([TOOL, "--build", BUILD, "--only", "loops", "--table", path, *more], capture_output=True,
                          text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize("change, status, said", [
    (lambda loops: None, 0, "0 failed"),
    (lambda loops: loops.update({HOT: round(loops[HOT] / 1.04)}), 1, f"FAIL {HOT}"),
    (lambda loops: loops.update({HOT: round(loops[HOT] * 1.04)}), 1, "keep it with --write"),
    (lambda loops: loops.update({HOT: round(loops[HOT] * 1.02)}), 0, "0 failed"),
    (lambda loops: loops.pop(HOT), 1, "no entry in the table"),
    (lambda loops: loops.update({"avx512 gone": 10}), 1, "not there"),
])
def test_loops_against_a_table(table, tmp_path, change, status, said):
    changed = json.loads(json.dumps(table))
    change(changed["loops"])
    path = tmp_path / "table.json"
    path.write_text(json.dumps(changed))
    found, text = compare(path)
    assert found == status, text
    assert said in text


def test_another_compilers_table_is_refused(table, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**table, "compiler": "1.2.3"}))
    assert compare(path)[0] == 1


def test_every_family_has_its_hot_loops(table):
    for family in ("avx2", "avx512", "portable"):
        assert any(name.startswith(f"{family} quantised_") for name in table["loops"]), family


def test_a_loop_is_what_a_jump_back_encloses():
    lines = [(0, "mov", ""), (4, "vpdpbusd", ""), (8, "add", ""), (12, "jne", "4 <f+0x4>"), (16, "jmp", "0 <f>")]
    assert module().innermost_loops(lines) == [lines[1:4]]


def test_a_loop_that_only_asks_for_memory_is_part_of_the_one_around_it():
    lines = [(0, "vpdpbusd", ""), (4, "prefetcht1", ""), (8, "jne", "4 <f+0x4>"), (12, "jne", "0 <f>")]
    assert module().innermost_loops(lines) == [lines]


def test_tokens_beyond_three_percent_fail():
    judge = module().judge
    assert judge({"decode": 1029}, {"decode": 1000}) == []
    assert len(judge({"decode": 1031}, {"decode": 1000})) == 1
    assert "--write" in judge({"decode": 969}, {"decode": 1000})[0]
