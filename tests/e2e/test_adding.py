"""Devices that are added while requests run, with POST /v1/devices."""
import asyncio
import os
import signal
from pathlib import Path

import pytest

from support import Server, motley, wait_until
from test_loss import assert_same, tell

pytestmark = pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs cores 0 and 1")
ALONE = ["--devices", "CPU:0/cores=0"]


@pytest.fixture(scope="module")
def undisturbed(server):
    return asyncio.run(tell(server))


def add(server, names):
    return server.post("/v1/devices", {"add": names})


def wait_measured(server):
    """Until the first measuring is over: no change is possible before."""
    wait_until(lambda: add(server, "CPU:0/cores=0").status == 409, 60, "the devices are still being measured")


def states(server):
    return {device["name"]: device["state"] for device in server.get("/v1/devices").json()["data"]}


def test_a_device_is_added_lost_and_added_again_under_64_streams(start, undisturbed):
    server = start("--isolate", "--no-enable-prefix-caching", *ALONE)
    answers, victims = [], []

    def change():
        answers.append(add(server, "cpu:0/cores=1"))
        victims.append(server.workers()[-1])
        os.kill(victims[0], signal.SIGKILL)
        answers.append(add(server, ["CPU:0/cores=1"]))

    tasks = []

    def on_tokens(count):
        if count > 0 and not tasks:
            tasks.append(asyncio.get_running_loop().create_task(asyncio.to_thread(change)))

    async def both():
        told = await tell(server, on_tokens)
        await asyncio.gather(*tasks)
        return told

    assert_same(asyncio.run(both()), undisturbed)
    for answer in answers:
        assert answer.status == 200, answer.body
        assert answer.json()["added"] == ["CPU:0/cores=1"]
    after = states(server)  # which of them the plan takes, it decides by what it measured
    assert set(after) == {"CPU:0/cores=0", "CPU:0/cores=1"} and set(after.values()) <= {"serving", "idle"}, after
    assert "serving" in after.values()
    assert len(server.workers()) == 2 and victims[0] not in server.workers()
    before = {device["name"]: device["programs"] for device in server.get("/v1/devices").json()["data"]}
    server.complete(prompt="Once upon a time", max_tokens=4, ignore_eos=True)
    ran = {device["name"]: device for device in server.get("/v1/devices").json()["data"]
           if device["programs"] > before[device["name"]]}
    assert ran and all(after[name] == "serving" and device["rows"] > 0 for name, device in ran.items()), (ran, after)
    assert len(ran) == 1 or all(device["bytes_moved"] > 0 for device in ran.values()), ran  # of replicas one answers
    assert server.metrics()["motley:replacements_total"] == 2
    assert server.stop() == 0


def test_the_only_device_dies_while_another_is_measured(start, undisturbed, tmp_path):
    """It is started anew, no request is lost, and the change that began before is refused."""
    server = start("--isolate", "--no-enable-prefix-caching", *ALONE, environment={"MOTLEY_CACHE_DIR": str(tmp_path)})
    answers, tasks = [], []
    victim = server.workers()[0]

    def kill_while_measured():
        wait_until(lambda: "measuring CPU:0/cores=0" in Path(server.log).read_text(), 60, "nothing is measured")
        os.kill(victim, signal.SIGKILL)

    def on_tokens(count):
        if count > 0 and not tasks:
            for each in (lambda: answers.append(add(server, "CPU:0/cores=1")), kill_while_measured):
                tasks.append(asyncio.get_running_loop().create_task(asyncio.to_thread(each)))

    async def both():
        told = await tell(server, on_tokens)
        await asyncio.gather(*tasks)
        return told

    assert_same(asyncio.run(both()), undisturbed)
    assert answers[0].status == 503, answers[0].body
    assert states(server) == {"CPU:0/cores=0": "serving"} and victim not in server.workers()
    server.complete(prompt="Once upon a time", max_tokens=2, ignore_eos=True)


def test_what_is_measured_first_under_a_request_serves_then(start, tmp_path):
    """With an empty cache, in this process, and with a stream that is told on."""
    server = start(*ALONE, environment={"MOTLEY_CACHE_DIR": str(tmp_path)})
    whole = server.complete(prompt="Count: one, two,", max_tokens=48, ignore_eos=True)["choices"][0]["text"]
    answer = add(server, "CPU:0/cores=1")
    assert answer.status == 200, answer.body
    assert set(states(server)) == {"CPU:0/cores=0", "CPU:0/cores=1"} and "lost" not in states(server).values()
    text = server.complete(prompt="Count: one, two,", max_tokens=48, ignore_eos=True)["choices"][0]["text"]
    assert text[:20] == whole[:20]


