"""`motley bench plan`: a plan beside simpler placements, each run by the engine and the runtime."""
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from hf_folder import HIDDEN
from support import BUILD, MOTLEY, ROOT, motley, refuse

pytestmark = pytest.mark.alone

DEVICES_OF_KIND = {"alone": 1, "even_tensor_parallel": 2, "even_pipeline": 2, "memory_ratio": 2, "replicas": 2}
KINDS = ["alone", "alone", "even_tensor_parallel", "even_pipeline", "memory_ratio", "homogeneous", "replicas", "plan"]
LOAD = ["--concurrency", 4, "--input-len", 12, "--output-len", 6, "--num-prompts", 10, "--repeat", 2, "--seed", 7]
DEVICES = "SIM:gpu-like,SIM:slow-gpu-like"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return {"MOTLEY_CACHE_DIR": str(tmp_path_factory.mktemp("bench_plan"))}


@pytest.fixture(scope="module")
def seen(tiny, cache, tmp_path_factory):
    """What was printed, the JSON, and the picture."""
    folder = tmp_path_factory.mktemp("seen")
    values, picture = folder / "plan.json", folder / "plan.svg"
    done = motley("bench", "plan", tiny, "--devices", DEVICES, *LOAD, "--output-json", values, "--svg", picture,
                  environment=cache)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(values.read_text()), picture.read_text()


def test_every_placement_has_a_row_with_everything(seen):
    _, values, _ = seen
    assert values["devices"] == DEVICES.split(",")
    asked = {"seed": 7, "concurrency": 4, "input_len": 12, "output_len": 6, "num_prompts": 10, "repeat": 2}
    assert {name: values[name] for name in asked} == asked
    assert [row["kind"] for row in values["rows"]] == KINDS
    for row in values["rows"]:
        measured = row["measured"]
        assert row["placement"] and row["predicted"]["output_tokens_per_s"] > 0
        assert [run["completed"] for run in measured["runs"]] == [10, 10], row["name"]
        speed = measured["output_tokens_per_s"]
        assert 0 < speed["least"] <= speed["median"] <= speed["most"]
        for figure in ("ttft_ms", "tpot_ms"):
            assert 0 < measured[figure]["p50"]["median"] <= measured[figure]["p99"]["median"]
        assert abs(row["prediction_error"] - (row["predicted"]["output_tokens_per_s"] / speed["median"] - 1)) < 1e-9
        for device in measured["devices"]:
            assert device["device"] in values["devices"]
            asked_for = device["busy"] > 0  # a slow replica may be asked for nothing
            assert asked_for or row["kind"] == "replicas"
            assert device["busy"] <= 1 + 1e-6 and (device["kv_bytes"] > 0) == asked_for and device["weight_bytes"] > 0
            assert device["memory_bytes"] == device["kv_bytes"] + device["weight_bytes"] + device["other_bytes"]


def test_who_works_together_moves_bytes_and_is_busy(seen):
    _, values, _ = seen
    for row in values["rows"]:
        devices = row["measured"]["devices"]
        together = row["kind"] in ("even_tensor_parallel", "even_pipeline", "memory_ratio")
        if row["kind"] in DEVICES_OF_KIND:
            assert len(devices) == DEVICES_OF_KIND[row["kind"]]
        else:
            assert {device["device"] for device in devices} <= set(values["devices"])
        busy = [device["busy"] for device in devices]
        if len(devices) == 1:
            assert busy[0] > 0.5, row  # nothing else to wait for
        elif row["kind"] == "replicas":
            assert max(busy) > 0.5, row
        elif together:
            assert sum(busy) < 1.9, row  # each waits for the other
        assert all((device["bytes_per_token"] > 0) == together for device in devices if row["kind"] != "plan")


def test_links_carry_what_devices_move(seen):
    """Between two devices: each sends half of what both count, but for sums, which both send and both count once."""
    _, values, _ = seen
    for row in values["rows"]:
        devices, links = row["measured"]["devices"], row["measured"]["links"]
        moved = sum(device["bytes_per_token"] for device in devices)
        if row["kind"] in ("even_pipeline", "memory_ratio"):
            assert [[link["a"], link["b"]] for link in links] == [sorted(DEVICES.split(","))]
            # The residual stream of each of 12 + 5 rows, for 6 tokens.
            assert links[0]["bytes_per_token"] == pytest.approx(moved / 2) == pytest.approx(17 / 6 * 4 * HIDDEN)
        elif row["kind"] == "even_tensor_parallel":
            assert moved / 2 < links[0]["bytes_per_token"] <= moved
        elif row["kind"] != "plan":
            assert not any(link["bytes_per_token"] for link in links)


def test_the_plan_is_predicted_no_worse_than_any_device_alone(seen):
    _, values, _ = seen
    plan = values["rows"][-1]
    assert plan["ratio_to_plan"] == 1
    for row in values["rows"]:
        if row["kind"] in ("alone", "homogeneous"):
            assert row["predicted"]["output_tokens_per_s"] <= 1.0101 * plan["predicted"]["output_tokens_per_s"]


