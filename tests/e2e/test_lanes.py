"""Plans of several lanes in service: KV with two owners, and roles; and pools with sections."""
import json
import os
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from hf_folder import FFN, KV_HEADS, LAYERS
from support import BUILD, Server, motley, refuse, wait_until

DEVICES = ["--devices", "SIM:gpu-like,CPU:0"]
REQUESTS, TOKENS, MANY = 12, 24, 200
PROMPTS = [f"a {chr(97 + i)} b " * (1 + i % 3) for i in range(REQUESTS)]
ON_GPU = {"device": "SIM:gpu-like"}
ATTENDED = {"device": "SIM:gpu-like", "partner": "CPU:0"}
ON_CPU = {"device": "CPU:0"}


@pytest.fixture(scope="module")
def cache(tiny):
    return {"MOTLEY_CACHE_DIR": str(tiny.parent / "cache")}


def lane(shard, **fields):
    return {**fields, "stages": [{"layers": [0, LAYERS], "shards": [shard]}]}


def plan_file(folder, *lanes):
    path = folder / "plan.json"
    path.write_text(json.dumps({"lanes": lanes}))
    return path


def answers(server, tokens=TOKENS, times=1):
    """All at once, each so many times."""
    def ask(prompt):
        return server.complete(prompt=prompt, max_tokens=tokens, ignore_eos=True)

    with ThreadPoolExecutor(REQUESTS * times) as pool:
        bodies = list(pool.map(ask, PROMPTS * times))
    assert all(body["usage"]["completion_tokens"] == tokens for body in bodies)
    return [body["choices"][0]["text"] for body in bodies]


@pytest.fixture(scope="module")
def alone(tiny, cache, tmp_path_factory):
    """Texts of the device alone, by how many tokens they have."""
    with Server(tiny, tmp_path_factory.mktemp("alone") / "log", "--devices", "CPU:0", environment=cache) as server:
        return {tokens: answers(server, tokens) for tokens in (TOKENS, MANY)}


def by_label(server, name, label):
    text = server.get("/metrics").body.decode()
    return {found[0]: float(found[1]) for found in re.findall(rf'^{name}{{.*{label}="(\d+)".*}} (\S+)$', text, re.M)}


def test_kv_of_two_owners(tiny, cache, alone, tmp_path):
    """The first pool holds two of the requests at most; the others' KV lies with the CPU."""
    plan = plan_file(tmp_path, lane(ON_GPU, kv_capacity_tokens=96), lane(ATTENDED, kv_capacity_tokens=2048))
    with Server(tiny, tmp_path / "log", *DEVICES, "--plan", plan, "--max-model-len", 64, environment=cache) as server:
        assert answers(server) == alone[TOKENS]
        assert by_label(server, "motley:kv_blocks", "pool") == {"0": 6, "1": 128}
        rows = by_label(server, "motley:lane_rows_total", "lane")
        assert rows["0"] > 0 and rows["1"] > rows["0"], rows
    shown = motley("plan", tiny, *DEVICES, "--plan", plan, "--max-model-len", 64, environment=cache).stdout
    assert "lane 1: prompts and tokens, KV pool 1 of 2048 tokens" in shown and "KV         2144 tokens" in shown


def test_prompts_on_one_device_and_tokens_on_another(tiny, cache, alone, tmp_path):
    plan = plan_file(tmp_path, lane(ATTENDED, role="prefill"), lane(ON_CPU, role="decode", pool=0))
    with Server(tiny, tmp_path / "log", *DEVICES, "--plan", plan, "--no-enable-prefix-caching",
                environment=cache) as server:
        assert answers(server) == alone[TOKENS]
        rows = by_label(server, "motley:lane_rows_total", "lane")
        metrics = server.metrics()
    assert rows["0"] == metrics["vllm:prompt_tokens_total"]
    assert rows["1"] == REQUESTS * (TOKENS - 1)  # a prompt's last row draws the first


@pytest.mark.parametrize("victim", [0, 1])
def test_the_owner_or_the_other_is_lost(victim, tiny, cache, alone, tmp_path):
    plan = plan_file(tmp_path, lane(ON_GPU, kv_capacity_tokens=512), lane(ATTENDED, kv_capacity_tokens=8192))
    with Server(tiny, tmp_path / "log", *DEVICES, "--isolate", "--plan", plan, "--max-model-len", 256,
                environment=cache) as server:
        workers = server.workers()
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(answers, server, MANY)
            while by_label(server, "motley:lane_rows_total", "lane").get("1", 0) < 40:
                assert not told.done()
            os.kill(workers[victim], signal.SIGKILL)
            assert told.result() == alone[MANY]
        assert "lost" in (tmp_path / "log").read_text()


LONG = "a b c d e f g h " * 6


