"""--quality: devices hold float weights in formats of fewer bits, and say what that takes from them."""
import json
import re

import pytest

from hf_folder import write_hf_folder
from support import Server, motley, refuse

PAIR = ["--devices", "NPU:1,CPU:0", "--device-map", "NPU:1=SIM:intel-npu-like"]
ERRORS = {"exact": (0, 0), "balanced": (0.003, 0.01), "fast": (0.05, 0.15)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality") / "tiny"
    write_hf_folder(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tiny):
    return {"MOTLEY_CACHE_DIR": str(tiny.parent / "cache")}


@pytest.mark.parametrize("quality", ERRORS)
def test_the_server_says_what_it_takes_from_the_weights(quality, tiny, tmp_path):
    with Server(tiny, tmp_path / "log", "--devices", "CPU:0", "--quality", quality) as server:
        assert server.complete(prompt="a b c", max_tokens=8, ignore_eos=True)["usage"]["completion_tokens"] == 8
        error = server.metrics()["motley:device_weight_error"]
    least, most = ERRORS[quality]
    assert least <= error <= most


def test_each_device_has_what_it_takes_of_the_formats(tiny, cache):
    def plan(quality):
        done = motley("plan", tiny, *PAIR, "--use-all-devices", "--quality", quality, "--json", environment=cache)
        assert done.returncode == 0, done.stderr
        shards = [shard for stage in json.loads(done.stdout)["stages"] for shard in stage["shards"]]
        return {shard["device"]: shard["format"] for shard in shards}

    assert plan("exact")["CPU:0"] == "as in the file"
    for quality, format in {"balanced": "Q8_0", "fast": "Q4_0"}.items():
        formats = plan(quality)
        assert re.fullmatch(format + r", [0-9.]+ % off", formats["CPU:0"]), formats
        assert not formats["NPU:1"].startswith("Q"), formats  # it holds F16 alone


def test_weights_take_less_memory(tiny, cache):
    def weights(quality):
        done = motley("plan", tiny, "--devices", "CPU:0", "--quality", quality, "--json", environment=cache)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["stages"][0]["shards"][0]["weight_bytes"]

    assert weights("fast") < weights("balanced") < weights("exact")


def test_other_words_are_refused(tiny):
    refuse("complete", tiny, "--prompt", "a", "--quality", "best", says="--quality")
