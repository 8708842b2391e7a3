"""--device-map: simulated devices under the names of devices that are not there."""
import json

import pytest

from support import motley, refuse

PROMPT = ["--prompt", "The capital of France is", "--max-tokens", 12]
MAP = ["--devices", "GPU:0,CPU:0", "--device-map", "GPU:0=SIM:gpu-like"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return {"MOTLEY_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}


def text_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["text"]


def test_mapped_device_computes_under_its_name_and_is_marked(model, cache, tmp_path):
    trace = tmp_path / "trace.json"
    plain = motley("complete", model, *PROMPT, "--json", "--devices", "CPU:0", environment=cache)
    both = motley("complete", model, *PROMPT, "--json", *MAP, "--use-all-devices", "--trace", trace, environment=cache)
    assert text_of(both) == text_of(plain)
    assert "GPU:0 stands for SIM:gpu-like, SIMULATED" in both.stderr
    assert "GPU:0 SIMULATED" in trace.read_text()


def test_npu_of_fixed_rows_takes_part_beside_one_that_attends(model, cache, tmp_path):
    npu = tmp_path / "npu.toml"
    npu.write_text('kind = "npu"\nmemory_bytes = 4294967296\nbandwidth_gb_s = 20\ngflops = {f32 = 200}\n'
                   "dynamic_rows = false\npaged_attention = false\ncompile_s = 5\n")
    both = ["--devices", "NPU:1,CPU:0", "--device-map", f"NPU:1=SIM:{npu}"]
    plain = motley("complete", model, *PROMPT, "--json", "--devices", "CPU:0", environment=cache)
    mixed = motley("complete", model, *PROMPT, "--json", *both, "--use-all-devices", environment=cache)
    assert text_of(mixed) == text_of(plain)
    alone = ["--devices", "NPU:1", "--device-map", f"NPU:1=SIM:{npu}"]
    done = motley("complete", model, *PROMPT, *alone, environment=cache)
    assert done.returncode == 1 and "NPU:1 cannot attend" in done.stderr.splitlines()[-1], done.stderr


def test_plan_names_what_is_simulated(model, cache):
    planned = motley("plan", model, *MAP, "--json", environment=cache)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["simulated"] == ["GPU:0"]
    picture = motley("plan", model, *MAP, "--use-all-devices", environment=cache)
    line = next(line for line in picture.stdout.splitlines() if line.startswith("GPU:0") and "of weights" in line)
    assert line.endswith(", SIMULATED")


def test_a_plan_with_mapped_names_is_read_again(model, cache, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(motley("plan", model, *MAP, "--use-all-devices", "--json", environment=cache).stdout)
    assert text_of(motley("complete", model, *PROMPT, "--json", *MAP, "--plan", file, environment=cache))


def test_devices_shows_mapped_ones_beside_their_own_names(cache):
    listing = json.loads(motley("devices", "--json", "--device-map", "GPU:7=SIM:gpu-like", environment=cache).stdout)
    names = {d["name"]: d for d in listing["devices"]}
    assert names["GPU:7"]["simulated"] and names["GPU:7"]["kind"] == "gpu" and "SIM:gpu-like" in names
    text = motley("devices", "--device-map", "GPU:7=SIM:gpu-like", environment=cache).stdout
    assert any(line.startswith("GPU:7 ") and line.endswith(", SIMULATED") for line in text.splitlines())


def test_server_tells_which_are_simulated_and_takes_a_lost_one_back(start, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('devices = "GPU:0,CPU:0"\ndevice-map = "GPU:0=SIM:gpu-like"\nuse-all-devices = true\n')
    server = start("--config", file, "--isolate")
    devices = {d["name"]: d for d in server.get("/v1/devices").json()["data"]}
    assert devices["GPU:0"]["simulated"] is True and devices["CPU:0"]["simulated"] is False
    assert devices["GPU:0"]["state"] == "serving"
    assert 'device="GPU:0",simulated="true"' in server.get("/metrics").body.decode()
    assert "GPU:0 SIMULATED" in server.log.read_text()
    again = server.post("/v1/devices", {"add": "gpu:0"})
    assert again.status == 409 and "GPU:0 is in use already" in again.error()["message"], again.body


def test_refusals_say_what_to_do(model, cache):
    def refused(devices, mapped, says):
        refuse("complete", model, *PROMPT, "--devices", devices, "--device-map", mapped, environment=cache, says=says)

    refused("GPU:0", "GPU:0", ["NAME=SIM:PRESET", "GPU:0=SIM:gpu-like"])
    refused("GPU:0", "GPU:0=CPU:0", ["GPU:0", "only a simulated device can stand for another"])
    refused("GPU:0", "GPU:0=SIM:nothing", ["GPU:0", "nothing", "SIM:gpu-like"])
    refused("GPU:0", "GPU:0=SIM:gpu-like,GPU:0=SIM:igpu-like", "GPU:0 is given twice")
    refused("CPU:0", "CPU:0=SIM:gpu-like", "which would be hidden")
    refused("CPU:0", "GPU:0=SIM:gpu-like", "GPU:0 is not listed in --devices")
    refused("GPU:0", "NPU:0=SIM:gpu-like", "kind GPU")
    refuse("devices", "--device-map", "GPU:0=SIM:nothing", environment=cache, says="nothing")
