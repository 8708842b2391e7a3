"""Devices, plans, and one model over several devices, as a user meets them."""
import json
import os
import signal
import subprocess

import pytest

from support import ROOT, lanes_of, motley, refuse, shards_of


PARTS = "CPU:0/cores=0,CPU:0/cores=1"
pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2 or not {0, 1} <= os.sched_getaffinity(0),
                                reason="needs cores 0 and 1")
PROMPT = ("--prompt", "The capital of France is", "--max-tokens", 16, "--temperature", 0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of this module's own: what is measured here is measured once."""
    return {"MOTLEY_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def alone(model, cache):
    done = motley("complete", model, *PROMPT, "--json", "--logprobs", 2, environment=cache)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def same_but_for_ties(tokens, alone):
    """The numeric contract across devices: equal up to a position where the two best were within 0.35."""
    for at, (here, there) in enumerate(zip(tokens, alone["token_ids"], strict=True)):
        if here != there:
            (_, best), (_, second) = alone["logprobs"][at]["top"][:2]
            assert best - second < 0.35, (at, here, there)
            return


def complete(model, cache, *arguments):
    done = motley("complete", model, *PROMPT, "--json", *arguments, environment=cache)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("arguments", [
    ("--devices", PARTS), ("--devices", PARTS, "--tensor-parallel-size", 2),
    ("--devices", PARTS, "--pipeline-parallel-size", 2), ("--devices", PARTS, "--use-all-devices", "--isolate"),
    ("--devices", "sim:GPU-like,cpu:0/cores=1", "--use-all-devices"),
    ("--devices", "SIM:gpu-like,SIM:gpu-like,CPU:0/cores=1", "--pipeline-parallel-size", 3)])
def test_placements_say_what_one_device_says(model, cache, alone, arguments):
    answer = complete(model, cache, *arguments)
    same_but_for_ties(answer["token_ids"], alone)
    used = [d for d in answer["devices"] if d["programs"] > 0]
    if len(arguments) > 2:  # forced: every device has worked
        assert len(used) == len(answer["devices"]) >= 2
        assert all(d["rows"] > 0 and d["bytes_moved"] > 0 and d["busy_s"] > 0 for d in used)


def test_names_are_those_of_the_list(model, cache):
    answer = complete(model, cache, "--devices", "sim:gpu-like,SIM:GPU-LIKE", "--use-all-devices")
    assert [d["name"] for d in answer["devices"]] == ["SIM:gpu-like/0", "SIM:gpu-like/1"]


def test_plan_is_printed_and_taken_back(model, cache, alone, tmp_path):
    done = motley("plan", model, "--devices", PARTS, "--tensor-parallel-size", 2, "--json", environment=cache)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert set(plan) - {"stages", "lanes"} == {"model", "machine", "predicted", "bound_tokens_per_s", "gap",
                                               "kv_capacity_tokens", "left_out", "alternatives"}
    for lane in lanes_of(plan):
        shards = shards_of(lane)
        assert sum(s["ffn_columns"] for s in shards) == 1536 and sum(s["kv_heads"] for s in shards) == 3
    assert plan["bound_tokens_per_s"] >= plan["predicted"]["tokens_per_s"] > 0
    assert plan["gap"] == pytest.approx(1 - plan["predicted"]["tokens_per_s"] / plan["bound_tokens_per_s"], abs=1e-6)
    file = tmp_path / "plan.json"
    file.write_text(done.stdout)
    same_but_for_ties(complete(model, cache, "--devices", PARTS, "--plan", file)["token_ids"], alone)
    file.write_text(json.dumps({"stages": [
        {"layers": [0, 7], "shards": [{"device": "CPU:0/cores=1"}]},
        {"layers": [7, 30], "shards": [
            {"device": "CPU:0/cores=0", "kv_heads": 3, "ffn_columns": 512, "vocab_rows": 0},
            {"device": "CPU:0/cores=1", "kv_heads": 0, "ffn_columns": 1024, "vocab_rows": 49152}]}]}))
    same_but_for_ties(complete(model, cache, "--devices", PARTS, "--plan", file)["token_ids"], alone)


def test_plan_pictures(model, cache, tmp_path):
    done = motley("plan", model, "--devices", PARTS, "--what-if", "+SIM:slow-gpu-like,-cpu:0/cores=1",
                  environment=cache)
    assert done.returncode == 0, done.stderr
    assert "CPU:0/cores=0" in done.stdout and "tokens/s" in done.stdout
    assert "SIM:slow-gpu-like" in done.stdout  # used, or left out with the reason
    svg = tmp_path / "plan.svg"
    assert motley("plan", model, "--devices", PARTS, "--svg", svg, environment=cache).returncode == 0
    assert svg.read_text().startswith("<svg") or svg.read_text().startswith("<?xml")


def test_plans_that_cannot_be(model, cache, tmp_path):
    file = tmp_path / "plan.json"

    def refused(content, says):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        refuse("complete", model, *PROMPT, "--devices", PARTS, "--plan", file, environment=cache, says=says)
    stage = {"layers": [0, 30], "shards": [{"device": "CPU:0/cores=0"}]}
    refused("{", "plan.json")
    refused({"stages": []}, "plan.json")
    refused({"stages": [{**stage, "layers": [0, 29]}]}, "plan.json")
    refused({"stages": [{**stage, "shards": [{"device": "GPU:0"}]}]}, "GPU:0")
    refused({"stages": [stage], "model": {"name": "other", "digest": "0" * 16}}, "model")
    refused("[]", "the file is a list")
    pipeline = {"stages": [{**stage, "layers": [0, 7]}, {"layers": [7, 30], "shards": [{"device": "CPU:0/cores=1"}]}]}
    file.write_text(json.dumps(pipeline))
    plan = ("plan", model, "--devices", PARTS, "--plan", file)
    refuse(*plan, "--pipeline-parallel-size", 3, environment=cache, says="has 2 stages")
    refuse(*plan, "--tensor-parallel-size", 2, environment=cache, says="stages[0] has 1 devices")
    refuse(*plan, "--objective", "latency", environment=cache, says="--objective latency and --plan")
    refuse("serve", *plan[1:], "--objective", "latency", environment=cache, says="--objective latency and --plan")
    kept = motley(*plan, "--pipeline-parallel-size", 2, "--use-all-devices", "--slo", "tpot=0.001", "--json",
                  environment=cache)
    assert kept.returncode == 0, kept.stderr
    assert json.loads(kept.stdout)["predicted"]["keeps_slo"] is False
    refuse("complete", model, *PROMPT, "--plan", tmp_path / "none.json", environment=cache, says="none.json")


def test_what_cannot_be_is_refused_before_anything_is_measured(model, tmp_path):
    cache = {"MOTLEY_CACHE_DIR": str(tmp_path / "cache")}
    plan = ("plan", model, "--devices", PARTS)
    refuse(*plan, "--tensor-parallel-size", 3, environment=cache, says=["3 devices are asked for", "lists 2: CPU:0/cores=0"])
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"stages": [{"layers": [0, 30], "shards": [{"device": "CPU:0/cores=0"}]}],
                                "machine": "0" * 16}))
    refuse(*plan, "--plan", file, environment=cache, says="another machine")
    assert not (tmp_path / "cache/costs").exists()


