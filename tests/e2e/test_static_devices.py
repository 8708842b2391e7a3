"""Devices of fixed shapes that cannot attend, in service beside others."""
import asyncio
import json
import os
import subprocess
import time

import pytest

from support import BUILD, Server, motley
from test_loss import assert_same, tell

SCENE = ["--devices", "GPU:0,CPU:0,NPU:1", "--tensor-parallel-size", 3,
         "--device-map", "GPU:0=SIM:gpu-like,NPU:1=SIM:intel-npu-like"]
PAIR = ["--devices", "NPU:1,CPU:0", "--device-map", "NPU:1=SIM:intel-npu-like"]
TIES_MAX = 4  # of eight streams: half-precision results change what was as good as undecided
PROMPT = ["--prompt", "a b c a b c d", "--max-tokens", 12, "--ignore-eos", "--temperature", 0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return {"MOTLEY_CACHE_DIR": str(tmp_path_factory.mktemp("static"))}


def told(server):
    """Eight streams of 16 tokens each."""
    return asyncio.run(tell(server, prompts=tuple(f"a b c {chr(100 + i)} a b c" for i in range(8))))


@pytest.fixture(scope="module")
def undisturbed(tiny, cache, tmp_path_factory):
    """What the CPU says alone."""
    with Server(tiny, tmp_path_factory.mktemp("alone") / "log", "--devices", "CPU:0", environment=cache) as server:
        return told(server)


def test_gpu_cpu_and_npu_serve_one_model_together(tiny, cache, undisturbed, tmp_path):
    with Server(tiny, tmp_path / "log", *SCENE, environment=cache) as server:
        assert assert_same(told(server), undisturbed) <= TIES_MAX
        devices = {one["name"]: one for one in server.get("/v1/devices").json()["data"]}
    assert list(devices) == ["GPU:0", "CPU:0", "NPU:1"]
    for name, one in devices.items():
        assert one["state"] == "serving" and one["simulated"] == (name != "CPU:0")
        assert one["programs"] > 0 and one["rows"] > 0 and one["bytes_moved"] > 0


@pytest.fixture
def two_cores():
    """This process and its servers run on two cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    yield
    os.sched_setaffinity(0, before)


PROMPTS, PROMPT_TOKENS = 8, 400


def counts_of_prompts(server):
    """What the devices count themselves as they run eight prompts of 400 tokens."""
    def own():
        return {one["name"]: one["own"] for one in server.get("/v1/devices").json()["data"]}
    before = own()
    for prompt in range(PROMPTS):
        tokens = [3 + (7 * prompt + at) % 300 for at in range(PROMPT_TOKENS)]
        server.complete(prompt=tokens, max_tokens=1)
    after = own()
    return {name: {key: after[name][key] - before[name][key] for key in counts} for name, counts in after.items()}


@pytest.fixture(scope="module")
def half_precision(tmp_path_factory):
    """A random model in the format of NPUs, of layers large enough to be worth a device's while."""
    model = tmp_path_factory.mktemp("models") / "half-precision.gguf"
    made = subprocess.run([BUILD / "bin/make_model", model, "--layers", "4", "--hidden", "1024", "--heads", "8", "--kv-heads",
                           "4", "--head-dim", "128", "--ffn", "4096", "--vocab", "512", "--type", "F16"])
    assert made.returncode == 0
    return model


def arithmetic_of_half_precision():
    """Of counts_of_prompts(), by the model's sizes: products with weights, attention, one row of logits a prompt."""
    layer = 2 * 1024 * (1024 + 2 * 512 + 1024 + 3 * 4096)
    attention = 4 * 8 * 128 * PROMPT_TOKENS * (PROMPT_TOKENS + 1) // 2
    return PROMPTS * (4 * (PROMPT_TOKENS * layer + attention) + 2 * 1024 * 512)


def test_most_arithmetic_of_prompts_is_off_the_cpu(two_cores, half_precision, tmp_path):
    """By the devices' own counts, which together are the model's arithmetic. How it is shared follows what was measured at
    the start, in wall time on two cores of which the simulated devices compute on one: a device that others disturb just
    then gets less. No share of a single start can be asserted, so there are up to three; what is counted is, of each."""
    for attempt in range(3):
        cache = {"MOTLEY_CACHE_DIR": str(tmp_path / str(attempt))}
        with Server(half_precision, tmp_path / "log", *SCENE, environment=cache) as server:
            counts = counts_of_prompts(server)
        flops = {name: own["flops"] for name, own in counts.items()}
        assert all(of > 0 for of in flops.values()), counts
        assert sum(flops.values()) == pytest.approx(arithmetic_of_half_precision(), rel=1e-6), counts
        for name, own in counts.items():
            padded = own["padded_rows"] > own["rows"]
            assert (own["padded_flops"] > own["flops"]) == padded and (name == "NPU:1" or not padded), counts
        # A row is padded to the next row count, of which each is at most four times the one before.
        npu = counts["NPU:1"]
        assert npu["rows"] <= npu["padded_rows"] < 4 * npu["rows"], counts
        elsewhere = 1 - flops["CPU:0"] / sum(flops.values())
        print(f"{100 * elsewhere:.0f} % is off the CPU: {flops}")
        if elsewhere >= 0.5:
            return
    pytest.fail(f"{100 * elsewhere:.0f} % is off the CPU")


def npu_that_compiles(folder, wall, more=""):
    """20 s for each program and row count, of which `wall` are waited for."""
    file = folder / "npu.toml"
    file.write_text("kind = 'npu'\nmemory_bytes = 4000000000\nbandwidth_gb_s = 1000\ngflops = {f32 = 10000}\n"
                    "dynamic_rows = false\npaged_attention = false\nweight_formats = ['F16']\nqueue_depth = 4\n"
                    f"compile_s = 20\ncompile_op_s = 0\ncompile_wall = {wall}\n{more}")
    return file


def test_programs_compile_while_others_serve(two_cores, half_precision, tmp_path):
    """Some seconds, of ten minutes that the device expects: at the first start behind measuring, at the second, whose
    programs are gone, alone. At the third they are there."""
    sim = npu_that_compiles(tmp_path, wall=0.003)
    cache = {"MOTLEY_CACHE_DIR": str(tmp_path / "cache")}
    texts = set()
    for says in ("serving on CPU:0 until the devices are measured", f"serving without SIM:{sim} until its programs are compiled"):
        log = tmp_path / "log"
        with Server(half_precision, log, "--devices", f"CPU:0,SIM:{sim}", environment=cache) as server:
            deadline, answered = time.monotonic() + 120, 0
            while server.get("/v1/devices").json()["data"][1]["state"] != "serving":
                assert time.monotonic() < deadline, log.read_text()
                texts.add(server.complete(prompt="a b c d e f g", max_tokens=8)["choices"][0]["text"])
                answered += 1
            assert answered > 10  # they did not wait for it
            texts.add(server.complete(prompt="a b c d e f g", max_tokens=8)["choices"][0]["text"])
            assert server.get("/v1/devices").json()["data"][1]["rows"] > 0
        assert says in log.read_text() and "the plan takes over" in log.read_text()
        kept = list((tmp_path / "cache/programs").iterdir())
        assert kept
        for file in kept if says.startswith("serving on") else []:
            file.unlink()
    with Server(half_precision, tmp_path / "log", "--devices", f"CPU:0,SIM:{sim}", environment=cache) as server:
        assert [one["state"] for one in server.get("/v1/devices").json()["data"]] == ["serving"] * 2
        texts.add(server.complete(prompt="a b c d e f g", max_tokens=8)["choices"][0]["text"])
    assert sorted(kept) == sorted((tmp_path / "cache/programs").iterdir())
    assert len(texts) <= 2  # one, but for a tie


@pytest.mark.parametrize("rows, says", (
    (64, ["is left out: cannot be measured", "bucket of 64 rows", "the plan takes over"]),
    (2048, ["no plan with NPU:10: ", "bucket of 2048 rows", "planning without", "the plan takes over"])))
def test_a_row_count_that_does_not_compile_leaves_its_device_out(two_cores, half_precision, tmp_path, rows, says):
    """Measuring compiles for up to 512 rows, the plan for up to 2048: either may fail. The others serve together,
    another device like it, whose name is in its name, among them."""
    well, ill = tmp_path / "well", tmp_path / "ill"
    well.mkdir(), ill.mkdir()
    fault = f"[[fault]]\nwhat = 'compile'\nrows = {rows}\n"
    devices = ["--devices", "CPU:0,NPU:1,NPU:10", "--device-map",
               f"NPU:1=SIM:{npu_that_compiles(well, 0)},NPU:10=SIM:{npu_that_compiles(ill, 0, fault)}"]
    cache, log = {"MOTLEY_CACHE_DIR": str(tmp_path / "cache")}, tmp_path / "log"
    with Server(half_precision, log, *devices, environment=cache) as server:
        deadline = time.monotonic() + 120
        while not all(part in log.read_text() for part in says):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        states = {one["name"]: one["state"] for one in server.get("/v1/devices").json()["data"]}
        assert states["NPU:10"] == "idle" and states["NPU:1"] == "serving", log.read_text()
        server.complete(prompt="a b c d e f g", max_tokens=4)
    again = motley("plan", half_precision, *devices, "--json", environment=cache)
    assert again.returncode == 0 and "measuring CPU:0" not in again.stderr, again.stderr
    assert ("measuring NPU:10" in again.stderr) == (rows == 64)  # what failed alone is tried again


def test_what_is_forced_waits_for_its_programs(two_cores, half_precision, tmp_path):
    sim = npu_that_compiles(tmp_path, wall=0.001)
    cache = {"MOTLEY_CACHE_DIR": str(tmp_path / "cache")}
    with Server(half_precision, tmp_path / "log", "--devices", f"CPU:0,SIM:{sim}", "--use-all-devices",
                environment=cache) as server:
        assert [one["state"] for one in server.get("/v1/devices").json()["data"]] == ["serving"] * 2
    log = (tmp_path / "log").read_text()
    assert "serving without" not in log and "until the devices" not in log


def test_the_cpu_attends_for_an_npu(tiny, cache, undisturbed, tmp_path):
    picture = json.loads(motley("plan", tiny, *PAIR, "--json", environment=cache).stdout)
    stage = {"layers": picture["stages"][0]["layers"], "shards": []}
    whole = picture["stages"][0]["shards"]
    total = {name: sum(shard[name] for shard in whole) for name in ("kv_heads", "ffn_columns", "vocab_rows")}
    stage["shards"] = [
        {"device": "NPU:1", "kv_heads": total["kv_heads"], "ffn_columns": total["ffn_columns"], "partner": "CPU:0"},
        {"device": "CPU:0", "vocab_rows": total["vocab_rows"]}]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"stages": [stage]}))
    with Server(tiny, tmp_path / "log", *PAIR, "--plan", plan, environment=cache) as server:
        assert assert_same(told(server), undisturbed) <= TIES_MAX
        devices = server.get("/v1/devices").json()["data"]
    assert {one["name"]: one["state"] for one in devices} == {"NPU:1": "serving", "CPU:0": "serving"}
    assert all(one["programs"] > 0 for one in devices)
    shown = motley("plan", tiny, *PAIR, "--plan", plan, environment=cache).stdout
    assert "of CPU:0, which attends" in shown and "SIMULATED" in shown


def test_what_an_npu_cannot_do_is_refused_plainly(tiny, cache, tmp_path):
    def refused(says, *arguments):
        done = motley("complete", tiny, *PROMPT, *arguments, environment=cache)
        assert done.returncode == 1 and done.stdout == ""
        last = done.stderr.splitlines()[-1]
        assert last.startswith("motley: ") and says in last, done.stderr

    refused("NPU:1 cannot attend, and a model needs that", "--devices", "NPU:1", "--device-map", "NPU:1=SIM:intel-npu-like")
    plan = tmp_path / "plan.json"
    layers = json.loads(motley("plan", tiny, *PAIR, "--json", environment=cache).stdout)["stages"][-1]["layers"][1]
    plan.write_text(json.dumps({"stages": [{"layers": [0, layers], "shards": [{"device": "NPU:1"}]}]}))
    refused("'NPU:1' cannot hold vocabulary; give it to another shard of the stage", *PAIR, "--plan", plan)
