"""Devices of fixed shapes that cannot attend, in service beside others."""
import asyncio
import json
import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import BUILD, Server, Stream, motley, wait_until
from test_loss import SUBJECTS, assert_same, tell

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
    made = subprocess.run([BUILD / "bin/make_model", model, "--layers", "4", "--hidden", "512", "--heads", "4", "--kv-heads",
                           "2", "--head-dim", "128", "--ffn", "2048", "--vocab", "512", "--type", "F16"])
    assert made.returncode == 0
    return model


def arithmetic_of_half_precision():
    """Of counts_of_prompts(), by the model's sizes: products with weights, attention, one row of logits a prompt."""
    layer = 2 * 512 * (512 + 2 * 256 + 512 + 3 * 2048)
    attention = 4 * 4 * 128 * PROMPT_TOKENS * (PROMPT_TOKENS + 1) // 2
    return PROMPTS * (4 * (PROMPT_TOKENS * layer + attention) + 2 * 512 * 512)


# Nanoseconds of a row of all units of half_precision's parts, as of a core of some 20 GFLOP/s; what each device does beside it.
PART_NS = {"attention": 60_000, "ffn": 260_000, "layer": 330_000, "head": 10_000, "embed": 1_000}
SPEEDS = {"GPU:0": 1, "CPU:0": 1, "NPU:1": 0.7}


def give_costs(folder):
    """The kept costs become those above: what was measured hangs on who else ran."""
    [file] = (folder / "costs").glob("*.json")
    costs = json.loads(file.read_text())
    for device in costs["devices"]:
        for part in PART_NS.keys() & device.keys():
            table = device[part]
            table["ns"] = [[PART_NS[part] * units / table["units"][-1] * max(rows, 16) / SPEEDS[device["name"]]
                            for rows in table["rows"]] for units in table["units"]]
        for curve in ("context", "sequences"):
            if curve in device:
                device[curve]["ns"] = [20] * len(device[curve]["rows"])
        for factor in ("together", "context_together"):
            device.pop(factor, None)
    for link in costs["links"]:
        link.update(latency_us=50, gb_per_s=10)
    file.write_text(json.dumps(costs))


def test_most_arithmetic_of_prompts_is_off_the_cpu(two_cores, half_precision, tmp_path):
    """By the devices' own counts, which together are the model's arithmetic; of devices like these (SPEEDS), so that one
    start decides."""
    cache = {"MOTLEY_CACHE_DIR": str(tmp_path / "cache")}
    measured = motley("plan", half_precision, *SCENE, environment=cache)
    assert measured.returncode == 0, measured.stderr
    give_costs(tmp_path / "cache")
    with Server(half_precision, tmp_path / "log", *SCENE, environment=cache) as server:
        counts = counts_of_prompts(server)
    assert "measuring" not in (tmp_path / "log").read_text()
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
    assert elsewhere >= 0.5, f"{100 * elsewhere:.0f} % is off the CPU: {flops}"


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
            deadline, answered = time.monotonic() + 300, 0
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


# Four row counts, at 20 s for each of five programs; 512 rows, up to which devices are measured, among them.
FOUR_COUNTS = ["--compile-limit", 430, "--concurrency", 64, "--prompt-len", 2000, "--output-len", 200]


@pytest.mark.parametrize("rows, options", ((64, []), (2048, FOUR_COUNTS)))
def test_a_row_count_that_does_not_compile_is_gone_without(two_cores, half_precision, tmp_path, rows, options):
    """Measuring compiles for up to 512 rows, the plan for up to 2048: either may fail, and the others run, also when a
    device is added. The next start knows."""
    fault = f"[[fault]]\nwhat = 'compile'\nrows = {rows}\n"
    sim = npu_that_compiles(tmp_path, 0, fault)
    devices = ["--devices", f"CPU:0,SIM:{sim}", "--use-all-devices", *options]
    cache, log = {"MOTLEY_CACHE_DIR": str(tmp_path / "cache")}, tmp_path / "log"
    says = f"SIM:{sim} has no programs for {rows} rows"
    with Server(half_precision, log, *devices, environment=cache) as server:
        states = [one["state"] for one in server.get("/v1/devices").json()["data"]]
        assert states == ["serving"] * 2 and says in log.read_text(), log.read_text()
        before = server.get("/v1/devices").json()["data"][1]["rows"]
        server.complete(prompt=[3 + at % 300 for at in range(60)], max_tokens=4)
        assert server.get("/v1/devices").json()["data"][1]["rows"] > before
        added = server.post("/v1/devices", {"add": "SIM:gpu-like"})
        assert added.status == 200, added.body
    assert log.read_text().count(says) == 1
    with Server(half_precision, log, *devices, environment=cache) as server:
        assert [one["state"] for one in server.get("/v1/devices").json()["data"]] == ["serving"] * 2
    text = log.read_text()
    assert "measuring" not in text and says not in text, text
    assert f"SIM:{sim} goes without programs for {rows} rows, which did not compile before" in text, text