def test_devices_that_cannot_be(model, cache, tmp_path):
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it
    refuse("devices", "--device-map", f"GPU:7=SIM:{tmp_path / 'pipe'}", says="pipe: cannot be read")
    for devices, says in [("CPU:0,CPU:0", "listed twice"), ("CPU:0,CPU:0/cores=1", "share cores"),
                          ("GPU:0", "GPU:0 is not there"), ("CPU:0/cores=x", "cores"), ("SIM:none.toml", "motley: SIM:none.toml: cannot be read"),
                          ("", "device"), ("CPU:0/cores=4000", "4000"),
                          ("SIM:gpu-like/0,SIM:gpu-like/0", "SIM:gpu-like/0 is listed twice")]:
        refuse("complete", model, *PROMPT, "--devices", devices, environment=cache, says=says)
    refuse("complete", model, *PROMPT, "--tensor-parallel-size", 3, environment=cache, says="3 devices")
    refuse("complete", model, *PROMPT, "--devices", PARTS, "--tensor-parallel-size", 3, environment=cache, says="3")
    refuse("complete", model, *PROMPT, "--devices", PARTS, "--device-memory", "GPU:0=5", environment=cache,
           says="GPU:0")
    refuse("complete", model, *PROMPT, "--devices", PARTS, *[x for part in PARTS.split(",") for x in
                                                             ("--device-memory", f"{part}=1000000")],
           environment=cache, says=["missing"])