def answer(server, prompt, tokens):
    return server.complete(prompt=prompt, max_tokens=tokens, ignore_eos=True)["choices"][0]["text"]


def sections_file(folder, first, shard=ON_GPU, **sections):
    """The shard's device alone, its pool of `first` tokens, and what further owners have."""
    path = folder / f"sections{len(sections)}.json"
    whole = {"stages": [{"layers": [0, LAYERS], "shards": [shard]}]}
    further = [{"owner": owner, "kv_capacity_tokens": tokens} for owner, tokens in sections.items()]
    path.write_text(json.dumps({**whole, "kv_capacity_tokens": first + sum(sections.values()), "sections": further}))
    return path


def test_a_sequence_longer_than_any_section(tiny, cache, tmp_path):
    """192 positions, of which the GPU holds 64."""
    with Server(tiny, tmp_path / "log", "--devices", "CPU:0", environment=cache) as server:
        length = server.post("/tokenize", {"prompt": LONG}).json()["count"]
        assert 64 < length <= 160, length
        tokens = 192 - length
        want = answer(server, LONG, tokens)
        short = answers(server)
    plan = sections_file(tmp_path, 64, **{"CPU:0": 192})
    with Server(tiny, tmp_path / "log1", *DEVICES, "--plan", plan, environment=cache) as server:
        assert by_label(server, "motley:kv_blocks", "pool") == {"0": (64 + 192) / 16}
        assert answer(server, LONG, tokens) == want
        assert answer(server, LONG, tokens) == want  # of which the cache has a part
        assert answers(server) == short  # more than fit at once
        assert answer(server, LONG, tokens) == want
    shown = motley("plan", tiny, *DEVICES, "--plan", plan, environment=cache).stdout
    assert "64 tokens as above, 192 with CPU:0" in shown and "KV         256 tokens" in shown


def test_a_sequence_longer_than_the_gpus_memory(model, cache, tmp_path):
    """Of 112 MiB the weights take 92, and 2048 positions would take 45 more."""
    few = [*DEVICES, "--max-model-len", 2048, "--max-num-batched-tokens", 64, "--max-num-seqs", 2]
    small = [*few, "--device-memory", f"SIM:gpu-like={112 << 20}"]
    stages = {"stages": [{"layers": [0, 30], "shards": [ON_GPU]}]}
    plans = {}
    for name, sections in {"alone": [], "spread": [{"owner": "CPU:0"}]}.items():
        plans[name] = tmp_path / f"{name}.json"
        plans[name].write_text(json.dumps({**stages, "sections": sections}))
    prompt = "The quick brown fox jumps over the lazy dog. " * 110
    with Server(model, tmp_path / "log", *few, "--plan", plans["alone"], environment=cache) as server:
        want = answer(server, prompt, 16)
    done = motley("serve", model, *small, "--plan", plans["alone"], "--port", 0, environment=cache)
    assert done.returncode == 1 and "bytes more than SIM:gpu-like has" in done.stderr, done.stderr
    with Server(model, tmp_path / "log1", *small, "--plan", plans["spread"], environment=cache) as server:
        assert answer(server, prompt, 16) == want
        used = server.complete(prompt=prompt, max_tokens=1)["usage"]["prompt_tokens"]
    shown = motley("plan", model, *small, "--plan", plans["spread"], environment=cache).stdout
    assert int(re.search(r"(\d+) tokens as above", shown)[1]) < used, shown


@pytest.mark.parametrize("victim", [0, 1])
def test_the_owner_of_a_section_or_the_other_is_lost(victim, tiny, cache, alone, tmp_path):
    plan = sections_file(tmp_path, 512, **{"CPU:0": 8192})
    with Server(tiny, tmp_path / "log", *DEVICES, "--isolate", "--plan", plan, "--max-model-len", 256,
                environment=cache) as server:
        workers = server.workers()
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(answers, server, MANY)
            while by_label(server, "motley:lane_rows_total", "lane").get("0", 0) < 600:
                assert not told.done()
            os.kill(workers[victim], signal.SIGKILL)
            assert told.result() == alone[MANY]
        assert "lost" in (tmp_path / "log").read_text()


def test_sections_that_cannot_be_are_refused(tiny, cache, tmp_path):
    def refused(says, plan, *more):
        refuse("plan", tiny, *DEVICES, "--plan", plan, *more, says=says, environment=cache)

    refused("keeps other blocks of the pool", sections_file(tmp_path, 64, **{"SIM:gpu-like": 64}))
    refused("not listed", sections_file(tmp_path, 64, **{"CPU:7": 64}))
    refused("cannot attend to a part of a sequence", sections_file(tmp_path, 64, **{"CPU:0": 64}), "--deterministic")
    file = tmp_path / "no_merge.toml"
    file.write_text('memory_bytes = 1073741824\nbandwidth_gb_s = 40\ngflops = {f32 = 50}\nwithout_ops = ["ATTN_MERGE"]\n')
    plan = sections_file(tmp_path, 64, {"device": f"SIM:{file}"}, **{"CPU:0": 192})
    done = motley("serve", tiny, "--devices", f"SIM:{file},CPU:0", "--plan", plan, "--port", 0, environment=cache)
    assert done.returncode == 1 and "this device has no ATTN_MERGE" in done.stderr, done.stderr