@pytest.fixture(scope="module")
def of_megabytes(tmp_path_factory):
    """A model that the devices below take much longer for than this machine does."""
    file = tmp_path_factory.mktemp("model") / "model.gguf"
    subprocess.run([BUILD / "bin/make_model", file, "--layers", "4", "--hidden", "256", "--heads", "4", "--kv-heads", "4",
                    "--head-dim", "64", "--ffn", "1024", "--vocab", "512", "--type", "F16"], check=True)
    return file


# Two devices each (GB/s, GFLOP/s), the microseconds of their links, and the load.
MACHINES = {
    "alike and far from one another": ((8, 6), (8, 6), 1000, [8, 16]),
    "one nearly full of weights, one slow in products": ((0.8, 200), (4, 3), 2, [16, 16]),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_plan_serves_what_the_best_device_alone_does(machine, of_megabytes, tmp_path):
    """As measured in one run, on machines where both give half as much again and more, as replicas or with KV of both;
    and about what the best of all these placements does."""
    *devices, latency_us, (at_once, requests) = MACHINES[machine]
    names = []
    for i, (gb_per_s, gflops) in enumerate(devices):
        file = tmp_path / f"{i}.toml"
        file.write_text(f'kind = "gpu"\nmemory_bytes = 1073741824\nbandwidth_gb_s = {gb_per_s}\n'
                        f"gflops = {{f32 = {gflops}, attention = 40}}\nlink_gb_s = 20\nlink_latency_us = {latency_us}\n")
        names.append(f"SIM:{file}")
    bytes_max = int(of_megabytes.stat().st_size / 0.9) if "full" in machine else 1073741824
    room = ["--device-memory", f"{names[0]}={bytes_max}"] if "full" in machine else []
    values = tmp_path / "plan.json"
    done = motley("bench", "plan", of_megabytes, "--devices", ",".join(names), *room, "--concurrency", at_once,
                  "--input-len", 8, "--output-len", 8, "--num-prompts", requests, "--max-num-batched-tokens", 32,
                  "--max-num-seqs", 32, "--repeat", 3, "--seed", 1, "--output-json", values,
                  environment={"MOTLEY_CACHE_DIR": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    *others, plan = rows = json.loads(values.read_text())["rows"]
    held = [device["memory_bytes"] for row in rows for device in row["measured"]["devices"] if device["device"] == names[0]]
    assert 0 < max(held) <= bytes_max, held
    served = {row["kind"]: [] for row in others}
    for row in others:
        served[row["kind"]].append(row["measured"]["output_tokens_per_s"]["median"])
    ours = plan["measured"]["output_tokens_per_s"]["median"]
    print(f"{machine}: {ours:.1f} tokens/s, others {served}")
    assert len(plan["measured"]["devices"]) == len(served["alone"]) == 2
    assert ours >= 0.95 * max(served["alone"]), done.stdout
    assert ours >= 0.8 * max(sum(served.values(), [])), done.stdout


def test_table_and_picture_show_all_rows(seen):
    text, values, picture = seen
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(KINDS)
    assert "seed 7" in text and "10 requests of 12 + 6 tokens" in text
    drawn = ["".join(each.itertext()) for each in ElementTree.fromstring(picture).iter() if each.tag.endswith("text")]
    for line, row in zip(table[2:], values["rows"]):
        assert line.split("|")[1].strip() == row["name"]
        assert row["name"] in drawn


def test_what_cannot_be_is_a_row_with_its_reason(tiny, cache, tmp_path):
    values = tmp_path / "plan.json"
    done = motley("bench", "plan", tiny, "--devices", DEVICES, *LOAD, "--device-memory", "SIM:slow-gpu-like=1000000",
                  "--output-json", values, environment=cache)
    assert done.returncode == 0, done.stderr
    row = json.loads(values.read_text())["rows"][1]
    assert row["measured"] is None and "more would be needed on SIM:slow-gpu-like" in row["note"]
    assert "- SIM:slow-gpu-like alone: cannot be: " in done.stdout


def test_what_makes_no_sense_is_refused(tiny, tmp_path):
    devices = ["--devices", DEVICES]
    refuse("bench", "plan", tiny, *devices, "--concurrency", 0, says="--concurrency")
    refuse("bench", "plan", tiny, *devices, "--output-len", 1, says="--output-len")
    refuse("bench", "plan", tiny, *devices, "--num-prompts", 4294967295, "--input-len", 100, says="ask for fewer")
    refuse("bench", "plan", tiny, "--devices", "SIM:none", says="SIM:none")


def test_the_script_runs_it(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "benchmarks/hetero", "--quick", "--motley", MOTLEY, "--json",
                           tmp_path / "all.json"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "**Two simulated GPUs" in done.stdout and "| Motley's plan" in done.stdout
    assert [row["kind"] for row in json.loads((tmp_path / "all.json").read_text())["gpu-and-slow-gpu"]["rows"]] == KINDS