def test_devices_lists_all_there_is(cache):
    done = motley("devices", "--json", environment=cache)
    assert done.returncode == 0, done.stderr
    listing = json.loads(done.stdout)
    names = {d["name"]: d for d in listing["devices"]}
    assert {"CPU:0", "SIM:gpu-like", "SIM:igpu-like", "SIM:slow-gpu-like"} <= set(names)
    assert names["SIM:gpu-like"]["simulated"] and not names["CPU:0"]["simulated"]
    assert names["CPU:0"]["kind"] == "cpu" and names["CPU:0"]["measured"] is None
    assert "Q4_K" in names["CPU:0"]["dtypes"] and names["CPU:0"]["memory_bytes"]["total"] > 0
    assert {a["kind"] for a in listing["absent"]} >= {"npu"}
    measured = json.loads(motley("devices", "--json", "--measure", environment=cache).stdout)
    cpu = next(d for d in measured["devices"] if d["name"] == "CPU:0")["measured"]
    assert cpu["gb_per_s"] > 0 and cpu["dispatch_us"] > 0 and cpu["gflops"]["F32"] > 0
    assert all(link["gb_per_s"] > 0 for link in measured["links"])


def test_measuring_again_overwrites_what_was_kept(tiny, tmp_path):
    cache = {"MOTLEY_CACHE_DIR": str(tmp_path)}

    def written(*arguments):
        done = motley(*arguments, environment=cache)
        assert done.returncode == 0, done.stderr
        return "measuring CPU" in done.stderr, {file.name: file.stat().st_mtime_ns for file in tmp_path.rglob("costs-*")}
    plan = ("plan", tiny, "--devices", PARTS)
    for command in (plan, ("devices",)):
        first, before = written(*command, "--measure-again")
        assert first and before
        assert command == ("devices",) or written(*command) == (False, before)
        again, after = written(*command, "--measure-again")
        assert again and set(after) == set(before) and after != before


def test_a_device_that_takes_too_long_to_measure_is_left_out(model, alone, tmp_path):
    file = tmp_path / "slow.toml"
    file.write_text("memory_bytes = 1073741824\nbandwidth_gb_s = 40\ngflops = {f32 = 0.2}\n")
    devices = ("--devices", f"SIM:{file},CPU:0/cores=0", "--measure-limit", 1)
    cache = {"MOTLEY_CACHE_DIR": str(tmp_path / "cache")}
    says = f"SIM:{file} is left out: takes longer than 1 s to measure"
    first = motley("complete", model, *PROMPT, "--json", *devices, environment=cache)
    assert first.returncode == 0 and says in first.stderr, first.stderr
    same_but_for_ties(json.loads(first.stdout)["token_ids"], alone)
    again = motley("plan", model, *devices, "--json", environment=cache)  # not tried again
    assert again.returncode == 0 and "measuring" not in again.stderr, again.stderr
    assert [left["device"] for left in json.loads(again.stdout)["left_out"]] == [f"SIM:{file}"]
    limited = motley("plan", model, *devices, "--device-memory", f"SIM:{file}=500000000", "--json", environment=cache)
    assert limited.returncode == 0 and json.loads(limited.stdout)["left_out"], limited.stderr


