"""`motley serve --adapt`: one of two devices becomes five times as slow in mid-load, and the plan follows."""
import asyncio
import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support import ROOT, Server, motley
from test_loss import assert_same, tell

pytestmark = pytest.mark.alone

PROMPTS = tuple(f"a b c {chr(100 + i)} e f" for i in range(8))
SLOW_AFTER_S = 12  # of a device's opening: later than measuring both takes, and than the first windows
LOAD = ["--max-num-batched-tokens", 32, "--max-num-seqs", 8]
DEVICE = """kind = "gpu"
memory_bytes = 8388608
bandwidth_gb_s = 0.12
gflops = {f32 = 0.36}
half_rows = 2
dispatch_us = 20
"""
SLOW = f"""[[fault]]
what = "slow"
at_ns = {SLOW_AFTER_S * 10**9}
factor = 5
"""
PACKS_SLOWLY = f"""[[fault]]
what = "pack"
at_ns = {SLOW_AFTER_S * 10**9}
for_ms = 4000
"""
MOVED = re.compile(r"info moved to (.*) in (\d+) ms")


class Machine:
    """A model and two devices that are measured already; the second one will be slow."""

    def __init__(self, model, folder, steady=DEVICE):
        self.model, self.folder = model, folder
        self.environment = {"MOTLEY_CACHE_DIR": str(folder / "cache")}
        files = [folder / name for name in ("steady.toml", "fades.toml")]
        files[0].write_text(steady)
        files[1].write_text(DEVICE + SLOW)  # what was measured is known by what the file says
        self.names = [f"SIM:{file}" for file in files]
        self.options = ["--devices", ",".join(self.names), *LOAD]
        for isolated in ([], ["--isolate"]):
            began = time.monotonic()
            done = motley("plan", model, *self.options, *isolated, environment=self.environment)
            assert done.returncode == 0, done.stderr
            assert time.monotonic() - began < SLOW_AFTER_S, "measured while it faded"

    def serve(self, log, *options):
        return Server(self.model, log, *self.options, "--adapt", "--no-enable-prefix-caching", *options,
                      environment=self.environment)


@pytest.fixture(scope="module")
def machine(tiny, tmp_path_factory):
    return Machine(tiny, tmp_path_factory.mktemp("adapting"))


@pytest.fixture(scope="module")
def undisturbed(machine):
    with Server(machine.model, machine.folder / "alone.log", "--devices", machine.names[0], *LOAD,
                environment=machine.environment) as server:
        return asyncio.run(tell(server, prompts=PROMPTS))


def tell_until(server, undisturbed, there):
    """Round after round of all streams, each as without any change, until it is there."""
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline, Path(server.log).read_text()
        assert_same(asyncio.run(tell(server, prompts=PROMPTS)), undisturbed)
    assert_same(asyncio.run(tell(server, prompts=PROMPTS)), undisturbed)


@contextlib.contextmanager
def never_idle(server):
    """Two streams more, one after another each, so that somebody runs whenever a plan takes over."""
    over = threading.Event()

    def go_on():
        while not over.is_set():
            server.complete(prompt="a b c d", max_tokens=100, ignore_eos=True)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(go_on) for _ in range(2)]
        try:
            yield
        finally:
            over.set()
    for stream in streams:
        stream.result()


def serving(server):
    return {device["name"] for device in server.get("/v1/devices").json()["data"] if device["state"] == "serving"}


def assert_fades_gets_less(server, machine, undisturbed):
    """Of the rows of a round of all streams a third of what the other computes, or none: it may serve a few streams alone."""
    rows = lambda: {d["name"]: d["rows"] for d in server.get("/v1/devices").json()["data"]}  # noqa: E731
    before = rows()
    assert_same(asyncio.run(tell(server, prompts=PROMPTS)), undisturbed)
    after = rows()
    steady, fades = (after[name] - before[name] for name in machine.names)
    assert 3 * fades <= steady, (before, after)