def test_a_queue_that_takes_few_programs(tiny, cache, alone, tmp_path):
    """A step has more of them: each layer is one, where others attend on the device or are attended for."""
    file = tmp_path / "shallow.toml"
    file.write_text("memory_bytes = 1073741824\nbandwidth_gb_s = 40\ngflops = {f32 = 50}\nqueue_depth = 2\n")
    name = f"SIM:{file}"
    plan = plan_file(tmp_path, lane({"device": name}, kv_capacity_tokens=96),
                     lane({"device": name, "partner": "CPU:0"}, kv_capacity_tokens=2048))
    with Server(tiny, tmp_path / "log", "--devices", f"{name},CPU:0", "--plan", plan, "--max-model-len", 64,
                environment=cache) as server:
        assert answers(server) == alone[TOKENS]


def test_lanes_that_cannot_be_are_refused(tiny, cache, tmp_path):
    def refused(says, *lanes):
        refuse("plan", tiny, *DEVICES, "--plan", plan_file(tmp_path, *lanes), says=says, environment=cache)

    refused("has no role", lane(ON_CPU), lane(ON_CPU, pool=0))
    refused("not its owners", lane(ATTENDED, role="prefill"), lane(ON_GPU, role="decode", pool=0))
    refused("one lane that decodes", lane(ATTENDED, role="prefill"))
    whole = {"kv_heads": KV_HEADS, "ffn_columns": FFN}
    refused("lanes[1]", lane(ON_CPU), lane({**ON_CPU, **whole, "partner": "CPU:0"}))
    refused("'both ways'", lane(ON_CPU, role="both ways"))


GPU = """kind = "gpu"
memory_bytes = 1073741824
bandwidth_gb_s = 0.4
gflops = {f32 = 200}
link_gb_s = 20
link_latency_us = 2
"""
PROCESSOR = """kind = "cpu"
memory_bytes = 1073741824
bandwidth_gb_s = 4
gflops = {f32 = 1, attention = 40}
link_gb_s = 20
link_latency_us = 2
"""


@pytest.fixture
def alone_of(cache, tmp_path):
    """A model of some megabytes, and its texts of the processor alone."""
    model = tmp_path / "model.gguf"
    made = subprocess.run([BUILD / "bin/make_model", model, "--layers", "4", "--hidden", "256", "--heads", "4", "--kv-heads",
                           "4", "--head-dim", "64", "--ffn", "1024", "--vocab", "512", "--type", "F16"])
    assert made.returncode == 0
    with Server(model, tmp_path / "alone", "--devices", "CPU:0", environment=cache) as server:
        return model, answers(server)


@pytest.mark.alone
def test_a_start_measures_a_full_gpu_and_keeps_kv_with_the_processor(alone_of, tmp_path):
    """Nine tenths of the GPU are weights, which its memory's rate makes the step's time: it gains by rows whose KV lies
    elsewhere. What is measured has to fit into it, too."""
    model, want = alone_of
    for name, text in {"gpu": GPU, "processor": PROCESSOR}.items():
        (tmp_path / f"{name}.toml").write_text(text)
    filled = int(model.stat().st_size / 0.9)
    with Server(model, tmp_path / "log", "--devices", "GPU:0,CPU:1", "--device-map",
                f"GPU:0=SIM:{tmp_path}/gpu.toml,CPU:1=SIM:{tmp_path}/processor.toml", "--device-memory", f"GPU:0={filled}",
                "--concurrency", 24, "--prompt-len", 16, "--output-len", 24, "--max-num-batched-tokens", 32,
                "--max-num-seqs", 32, environment={"MOTLEY_CACHE_DIR": str(tmp_path / "cache")}) as server:
        log = tmp_path / "log"
        wait_until(lambda: "the plan takes over" in log.read_text(), 60, "the devices are not measured")
        pools = by_label(server, "motley:kv_blocks", "pool")
        assert len(pools) == 2 and 0 < 16 * pools["0"] < 24 * 40 < 16 * pools["1"], (pools, log.read_text())
        assert answers(server, times=2) == 2 * want
        rows = by_label(server, "motley:lane_rows_total", "lane")
        devices = {device["name"]: device for device in server.get("/v1/devices").json()["data"]}
    assert rows["0"] > 0 and rows.get("1", 0) > 0, rows
    assert "left out" not in log.read_text()
    assert devices["GPU:0"]["own"]["bytes_resident"] <= filled