def test_a_device_whose_memory_is_limited_is_measured_within_that(model, tmp_path):
    """Of 150 MiB: pools and layers by all that is there would not fit beside one another."""
    done = motley("plan", model, "--devices", "SIM:gpu-like,CPU:0/cores=0", "--device-memory", f"SIM:gpu-like={150 << 20}",
                  "--max-num-batched-tokens", 64, "--max-num-seqs", 8, "--json",
                  environment={"MOTLEY_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    reasons = [left["reason"] for left in json.loads(done.stdout)["left_out"]]
    assert not any("cannot be measured" in reason for reason in reasons), reasons


def test_a_server_is_planned_for_its_load(start, model, cache):
    """One request at a time is served best by one device, many by both."""
    devices = ("--devices", "SIM:gpu-like,SIM:igpu-like", "--prompt-len", 32, "--output-len", 64)
    assert motley("plan", model, *devices, environment=cache).returncode == 0  # measured, so that starts are not
    for load, serving in [(("--concurrency", 1, "--objective", "latency"), 1), (("--concurrency", 16), 2)]:
        server = start(*devices, *load, environment=cache)
        states = [device["state"] for device in server.get("/v1/devices").json()["data"]]
        assert states.count("serving") == serving, states


def test_metrics_say_what_each_device_did(start, cache):
    server = start("--devices", PARTS, "--tensor-parallel-size", 2, environment=cache)
    assert server.post("/v1/completions", {"model": server.model_name(), "prompt": "Hi", "max_tokens": 4}).status == 200
    page = server.get("/metrics").body
    page = page.decode() if isinstance(page, bytes) else page
    for series in ("programs_total", "rows_total", "bytes_moved_total", "busy_seconds_total", "flops_total", "padded_flops_total",
                   "resident_bytes"):
        for device in PARTS.split(","):
            line = next(x for x in page.splitlines() if x.startswith(f"motley:device_{series}{{") and device in x)
            assert float(line.split()[-1]) > 0, line


def test_counters_are_of_steps_alone(model, tmp_path):
    """A fresh cache: both parts are measured, one of them runs steps, and far fewer programs than measuring takes."""
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"stages": [{"layers": [0, 30], "shards": [{"device": "CPU:0/cores=0"}]}]}))
    cache = {"MOTLEY_CACHE_DIR": str(tmp_path / "cache")}
    serving, idle = complete(model, cache, "--devices", PARTS, "--plan", file)["devices"]
    assert idle == {"name": "CPU:0/cores=1", "programs": 0, "rows": 0, "bytes_moved": 0, "busy_s": 0}
    assert 16 <= serving["programs"] <= 16 * 8 and serving["rows"] >= serving["programs"] and serving["busy_s"] > 0


def test_counters_of_a_lost_device_stay_though_nobody_had_asked(start, cache):
    server = start("--isolate", "--devices", PARTS, "--use-all-devices", environment=cache)
    server.complete(prompt="Once upon a time", max_tokens=8, ignore_eos=True)
    os.kill(server.workers()[1], signal.SIGKILL)
    server.complete(prompt="Once upon a time", max_tokens=8, ignore_eos=True)
    left, lost = server.get("/v1/devices").json()["data"]
    assert lost["state"] == "lost" and left["state"] == "serving"
    assert left["programs"] > lost["programs"] > 0 and lost["rows"] > 0 and lost["busy_s"] > 0


def test_gpu_check_needs_a_gpu():
    """It examines what is there; here it says what is missing, as `motley devices` does, and which parts it has."""
    def gpu_check(*arguments):
        return subprocess.run([ROOT / "tools/gpu_check", *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, check=False)
    no_part = gpu_check("--only", "text,colour")
    assert no_part.returncode == 2 and "no such part: colour; there are conformance, kinds, text" in no_part.stderr
    absent = gpu_check("--device", "GPU:99", "--only", "text")
    assert absent.returncode == 1 and absent.stderr.startswith("gpu_check: there is no GPU:99 here: ")