def test_a_device_that_compiles_nothing_is_left_out(two_cores, half_precision, tmp_path):
    """The others serve together, another device like it, whose name is in its name, among them."""
    says = ["is left out: cannot be measured", "the compiler fails", "the plan takes over"]
    well, ill = tmp_path / "well", tmp_path / "ill"
    well.mkdir(), ill.mkdir()
    fault = "[[fault]]\nwhat = 'compile'\n"
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
        assert server.post("/v1/devices", {"add": "SIM:gpu-like"}).status == 200
        text = log.read_text()
        assert text.count("measuring NPU:10") == 1 and "measuring SIM:gpu-like" in text, text
    again = motley("plan", half_precision, *devices, "--json", environment=cache)
    assert again.returncode == 0 and "measuring CPU:0" not in again.stderr, again.stderr
    assert "measuring NPU:10" in again.stderr  # what failed alone is tried again


def test_what_is_forced_waits_for_its_programs(two_cores, half_precision, tmp_path):
    sim = npu_that_compiles(tmp_path, wall=0.001)
    cache = {"MOTLEY_CACHE_DIR": str(tmp_path / "cache")}
    with Server(half_precision, tmp_path / "log", "--devices", f"CPU:0,SIM:{sim}", "--use-all-devices",
                environment=cache) as server:
        assert [one["state"] for one in server.get("/v1/devices").json()["data"]] == ["serving"] * 2
    log = (tmp_path / "log").read_text()
    assert "serving without" not in log and "until the devices" not in log


def stage_of_one_device(model, cache):
    done = motley("plan", model, "--devices", "CPU:0", "--json", environment=cache)
    assert done.returncode == 0, done.stderr
    [stage] = json.loads(done.stdout)["stages"]
    return stage


@pytest.fixture
def whole(tiny, cache):
    return stage_of_one_device(tiny, cache)


def plan_with_partner(model, cache, folder):
    """All layers on the NPU, for which the CPU attends."""
    stage = stage_of_one_device(model, cache)
    [shard] = stage["shards"]
    shards = [{"device": "NPU:1", "kv_heads": shard["kv_heads"], "ffn_columns": shard["ffn_columns"], "partner": "CPU:0"},
              {"device": "CPU:0", "vocab_rows": shard["vocab_rows"]}]
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"stages": [{"layers": stage["layers"], "shards": shards}]}))
    return plan


@pytest.fixture
def partner_plan(tiny, cache, tmp_path):
    return plan_with_partner(tiny, cache, tmp_path)


# Clients at once, each one request after another: tokens of each prompt and answer.
MIXED = 12, [((16, 64, 200, 120)[i % 4], (8, 24, 48)[i % 3]) for i in range(72)]
FEW = 8, [(128, 64)] * 16  # which mostly decode, in two micro-batches of four


def padding_of_load(server, clients, lengths):
    """The share of the rows that the NPU runs."""
    def ask(i):
        tokens, answer = lengths[i]
        server.complete(prompt=[3 + (7 * i + at) % 200 for at in range(tokens)], max_tokens=answer, ignore_eos=True)

    def npu():
        return server.get("/v1/devices").json()["data"][0]["own"]

    before = npu()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(len(lengths))))
    after = npu()
    rows, run = (after[name] - before[name] for name in ("rows", "padded_rows"))
    print(f"{rows} rows in {run}: {100 * (1 - rows / run):.1f} % padding")
    assert rows > sum(prompt for prompt, _ in lengths)
    return 1 - rows / run


@pytest.mark.parametrize("clients, lengths", (MIXED, FEW), ids=("mixed", "few"))
def test_a_quarter_of_the_rows_of_a_load_is_padding_at_most(tiny, cache, partner_plan, tmp_path, clients, lengths):
    with Server(tiny, tmp_path / "log", *PAIR, "--plan", partner_plan, "--no-enable-prefix-caching",
                environment=cache) as server:
        assert padding_of_load(server, clients, lengths) <= 0.25


