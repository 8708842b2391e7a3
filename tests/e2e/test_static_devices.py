"""Devices of fixed shapes that cannot attend, in service beside others."""
import json

import pytest

from hf_folder import write_hf_folder
from support import Server, motley

SCENE = ["--devices", "GPU:0,CPU:0,NPU:1", "--tensor-parallel-size", 3,
         "--device-map", "GPU:0=SIM:gpu-like,NPU:1=SIM:intel-npu-like"]
PAIR = ["--devices", "NPU:1,CPU:0", "--device-map", "NPU:1=SIM:intel-npu-like"]
PROMPT = ["--prompt", "a b c a b c d", "--max-tokens", 12, "--ignore-eos", "--temperature", 0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static") / "tiny"
    write_hf_folder(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tiny):
    return {"MOTLEY_CACHE_DIR": str(tiny.parent / "cache")}


def complete(model, cache, *arguments):
    done = motley("complete", model, *PROMPT, "--json", *arguments, environment=cache)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_gpu_cpu_and_npu_serve_one_model_together(tiny, cache, tmp_path):
    alone = complete(tiny, cache, "--devices", "CPU:0")
    with Server(tiny, tmp_path / "log", *SCENE, environment=cache) as server:
        answer = server.complete(prompt="a b c a b c d", max_tokens=12, temperature=0, ignore_eos=True)
        assert answer["choices"][0]["text"][:4] == alone["text"][:4]
        devices = {one["name"]: one for one in server.get("/v1/devices").json()["data"]}
    assert list(devices) == ["GPU:0", "CPU:0", "NPU:1"]
    for name, one in devices.items():
        assert one["state"] == "serving" and one["simulated"] == (name != "CPU:0")
        assert one["programs"] > 0 and one["rows"] > 0 and one["bytes_moved"] > 0


def test_the_cpu_attends_for_an_npu(tiny, cache, tmp_path):
    picture = json.loads(motley("plan", tiny, *PAIR, "--json", environment=cache).stdout)
    stage = {"layers": picture["stages"][0]["layers"], "shards": []}
    whole = picture["stages"][0]["shards"]
    total = {name: sum(shard[name] for shard in whole) for name in ("kv_heads", "ffn_columns", "vocab_rows")}
    stage["shards"] = [
        {"device": "NPU:1", "kv_heads": total["kv_heads"], "ffn_columns": total["ffn_columns"], "partner": "CPU:0"},
        {"device": "CPU:0", "vocab_rows": total["vocab_rows"]}]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"stages": [stage]}))
    seen = complete(tiny, cache, *PAIR, "--plan", plan)
    assert seen["token_ids"][:4] == complete(tiny, cache, "--devices", "CPU:0")["token_ids"][:4]
    assert {one["name"] for one in seen["devices"] if one["programs"] > 0} == {"NPU:1", "CPU:0"}
    shown = motley("plan", tiny, *PAIR, "--plan", plan, environment=cache).stdout
    assert "of CPU:0, which attends" in shown and "SIMULATED" in shown


def test_what_an_npu_cannot_do_is_refused_plainly(tiny, cache, tmp_path):
    def refused(says, *arguments):
        done = motley("complete", tiny, *PROMPT, *arguments, environment=cache)
        assert done.returncode == 1 and done.stdout == ""
        last = done.stderr.splitlines()[-1]
        assert last.startswith("motley: ") and says in last, done.stderr

    refused("cannot attend", "--devices", "NPU:1", "--device-map", "NPU:1=SIM:intel-npu-like")
    plan = tmp_path / "plan.json"
    layers = json.loads(motley("plan", tiny, *PAIR, "--json", environment=cache).stdout)["stages"][-1]["layers"][1]
    plan.write_text(json.dumps({"stages": [{"layers": [0, layers], "shards": [{"device": "NPU:1"}]}]}))
    refused("cannot", *PAIR, "--plan", plan)
