"""Plans of several lanes in service: KV with two owners, and roles."""
import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from hf_folder import KV_HEADS, FFN, LAYERS, write_hf_folder
from support import Server, motley, refuse

DEVICES = ["--devices", "SIM:gpu-like,CPU:0"]
REQUESTS, TOKENS = 12, 24
PROMPTS = [f"a {chr(97 + i)} b " * (1 + i % 3) for i in range(REQUESTS)]
ON_GPU = {"device": "SIM:gpu-like"}
ATTENDED = {"device": "SIM:gpu-like", "partner": "CPU:0"}
ON_CPU = {"device": "CPU:0"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lanes") / "tiny"
    write_hf_folder(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tiny):
    return {"MOTLEY_CACHE_DIR": str(tiny.parent / "cache")}


def lane(shard, **fields):
    return {**fields, "stages": [{"layers": [0, LAYERS], "shards": [shard]}]}


def plan_file(folder, *lanes):
    path = folder / "plan.json"
    path.write_text(json.dumps({"lanes": lanes}))
    return path


def answers(server):
    """All at once."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        bodies = list(pool.map(lambda prompt: server.complete(prompt=prompt, max_tokens=TOKENS, ignore_eos=True), PROMPTS))
    assert all(body["usage"]["completion_tokens"] == TOKENS for body in bodies)
    return [body["choices"][0]["text"] for body in bodies]


@pytest.fixture(scope="module")
def alone(tiny, cache, tmp_path_factory):
    with Server(tiny, tmp_path_factory.mktemp("alone") / "log", "--devices", "CPU:0", environment=cache) as server:
        return answers(server)


def by_label(server, name, label):
    text = server.get("/metrics").body.decode()
    return {found[0]: float(found[1]) for found in re.findall(rf'^{name}{{.*{label}="(\d+)".*}} (\S+)$', text, re.M)}


def test_kv_of_two_owners(tiny, cache, alone, tmp_path):
    """The first pool holds two of the requests at most; the others' KV lies with the CPU."""
    plan = plan_file(tmp_path, lane(ON_GPU, kv_capacity_tokens=96), lane(ATTENDED, kv_capacity_tokens=2048))
    with Server(tiny, tmp_path / "log", *DEVICES, "--plan", plan, "--max-model-len", 64, environment=cache) as server:
        assert answers(server) == alone
        assert by_label(server, "motley:kv_blocks", "pool") == {"0": 6, "1": 128}
        rows = by_label(server, "motley:lane_rows_total", "lane")
        assert rows["0"] > 0 and rows["1"] > rows["0"], rows
    shown = motley("plan", tiny, *DEVICES, "--plan", plan, "--max-model-len", 64, environment=cache).stdout
    assert "lane 1: prompts and tokens, KV pool 1 of 2048 tokens" in shown and "KV         2144 tokens" in shown


def test_prompts_on_one_device_and_tokens_on_another(tiny, cache, alone, tmp_path):
    plan = plan_file(tmp_path, lane(ATTENDED, role="prefill"), lane(ON_CPU, role="decode", pool=0))
    with Server(tiny, tmp_path / "log", *DEVICES, "--plan", plan, "--no-enable-prefix-caching",
                environment=cache) as server:
        assert answers(server) == alone
        rows = by_label(server, "motley:lane_rows_total", "lane")
        metrics = server.metrics()
    assert rows["0"] == metrics["vllm:prompt_tokens_total"]
    assert rows["1"] == REQUESTS * (TOKENS - 1)  # a prompt's last row draws the first


@pytest.mark.parametrize("victim", [0, 1])
def test_the_owner_or_the_other_is_lost(victim, tiny, cache, alone, tmp_path):
    plan = plan_file(tmp_path, lane(ON_GPU, kv_capacity_tokens=96), lane(ATTENDED, kv_capacity_tokens=2048))
    with Server(tiny, tmp_path / "log", *DEVICES, "--isolate", "--plan", plan, "--max-model-len", 64,
                environment=cache) as server:
        workers = server.workers()
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(answers, server)
            while by_label(server, "motley:lane_rows_total", "lane").get("1", 0) < 40:
                assert not told.done()
            os.kill(workers[victim], signal.SIGKILL)
            assert told.result() == alone
        assert "lost" in (tmp_path / "log").read_text()


def test_lanes_that_cannot_be_are_refused(tiny, cache, tmp_path):
    def refused(says, *lanes):
        refuse("plan", tiny, *DEVICES, "--plan", plan_file(tmp_path, *lanes), says=says, environment=cache)

    refused("has no role", lane(ON_CPU), lane(ON_CPU, pool=0))
    refused("not its owners", lane(ATTENDED, role="prefill"), lane(ON_GPU, role="decode", pool=0))
    refused("one lane that decodes", lane(ATTENDED, role="prefill"))
    whole = {"kv_heads": KV_HEADS, "ffn_columns": FFN}
    refused("lanes[1]", lane(ON_CPU), lane({**ON_CPU, **whole, "partner": "CPU:0"}))
    refused("'both ways'", lane(ON_CPU, role="both ways"))