def test_what_was_forced_is_kept_or_given_up_and_told(start):
    server = start("--isolate", "--devices", "CPU:0/cores=0,SIM:gpu-like", "--tensor-parallel-size", 2)
    os.kill(server.workers()[1], signal.SIGKILL)
    server.complete(prompt="Once upon a time", max_tokens=4, ignore_eos=True)
    assert states(server) == {"CPU:0/cores=0": "serving", "SIM:gpu-like": "lost"}
    answer = add(server, "sim:gpu-like")  # comes back, and with it what was forced
    assert answer.status == 200, answer.body
    assert answer.json()["note"] == "--tensor-parallel-size 2 is kept"
    assert states(server) == {"CPU:0/cores=0": "serving", "SIM:gpu-like": "serving"}


def test_simulated_devices_of_one_name_get_further_numbers(start):
    server = start("--isolate", "--devices", "CPU:0/cores=0,SIM:gpu-like")
    names = [device["name"] for device in server.get("/v1/devices").json()["data"]]
    assert names == ["CPU:0/cores=0", "SIM:gpu-like"]
    wait_measured(server)
    answer = add(server, "sim:gpu-like")
    assert answer.status == 200, answer.body
    assert answer.json()["added"] == ["SIM:gpu-like/1"]
    assert add(server, "SIM:gpu-like/1").status == 409
    answer = add(server, "SIM:gpu-like/0")
    assert answer.status == 409 and "as SIM:gpu-like" in answer.error()["message"]
    assert list(states(server)) == ["CPU:0/cores=0", "SIM:gpu-like", "SIM:gpu-like/1"]


@pytest.mark.parametrize("names, status, says", [
    ("CPU:0/cores=0", 409, "CPU:0/cores=0 is in use already"),
    ("CPU:0", 400, "devices CPU:0/cores=0 and CPU:0 share cores"),
    (["CPU:0/cores=1", "cpu:0/cores=1"], 400, "CPU:0/cores=1 is listed twice"),
    ("GPU:7", 404, "GPU:7 is not there; this machine has CPU:0"),
    ("CPU:0/cores=1000", 400, "core 1000 is not allowed"),
    ("SIM:/no/such.toml", 404, "cannot be read"),
    ([], 400, "add must be"), (5, 400, "add must be"), ([5], 400, "as strings"), (None, 400, "add is missing")])
def test_what_cannot_be_added_is_refused_and_serving_goes_on(alone, names, status, says):
    answer = add(alone, names)
    assert answer.status == status, answer.body
    assert says in answer.error()["message"]
    assert states(alone) == {"CPU:0/cores=0": "serving"}
    assert len(alone.workers()) == 1
    alone.complete(prompt="Once upon a time", max_tokens=2, ignore_eos=True)


DEVICE = """memory_bytes = {memory}
bandwidth_gb_s = 40
gflops = {{f32 = 50}}
"""


def test_a_device_that_fails_while_it_is_measured_is_refused(alone, tmp_path):
    file = tmp_path / "dies.toml"
    file.write_text(DEVICE.format(memory=1 << 30) + '[[fault]]\nat_program = 3\nwhat = "death"\n')
    answer = add(alone, f"SIM:{file}")
    assert answer.status == 503, answer.body
    assert "dies" in answer.error()["message"]
    assert states(alone) == {"CPU:0/cores=0": "serving"} and len(alone.workers()) == 1
    alone.complete(prompt="Once upon a time", max_tokens=2, ignore_eos=True)


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    with Server(model, folder / "log", "--isolate", *ALONE, "--api-key", "secret") as server:
        plain = server.request
        server.request = lambda method, path, body=None, headers=None: plain(
            method, path, body, {"Authorization": "Bearer secret", **(headers or {})})
        yield server
        assert server.stop() == 0


def test_the_route_is_guarded(alone):
    wrong = {"Authorization": "Bearer wrong"}
    assert alone.get("/v1/devices", wrong).status == 401
    assert alone.post("/v1/devices", {"add": "CPU:0/cores=1"}, wrong).status == 401
    assert alone.request("PUT", "/v1/devices").headers["Allow"] == "GET, HEAD, POST, OPTIONS"
    assert len(alone.workers()) == 1


def test_serve_help_names_it():
    assert "/v1/devices" in motley("serve", "--help").stdout
