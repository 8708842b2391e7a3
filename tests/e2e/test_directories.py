"""Models in Hugging Face layout, through the whole program. Their numbers are held against transformers elsewhere."""
import json
import shutil
import struct
import subprocess

import pytest

from hf_folder import write_hf_folder
from support import ROOT, Server, motley


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny llama"
    write_hf_folder(folder)
    return folder


def test_a_template_that_cannot_be_read_is_told_to_clients(directory, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(directory, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": "{% block b %}in{% endblock %}"}))
    with Server(folder, tmp_path / "log") as server:
        answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        assert server.stop() == 0
    assert answer.status == 400
    assert "the model's chat template: " in answer.json()["error"]["message"]


def test_a_directory_completes(directory):
    done = motley("complete", directory, "--prompt", "héllo", "--max-tokens", "8", "--ignore-eos", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["prompt_token_ids"] == list("héllo".encode())
    assert len(answer["token_ids"]) == 8
    again = motley("complete", directory, "--prompt", "héllo", "--max-tokens", "8", "--ignore-eos", "--json")
    assert json.loads(again.stdout)["token_ids"] == answer["token_ids"]


def test_a_directory_serves_chat(directory, tmp_path):
    with Server(directory, tmp_path / "log") as server:
        answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3})
        assert server.stop() == 0
    assert answer.status == 200, answer.body
    assert answer.json()["usage"]["prompt_tokens"] == 3


@pytest.fixture
def advised(directory, tmp_path):
    """The folder with this advice of its makers."""
    def make(advice):
        folder = tmp_path / "advised"
        shutil.copytree(directory, folder)
        (folder / "generation_config.json").write_text(json.dumps(advice))
        return folder
    return make


def token_ids(server, **fields):
    answer = server.post("/v1/completions", {"prompt": "hello", "logprobs": 0, "ignore_eos": True, **fields})
    assert answer.status == 200, answer.body
    return answer.json()["choices"][0]["logprobs"]["tokens"]


def test_requests_sample_as_the_makers_advise(advised, tmp_path):
    folder = advised({"temperature": 0.0, "repetition_penalty": 1.5, "max_new_tokens": 12, "do_sample": True})
    with Server(folder, tmp_path / "log") as server:
        greedy = token_ids(server, temperature=0, repetition_penalty=1.5, max_tokens=12)
        assert len(greedy) == 12
        assert token_ids(server) == token_ids(server, max_tokens=100, temperature=None) == greedy
        assert token_ids(server, temperature=2, seed=1, max_tokens=8) != greedy[:8]
        assert len(token_ids(server, max_tokens=3)) == 3
        assert server.stop() == 0
    assert "temperature 0, repetition_penalty 1.5, max_tokens 12" in (tmp_path / "log").read_text()


def test_advice_can_be_left_unread(advised, tmp_path):
    folder = advised({"temperature": "hot", "max_new_tokens": 2})
    done = motley("serve", folder, "--port", "0")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "generation_config.json" in done.stderr and "--generation-config vllm" in done.stderr
    with Server(folder, tmp_path / "log", "--generation-config", "vllm") as server:
        assert len(token_ids(server)) == 16
        assert server.stop() == 0


def test_a_directory_is_inspected(directory):
    done = motley("inspect", directory, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["architecture"] == "llama"
    assert "Hugging Face" in report["format"]
    assert "runs" in motley("inspect", directory).stdout


def test_damaged_directories_are_refused(directory, tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        copy = tmp_path / name.replace(".", "-")
        copy.mkdir()
        for file in directory.iterdir():
            data = file.read_bytes()
            (copy / file.name).write_bytes(data[:len(data) // 2] if file.name == name else data)
        done = motley("complete", copy, "--prompt", "x")
        assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert name in done.stderr


def e4m3(code):
    exponent, fraction = code >> 3 & 15, code & 7
    value = (8 + fraction) * 2.0**(exponent - 10) if exponent else fraction * 2.0**-9
    return -value if code & 128 else value


def bf16(value):
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return struct.pack("<H", bits + 0x7FFF + (bits >> 16 & 1) >> 16)


def write_in_bf16(folder, to):
    """The folder with each FP8 matrix, whose scales are one a row and all equal, as the BF16 numbers nearest to it."""
    shutil.copytree(folder, to)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (to / "config.json").write_text(json.dumps(config))
    data = (folder / "model.safetensors").read_bytes()
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    tensors = json.loads(data[8:begin])
    bytes_of = lambda name: data[begin + tensors[name]["data_offsets"][0]:begin + tensors[name]["data_offsets"][1]]  # noqa: E731
    header, values = {}, bytearray()
    for name, tensor in tensors.items():
        if name.endswith("_scale"):
            continue
        made = bytes_of(name)
        if tensor["dtype"] == "F8_E4M3":
            scales = bytes_of(name + "_scale")
            scale = struct.unpack("<f", scales[:4])[0]
            assert scales == scales[:4] * tensor["shape"][0]
            table = [bf16(e4m3(code) * scale) for code in range(256)]
            made = b"".join(map(table.__getitem__, made))
        header[name] = {"dtype": "BF16", "shape": tensor["shape"], "data_offsets": [len(values), len(values) + len(made)]}
        values += made
    text = json.dumps(header).encode()
    (to / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + values)


def test_fp8_is_read_as_the_numbers_it_stands_for(tmp_path):
    folder, plain = tmp_path / "fp8", tmp_path / "bf16"
    subprocess.run([ROOT / "tools/make_fp8_model", folder, "--hidden", "256", "--ffn", "512", "--layers", "4", "--heads", "4",
                    "--kv-heads", "2", "--vocabulary", "4000"], check=True)
    write_in_bf16(folder, plain)
    assert {one["type"] for one in json.loads(motley("inspect", folder, "--json").stdout)["weights"]} == {"F8_E4M3", "BF16"}
    ask = ["--prompt", "héllo", "--max-tokens", "32", "--ignore-eos", "--json"]
    answers = [json.loads(motley("complete", each, *ask).stdout)["token_ids"] for each in (folder, plain)]
    assert answers[0] == answers[1] and len(set(answers[0])) > 3
    # What the plan counts on is what the weights take: a body that doubles, and a vocabulary that does not.
    planned = [json.loads(motley("plan", each, "--json").stdout)["stages"][0]["shards"][0]["weight_bytes"] for each in (folder, plain)]
    assert planned[0] == pytest.approx(planned[1], rel=0.02)
    eight = motley("complete", folder, "--quality", "balanced", *ask)
    assert eight.returncode == 0, eight.stderr