@pytest.mark.parametrize("clients, lengths", (MIXED, FEW), ids=("mixed", "few"))
def test_so_it_is_with_four_row_counts_where_the_load_is_told(tiny, partner_plan, tmp_path, clients, lengths):
    """Four are what a model of 30 layers gets; of so small a one they take two minutes, by the device's own estimate."""
    prompt, answer = (sum(tokens) // len(lengths) for tokens in zip(*lengths))
    load = ["--concurrency", clients, "--prompt-len", prompt, "--output-len", answer, "--compile-limit", 130]
    with Server(tiny, tmp_path / "log", *PAIR, "--plan", partner_plan, "--no-enable-prefix-caching", *load,
                environment={"MOTLEY_CACHE_DIR": str(tmp_path / "cache")}) as server:
        padding = padding_of_load(server, clients, lengths)
    [costs] = (tmp_path / "cache/costs").glob("*.json")
    [counts] = [one["buckets"] for one in json.loads(costs.read_text())["devices"] if "buckets" in one]
    print(counts)
    assert len(counts) == 4 and padding <= 0.25, f"{100 * padding:.1f} % with {counts}"


@pytest.mark.parametrize("preset", ["intel-npu-like", "xdna-like", "hexagon-like"])
def test_the_cpu_attends_for_an_npu(tiny, cache, undisturbed, partner_plan, tmp_path, preset):
    pair = [*PAIR[:-1], f"NPU:1=SIM:{preset}"]
    with Server(tiny, tmp_path / "log", *pair, "--plan", partner_plan, environment=cache) as server:
        assert assert_same(told(server), undisturbed) <= TIES_MAX
        devices = server.get("/v1/devices").json()["data"]
    assert {one["name"]: one["state"] for one in devices} == {"NPU:1": "serving", "CPU:0": "serving"}
    assert all(one["programs"] > 0 for one in devices)
    shown = motley("plan", tiny, *pair, "--plan", partner_plan, environment=cache).stdout
    assert "of CPU:0, which attends" in shown and "SIMULATED" in shown


def test_an_npu_of_any_rows_serves_alone(tiny, cache, undisturbed, tmp_path):
    """One that attends; in half precision, which its results are rounded to."""
    alone = ["--devices", "NPU:1", "--device-map", "NPU:1=SIM:ascend-like"]
    with Server(tiny, tmp_path / "log", *alone, environment=cache) as server:
        assert assert_same(told(server), undisturbed) <= TIES_MAX


def test_the_only_partner_is_lost_with_its_kv_and_comes_back(tiny, cache, partner_plan, tmp_path):
    """The NPU that is left cannot serve: the partner's worker is started anew, and the stream goes on."""
    with Server(tiny, tmp_path / "log", "--isolate", *PAIR, "--plan", partner_plan, environment=cache) as server:
        _, partner = server.workers()
        events = iter(Stream(server, prompt="a b c d", max_tokens=100, ignore_eos=True))
        next(events)
        os.kill(partner, signal.SIGKILL)
        assert list(events)[-1]["choices"][0]["finish_reason"] == "length", (tmp_path / "log").read_text()
        assert "the devices that are left cannot serve: CPU:0 is started anew" in (tmp_path / "log").read_text()
        assert server.get("/health").status == 200


@pytest.mark.parametrize("seed", range(3))
def test_an_npu_and_its_partner_are_lost_again_and_again(server, model, cache, tmp_path, seed):
    """While eight streams run, first the NPU, its partner or both; then twice the partner, which serves alone,
    with or without the NPU."""
    draw = random.Random(f"pair {seed}")
    prompts = tuple(f"One day the {subject}" for subject in SUBJECTS)
    options = ["--isolate", *PAIR, "--plan", plan_with_partner(model, cache, tmp_path), "--no-enable-prefix-caching"]
    undisturbed = asyncio.run(tell(server, prompts=prompts, tokens=256))
    with Server(model, tmp_path / "log", *options, environment=cache) as pair:
        recoveries = lambda: pair.metrics()["motley:recoveries_total"]  # noqa: E731
        seen, killed = [0], []

        def strike_thrice():
            for blow in range(3):
                wait_until(lambda: recoveries() == blow, 60, "no worker came back")
                before = seen[0]
                wait_until(lambda: seen[0] > before, 60, "no token came")
                alive = [pid for pid in pair.workers() if pid not in killed]
                npu, cpu, both = alive[:1], alive[-1:], alive  # the partner is always the newer one
                victims = (npu, cpu, both)[seed] if blow == 0 else draw.choice((cpu, both))
                for victim in victims:
                    os.kill(victim, signal.SIGKILL)
                killed.extend(victims)

        with ThreadPoolExecutor(1) as pool:
            blows = pool.submit(strike_thrice)
            stories = asyncio.run(tell(pair, lambda tokens: seen.__setitem__(0, tokens), prompts, tokens=256))
            blows.result()
        log = (tmp_path / "log").read_text()
        assert_same(stories, undisturbed)
        assert pair.get("/health").status == 200 and recoveries() == 3, log
        assert not set(killed) & set(pair.workers()), log


def test_what_an_npu_cannot_do_is_refused_plainly(tiny, cache, whole, tmp_path):
    def refused(says, *arguments):
        done = motley("complete", tiny, *PROMPT, *arguments, environment=cache)
        assert done.returncode == 1 and done.stdout == ""
        last = done.stderr.splitlines()[-1]
        assert last.startswith("motley: ") and says in last, done.stderr

    refused("NPU:1 cannot attend, and a model needs that", "--devices", "NPU:1", "--device-map", "NPU:1=SIM:intel-npu-like")
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"stages": [{"layers": whole["layers"], "shards": [{"device": "NPU:1"}]}]}))
    refused("'NPU:1' cannot hold vocabulary; give it to another shard of the stage", *PAIR, "--plan", plan)
