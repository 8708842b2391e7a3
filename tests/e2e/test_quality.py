"""--quality: devices hold float weights in formats of fewer bits, and say what that takes from them."""
import json
import re
import subprocess

import pytest

from support import BUILD, Server, lanes_of, motley, refuse, shards_of
from test_loss import TIE_LOGPROB

PAIR = ["--devices", "NPU:1,CPU:0", "--device-map", "NPU:1=SIM:intel-npu-like"]
ERRORS = {"exact": (0, 0), "balanced": (0.003, 0.01), "fast": (0.05, 0.15)}


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


# Of weights that are made halves, 8 and 4 bits.
HELD = {"exact": ("F16", 1e-5, 1e-3), "balanced": ("Q8_0", 0.003, 0.01), "fast": ("Q4_0", 0.05, 0.15)}


def planned(model, cache, *quality):
    done = motley("plan", model, *PAIR, "--use-all-devices", *quality, "--json", environment=cache)
    assert done.returncode == 0, done.stderr
    lanes = lanes_of(json.loads(done.stdout))
    return {shard["device"]: shard["format"] for lane in lanes for shard in shards_of(lane)}


@pytest.mark.parametrize("quality", HELD)
def test_each_device_has_what_it_takes_of_the_formats(quality, tiny, cache):
    """The NPU holds F16 and blocks of 8 and 4 bits, and no F32."""
    formats = planned(tiny, cache, "--quality", quality)
    format, least, most = HELD[quality]
    said = re.fullmatch(re.escape(format) + r"(?:, F16)?, ([0-9.e-]+) % off", formats["NPU:1"])
    assert said and 100 * least <= float(said[1]) <= 100 * most, formats
    assert (formats["CPU:0"] == "as in the file") == (quality == "exact"), formats


def test_exact_is_the_default(tiny, cache):
    assert planned(tiny, cache) == planned(tiny, cache, "--quality", "exact")


@pytest.mark.parametrize("quality", HELD)
def test_what_a_device_has_not_becomes_what_it_has(quality, tmp_path):
    """A model that is quantised in a format of the processor alone."""
    model = tmp_path / "quantised.gguf"
    made = subprocess.run([BUILD / "bin/make_model", model, "--layers", "2", "--hidden", "256", "--heads", "4", "--kv-heads",
                           "2", "--head-dim", "64", "--ffn", "512", "--vocab", "512", "--type", "Q4_K"])
    assert made.returncode == 0
    formats = planned(model, {"MOTLEY_CACHE_DIR": str(tmp_path / "cache")}, "--quality", quality)
    format, least, most = HELD[quality]
    said = re.fullmatch(re.escape(format) + r"(?:, F16)?, ([0-9.e-]+) % off", formats["NPU:1"])
    assert said and 100 * least <= float(said[1]) <= 100 * most, formats
    assert formats["CPU:0"] == "as in the file", formats


@pytest.mark.parametrize("quality", HELD)
def test_an_npu_serves_in_its_own_formats(quality, tiny, cache, tmp_path):
    """A quantised NPU says what it holds and what that takes; the text is the processor's own, in the same formats."""
    with Server(tiny, tmp_path / "log", *PAIR, "--use-all-devices", "--quality", quality, environment=cache) as server:
        answer = server.complete(prompt="a b c a b c", max_tokens=8, ignore_eos=True, logprobs=2)["choices"][0]["logprobs"]
        page = server.get("/metrics").body.decode()
        assert all(one["state"] == "serving" for one in server.get("/v1/devices").json()["data"])
    format, least, most = HELD[quality]
    said = re.search(r'^motley:device_weight_error\{.*device="NPU:1",simulated="true",format="([^"]*)"\} (\S+)$', page, re.M)
    assert said and format in said[1].split(",") and least <= float(said[2]) <= most, page
    with Server(tiny, tmp_path / "alone", "--devices", "CPU:0", "--quality", quality, environment=cache) as server:
        alone = server.complete(prompt="a b c a b c", max_tokens=8, ignore_eos=True, logprobs=2)["choices"][0]["logprobs"]
    parted = next((i for i in range(8) if answer["tokens"][i] != alone["tokens"][i]), None)
    if parted is not None:  # what was as good as undecided
        best, second = sorted(alone["top_logprobs"][parted].values(), reverse=True)[:2]
        assert best - second < TIE_LOGPROB, (parted, answer, alone)


def test_weights_take_less_memory(tiny, cache):
    def weights(quality):
        done = motley("plan", tiny, "--devices", "CPU:0", "--quality", quality, "--json", environment=cache)
        assert done.returncode == 0, done.stderr
        [lane] = lanes_of(json.loads(done.stdout))
        return shards_of(lane)[0]["weight_bytes"]

    assert weights("fast") < weights("balanced") < weights("exact")


def test_other_words_are_refused(tiny):
    refuse("complete", tiny, "--prompt", "a", "--quality", "best", says="--quality")