# Each device has 8 MiB: with little KV they hold what both plans need at once, with 7 MiB of it the first ends before.
@pytest.mark.parametrize("kv_bytes, crowded", [(1 << 20, False), (7 << 20, True)])
def test_a_device_that_fades_gets_less_and_no_request_notices(machine, undisturbed, kv_bytes, crowded, tmp_path):
    trace, picture = tmp_path / "trace.json", tmp_path / "move.svg"
    with machine.serve(tmp_path / "log", "--kv-cache-memory-bytes", kv_bytes, "--trace", trace) as server:
        assert serving(server) == set(machine.names)
        log = lambda: Path(server.log).read_text()  # noqa: E731
        with never_idle(server):
            tell_until(server, undisturbed, lambda: MOVED.search(log()))
        assert ("no room for both plans at once" in log()) == crowded, log()
        assert re.search(r"fades.toml takes (4\.\d\d|5\.[0-4]\d) of its time", log()), log()
        metrics = server.metrics()
        assert metrics["motley:replacements_total"] == 1 and metrics.get("motley:recoveries_total", 0) == 0, log()
        assert server.get("/health").status == 200
        # Heads move from the device that fades to the other one, and their KV with them: nobody is computed again.
        assert metrics["motley:recomputed_tokens_total"] == 0 and metrics["motley:kv_blocks_moved_total"] > 0, log()
        pause_s = metrics["motley:replacement_pause_seconds_sum"]
        print(f"\nADAPTING with {kv_bytes >> 20} MiB of KV: pause {1000 * pause_s:.0f} ms, {MOVED.search(log())[0]}")
        assert_fades_gets_less(server, machine, undisturbed)
        assert pause_s < 2  # the machine is shared; docs/benchmarks.md has what it takes on one that is not
        assert server.stop() == 0
    subprocess.run([ROOT / "tools/trace_picture", trace, picture, "--move"], check=True)
    boxes = [box for box in ElementTree.parse(picture).iter() if box.tag.endswith("rect")]
    drawn = {box.get("fill") for box in boxes} - {"white", "#e0e0e0"}
    assert len(drawn) == 2, drawn  # steps of the plan before, and of the one that took over


def test_what_is_forced_stays_and_shares_follow(machine, undisturbed, tmp_path):
    with machine.serve(tmp_path / "log", "--kv-cache-memory-bytes", 1 << 20, "--tensor-parallel-size", 2) as server:
        log = lambda: Path(server.log).read_text()  # noqa: E731

        def parts():
            """What each device computes of a round of all streams."""
            flops = lambda: {d["name"]: d["own"]["flops"] for d in server.get("/v1/devices").json()["data"]}  # noqa: E731
            before = flops()
            assert_same(asyncio.run(tell(server, prompts=PROMPTS)), undisturbed)
            after = flops()
            return [after[name] - before[name] for name in machine.names]

        steady, fades = parts()
        share = fades / steady
        with never_idle(server):
            tell_until(server, undisturbed, lambda: MOVED.search(log()))
        steady, fades = parts()
        assert 0 < 2 * fades < share * steady, log()
        assert serving(server) == set(machine.names)
        assert server.metrics()["motley:replacements_total"] == 1, log()


def rate_without_the_steady_one(server, undisturbed):
    """Tokens of prompts per second, as predicted for what is left."""
    os.kill(server.workers()[0], signal.SIGKILL)
    assert_same(asyncio.run(tell(server, prompts=PROMPTS)), undisturbed)
    return float(re.findall(r"(\S+) tokens of prompts per second predicted", Path(server.log).read_text())[-1])


def test_what_is_known_of_a_device_counts_when_another_is_lost_and_comes_back(machine, undisturbed, tmp_path):
    with machine.serve(tmp_path / "fresh", "--isolate") as server:
        as_measured = rate_without_the_steady_one(server, undisturbed)
    with machine.serve(tmp_path / "faded", "--isolate") as server:
        tell_until(server, undisturbed, lambda: MOVED.search(Path(server.log).read_text()))
        as_it_is = rate_without_the_steady_one(server, undisturbed)
        assert serving(server) == {machine.names[1]}
        answer = server.post("/v1/devices", {"add": machine.names[0]})  # and so it does when that one comes back
        assert answer.status == 200, answer.body
        assert_fades_gets_less(server, machine, undisturbed)
    assert 4 < as_measured / as_it_is < 5.5


def test_a_server_that_ends_while_it_moves(tiny, tmp_path):
    """It does not wait for a plan that nobody needs any more: the device that takes over, for one stream the second best
    until then, keeps its packer so long that the end comes first."""
    second = DEVICE.replace("bandwidth_gb_s = 0.2", "bandwidth_gb_s = 0.13").replace("f32 = 0.6", "f32 = 0.4")
    machine = Machine(tiny, tmp_path, steady=second + PACKS_SLOWLY)
    one_stream = ["--concurrency", 1, "--prompt-len", 16, "--output-len", 128]
    with machine.serve(tmp_path / "log", *one_stream) as server:
        log = lambda: Path(server.log).read_text()  # noqa: E731

        async def until_seen():
            while "are not as the plan was made for" not in log():
                await tell(server, prompts=PROMPTS[:1])

        asyncio.run(asyncio.wait_for(until_seen(), 60))
        assert server.stop() == 0
        assert "moved to" not in log(), log()
