"""The commands that end by themselves."""
import json
import os
import re
import shutil
import signal
import struct
import subprocess

import pytest

from support import ANSWER_SECONDS_MAX, MOTLEY, PLUGINS, motley, refuse

FRANCE = "The capital of France is"


def run(*arguments, **options):
    done = motley(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def complete_json(model, *arguments, **options):
    out = run("complete", model, "--json", *arguments, **options)
    assert out.count("\n") == 1 and out.endswith("\n")
    return json.loads(out)


def test_complete_prints_the_text_alone(model):
    out = run("complete", model, "--prompt", FRANCE, "--max-tokens", 8)
    assert "Paris" in out and FRANCE not in out


def test_complete_json_has_the_promised_fields(model):
    answer = complete_json(model, "--prompt", FRANCE, "--max-tokens", 8)
    assert set(answer) == {"prompt_token_ids", "token_ids", "text", "finish_reason", "logprobs", "load_s", "prefill_s",
                           "decode_s", "devices"}
    assert len(answer["token_ids"]) == 8 and answer["finish_reason"] == "length"
    assert answer["prompt_token_ids"] and "Paris" in answer["text"]
    assert answer["logprobs"] is None
    assert answer["load_s"] > 0 and answer["prefill_s"] > 0 and answer["decode_s"] > 0
    [device] = answer["devices"]
    assert set(device) == {"name", "programs", "rows", "bytes_moved", "busy_s"}
    assert device["name"] == "CPU:0" and device["rows"] > 0 and device["bytes_moved"] == 0


def test_complete_json_logprobs(model):
    answer = complete_json(model, "--prompt", FRANCE, "--max-tokens", 4, "--logprobs", 3)
    assert [e["id"] for e in answer["logprobs"]] == answer["token_ids"]
    for entry in answer["logprobs"]:
        assert len(entry["top"]) == 3
        assert entry["top"][0] == [entry["id"], entry["logprob"]]
        values = [value for _, value in entry["top"]]
        assert values == sorted(values, reverse=True) and values[0] <= 0


def test_complete_end_token_stands_in_the_ids_and_not_in_the_text(model):
    prompt = "<|im_start|>user\nSay only: ok<|im_end|>\n<|im_start|>assistant\n"
    answer = complete_json(model, "--prompt", prompt, "--max-tokens", 200)
    assert answer["finish_reason"] == "stop"
    assert "<|im_end|>" not in answer["text"]
    on = complete_json(model, "--prompt", prompt, "--max-tokens", len(answer["token_ids"]) + 4, "--ignore-eos")
    assert on["finish_reason"] == "length"
    assert on["token_ids"][:len(answer["token_ids"])] == answer["token_ids"]


def test_complete_stop_and_prompt_file_and_stdin(model, tmp_path):
    whole = run("complete", model, "--prompt", FRANCE, "--max-tokens", 16).rstrip("\n")
    stop = whole[5:9]
    assert run("complete", model, "--prompt", FRANCE, "--max-tokens", 16, "--stop", stop).rstrip("\n") == \
        whole[:whole.index(stop)]
    file = tmp_path / "prompt.txt"
    file.write_text(FRANCE)
    assert run("complete", model, "--prompt-file", file, "--max-tokens", 16).rstrip("\n") == whole
    assert run("complete", model, "--prompt-file", "-", "--max-tokens", 16, input=FRANCE).rstrip("\n") == whole


def test_complete_seed_repeats_a_sampled_text(model):
    options = ("--prompt", FRANCE, "--max-tokens", 12, "--temperature", 1.2, "--top-p", 0.95, "--top-k", 50)
    one = complete_json(model, *options, "--seed", 7)["token_ids"]
    assert complete_json(model, *options, "--seed", 7)["token_ids"] == one
    assert any(complete_json(model, *options, "--seed", seed)["token_ids"] != one for seed in (8, 9))


def test_complete_agrees_with_the_server(model, server):
    text = run("complete", model, "--prompt", FRANCE, "--max-tokens", 16).rstrip("\n")
    assert server.complete(prompt=FRANCE, max_tokens=16)["choices"][0]["text"].rstrip("\n") == text


@pytest.mark.parametrize("prompt", [
    FRANCE, "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"])
def test_complete_on_the_reference_agrees_on_the_first_words(model, prompt):
    shipped = complete_json(model, "--prompt", prompt, "--max-tokens", 4)["token_ids"]
    assert complete_json(model, "--prompt", prompt, "--max-tokens", 4, "--devices", "REF:0")["token_ids"] == shipped


@pytest.mark.parametrize("arguments, says", [
    ([], "give one of --prompt and --prompt-file"),
    (["--prompt", ""], "the prompt is empty"),
    (["--prompt", "a", "--prompt-file", "b"], "give one of --prompt and --prompt-file"),
    (["--prompt-file", "/nonexistent"], "/nonexistent"),
    (["--prompt", "a", "--temperature", "-1"], "temperature must be non-negative, got -1"),
    (["--prompt", "a", "--temperature", "warm"], "--temperature: warm is not a finite number"),
    (["--prompt", "a", "--temperature", "nan"], "--temperature: nan is not a finite number"),
    (["--prompt", "a", "--logprobs", "100"], "--logprobs: 100 is not a whole number from 0 to 20"),
    (["--prompt", "a", "--max-tokens", "x"], "--max-tokens: x is not a whole number from 0 to 4294967295"),
    (["--prompt", "a", "--max-tokens", "0"], "max_tokens must be at least 1, got 0"),
    (["--prompt", "a", "--max-tokens", "100000"], "--max-tokens asks for 100000: lower either"),
    (["--prompt", "a", "--max-tokens", "32", "--max-model-len", "32"], "the context is 32 tokens; the prompt has 1"),
    (["--prompt", "a", "--top-p", "2"], "top_p must be in (0, 1], got 2"),
    (["--prompt", "a", "--seed", "-1"], "--seed: -1 is not a whole number from 0 to"),
    (["--prompt", "a", "--stop", ""], "--stop: must not be empty"),
    (["--prompt", "a", "--stop", "\udcff"], "--stop: must be valid UTF-8"),
    (["--prompt", "a\udcff b"], "--prompt: not valid UTF-8 at byte 1, in line 1"),
    (["--prompt", "\udcff\udcfe"], "--prompt: not valid UTF-8 at byte 0, in line 1"),
])
def test_complete_refuses_what_cannot_be(model, arguments, says):
    refuse("complete", model, *arguments, says=says)


def test_complete_default_answer_gives_way_to_the_context(model):
    answer = complete_json(model, "--prompt", FRANCE, "--max-model-len", 32, "--ignore-eos")
    assert len(answer["prompt_token_ids"]) + len(answer["token_ids"]) == 32


def test_complete_reads_numbers_as_decimal(model):
    assert len(complete_json(model, "--prompt", FRANCE, "--max-tokens", "010", "--ignore-eos")["token_ids"]) == 10


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-"])
@pytest.mark.parametrize("command", ["complete", "complete --json", "tokenize", "devices", "devices --json", "help",
                                     "--version"])
def test_output_that_cannot_be_written_is_an_error(model, command, redirect):
    name, *options = command.split()
    if name in ("complete", "tokenize"):
        options += [model, "--prompt", FRANCE]
    refuse(name, *options, redirect=redirect, says="standard output cannot be written")


def test_closed_standard_input_holds_no_prompt(model):
    refuse("tokenize", model, "--prompt-file", "-", redirect="<&-", says="-: cannot be read")


@pytest.mark.parametrize("options", [[], ["--lines"]])
def test_tokenize_refuses_what_is_not_utf8(model, tmp_path, options):
    file = tmp_path / "lines.txt"
    file.write_bytes(b"one\ntwo \xc3\nthree\n")
    refuse("tokenize", model, "--prompt-file", file, *options, says=f"{file}: not valid UTF-8 at byte 8, in line 2")
    refuse("tokenize", model, "--prompt", "a\udcff b", *options, says="--prompt: not valid UTF-8 at byte 1, in line 1")


def test_tokenize_and_lines(model, tmp_path):
    def ids(out):
        return [[int(i) for i in re.findall(r"\d+", line)] for line in out.splitlines()]
    lines = ["Hello world", "", "naïve 日本語", "12345"]
    each = [ids(run("tokenize", model, "--prompt", line))[0] if line else [] for line in lines]
    file = tmp_path / "lines.txt"
    file.write_text("".join(line + "\n" for line in lines))
    assert ids(run("tokenize", model, "--prompt-file", file, "--lines")) == each
    assert len(each[3]) == 5  # one token a digit


def test_devices_lists_the_cpu(model):
    found = json.loads(run("devices", "--json"))
    assert any(d["name"] == "CPU:0" and d["kind"] == "cpu" for d in found["devices"])
    assert isinstance(found["absent"], list)
    assert "CPU:0" in run("devices")


def test_devices_without_the_cpu_plugin_says_so(model, tmp_path):
    shutil.copytree(PLUGINS, tmp_path / "plugins")
    (tmp_path / "plugins/cpu.so").unlink()
    environment = {"MOTLEY_PLUGIN_DIR": str(tmp_path / "plugins")}
    found = json.loads(run("devices", "--json", environment=environment))
    assert not any(d["name"].startswith("CPU:") for d in found["devices"])
    reasons = [a["reason"] for a in found["absent"] if a["kind"] == "cpu"]
    assert reasons and all(reasons)
    assert "absent" in run("devices", environment=environment)
    refuse("complete", model, "--prompt", "Hi", environment=environment, says="CPU:0")


def test_devices_survives_a_plugin_that_is_none(tmp_path):
    shutil.copytree(PLUGINS, tmp_path / "plugins")
    (tmp_path / "plugins/broken.so").write_bytes(b"\x7fELF" + bytes(100))
    found = json.loads(run("devices", "--json", environment={"MOTLEY_PLUGIN_DIR": str(tmp_path / "plugins")}))
    assert any(d["name"] == "CPU:0" for d in found["devices"])
    assert any("broken" in a["reason"] or "broken" in a["kind"] for a in found["absent"])


def test_inspect_says_what_the_file_holds(model):
    told = json.loads(run("inspect", model, "--json"))
    assert told["format"].startswith("GGUF") and told["file_bytes"] == os.path.getsize(model)
    assert told["architecture"] == "llama"
    sizes = {"layers": 30, "hidden": 576, "heads": 9, "kv_heads": 3, "head_dim": 64, "ffn": 1536, "vocabulary": 49152}
    assert sizes.items() <= told["sizes"].items()
    assert told["parameters"] == sum(w["elements"] for w in told["weights"])
    assert 134e6 < told["parameters"] < 164e6
    assert sum(w["bytes"] for w in told["weights"]) < told["file_bytes"]
    assert all(w["built"] for w in told["weights"]) and "Q4_1" in [w["type"] for w in told["weights"]]
    tokenizer = told["tokenizer"]
    assert tokenizer["model"] == "gpt2" and tokenizer["tokens"] == 49152
    assert tokenizer["special_tokens"]["eos"]["text"] == "<|im_end|>"
    assert told["chat_template"]["present"] and "<|im_start|>" in told["chat_template"]["source"]
    assert told["runs"] == {part: {"runs": True, "reason": None} for part in ("model", "tokenizer", "chat")}


def test_inspect_table_names_everything(model):
    out = run("inspect", model)
    for word in ("architecture", "layers", "parameters", "Q4_1", "tokenizer", "<|im_end|>", "chat template", "run model"):
        assert word in out, word
    assert "no:" not in out


def tiny_gguf(path, keys, tensors=()):
    """A GGUF file: keys as (name, type id, packed value), tensors as (name, dims, type id, bytes)."""
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for name, kind, value in keys:
        head += text(name) + struct.pack("<I", kind) + value
    data = b""
    for name, dims, kind, size in tensors:
        head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data))
        data += bytes((size + 31) // 32 * 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def string(value):
    return struct.pack("<Q", len(value)) + value.encode()


def test_inspect_explains_a_sound_model_that_does_not_run(tmp_path):
    file = tiny_gguf(tmp_path / "other.gguf", [("general.architecture", 8, string("\x1b[31mrwkv")),
                                              ("\x1b[31mrwkv.block_count", 4, struct.pack("<I", 3))],
                     [("a", (256, 2), 29, 112), ("b", (4,), 0, 16)])
    told = json.loads(run("inspect", file, "--json"))
    assert told["sizes"] == {"layers": 3} and told["parameters"] == 516
    assert [(w["type"], w["tensors"], w["bytes"], w["built"]) for w in told["weights"]] == \
        [("IQ1_M", 1, 112, False), ("F32", 1, 16, True)]
    assert told["runs"]["model"]["runs"] is False and "rwkv" in told["runs"]["model"]["reason"]
    assert told["runs"]["tokenizer"]["runs"] is None and told["runs"]["chat"]["runs"] is False
    refused = motley("complete", file, "--prompt", "x").stderr
    assert refused == f"motley: {told['runs']['model']['reason']}\n"  # the reason is the one that loading gives
    table = run("inspect", file)
    assert "not built" in table and "\x1b" not in table


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "folder", "missing", "keys"])
def test_inspect_refuses_damaged_files(model, tmp_path, damage):
    file = tmp_path / "model.gguf"
    if damage == "keys":  # whole, but without what a model of its architecture must say
        tiny_gguf(file, [("general.architecture", 8, string("llama"))])
    elif damage == "folder":
        file.mkdir()
    elif damage != "missing":
        whole = model.read_bytes()
        file.write_bytes({"empty": b"", "text": b"no model", "cut": whole[:len(whole) // 2]}[damage])
    done = motley("inspect", file)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "model.gguf" in done.stderr


def test_conformance_passes_the_cpu_plugin():
    out = run("conformance", PLUGINS / "cpu.so", seconds_max=300)
    assert out.strip()


def test_conformance_judges_one_device_and_counts_what_is_skipped():
    out = run("conformance", PLUGINS / "sim.so", "--device", "sim:Intel-NPU-like", seconds_max=120).splitlines()
    assert out[0] == "device SIM:intel-npu-like" and "skipped paged attention" in out
    assert re.fullmatch(r"[1-9]\d* passed, 0 failed, [1-9]\d* skipped", out[-1])
    refuse("conformance", PLUGINS / "sim.so", "--device", "SIM:nothing", says=["SIM:nothing", "SIM:intel-npu-like"])
    refuse("conformance", PLUGINS / "cpu.so", "--device", "GPU:0", says=["GPU:0", "the plugin has CPU:0"])


def test_conformance_refuses_what_is_no_plugin(tmp_path):
    file = tmp_path / "none.so"
    file.write_bytes(b"no")
    refuse("conformance", file, says="none.so")


def test_bench_latency_and_throughput(model, tmp_path):
    file = tmp_path / "latency.json"
    run("bench", "latency", model, "--input-len", 8, "--output-len", 4, "--batch-size", 2, "--num-iters", 2,
        "--num-iters-warmup", 1, "--output-json", file)
    latency = json.loads(file.read_text())
    assert latency["avg_latency"] > 0 and len(latency["latencies"]) == 2
    out = run("bench", "throughput", model, "--input-len", 8, "--output-len", 4, "--num-prompts", 4)
    assert re.search(r"Throughput: [\d.]+ requests/s, [\d.]+ total tokens/s, [\d.]+ output tokens/s", out)


def test_version_and_help():
    assert re.search(r"\d+\.\d+\.\d+", run("--version"))
    for command in ("serve", "complete", "chat", "tokenize", "inspect", "devices", "bench", "conformance"):
        assert command in run("--help")
        assert run("help", command).strip()
        assert run(*command.split(), "--help").strip()
        assert re.search(rf"^Usage: motley {command}\b", run("help", command), re.M)
        assert run("help", command) == run(command, "--help")
    assert run("help") == run("--help")
    assert "Usage: motley bench latency" in run("help", "bench", "latency")
    text = run("help", "serve")
    for option in ("host", "port", "api-key", "served-model-name", "max-model-len", "max-num-seqs",
                   "max-num-batched-tokens", "block-size", "kv-cache-dtype", "kv-cache-memory-bytes",
                   "enable-prefix-caching", "enable-chunked-prefill", "scheduling-policy", "chat-template", "seed",
                   "threads", "deterministic", "devices", "config", "shutdown-timeout"):
        assert f"--{option}" in text, option


def test_chat_streams_and_survives_an_interrupt(model):
    chat = subprocess.Popen([MOTLEY, "chat", model, "--temperature", "0"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        chat.stdin.write(b"Write a very long story about the sea, with many chapters.\n")
        chat.stdin.flush()
        assert os.read(chat.stdout.fileno(), 1)  # the answer has begun
        chat.send_signal(signal.SIGINT)
        chat.stdin.write(b"What is the capital of France? Answer in one word.\n")
        chat.stdin.close()
        rest = chat.stdout.read()
        assert chat.wait(timeout=ANSWER_SECONDS_MAX) == 0
        assert b"\n" in rest and b"Paris" in rest.split(b"\n", 1)[1]
    finally:
        chat.kill()
        chat.wait()
