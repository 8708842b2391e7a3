"""The server as a process: signals, a busy port, options and files that cannot be."""
import json
import os
import shlex
import signal
import struct
from pathlib import Path

import pytest

from support import Server, Stream, free_port, refuse, wait_until

AT_ONCE_SECONDS_MAX = 2  # generations of minutes were running
AFTER_DRAIN_SECONDS_MAX = 10  # the last words, and what the program's own end may take


def draining(server):
    try:
        return server.get("/health").status == 503
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_drains_and_exits_0(start, number):
    server = start()
    stream = Stream(server, prompt="Count:", max_tokens=64, ignore_eos=True)
    events = iter(stream)
    next(events)
    server.signal(number)
    wait_until(lambda: draining(server), 30, "the server does not drain")
    try:
        assert server.post("/v1/completions", {"model": "m", "prompt": "Hi"}).status == 503
    except OSError:
        pass  # it no longer listens
    rest = [e["choices"][0] for e in events if e["choices"]]
    assert rest[-1]["finish_reason"] == "length"  # what ran was finished
    assert server.wait_exit() == 0


def test_shutdown_timeout_ends_what_still_runs(start):
    server = start("--shutdown-timeout", "1")
    stream = Stream(server, prompt="Count:", max_tokens=4000, ignore_eos=True)
    events = iter(stream)
    next(events)
    server.signal(signal.SIGTERM)
    rest = [e["choices"][0] for e in events if e["choices"]]
    assert rest[-1]["finish_reason"] == "abort"  # its client was told
    assert server.wait_exit(1 + AFTER_DRAIN_SECONDS_MAX) == 0


def test_second_sigint_stops_at_once(start):
    server = start("--shutdown-timeout", "100000")
    streams = [Stream(server, prompt="Count:", max_tokens=7000, ignore_eos=True) for _ in range(4)]
    for stream in streams:
        next(iter(stream))
    server.signal(signal.SIGINT)
    wait_until(lambda: draining(server), 30, "the server does not drain")
    assert server.process.poll() is None
    server.signal(signal.SIGINT)
    assert server.wait_exit(AT_ONCE_SECONDS_MAX) == 130


def test_busy_port_is_refused(server, model):
    refuse("serve", model, "--port", server.port, says=str(server.port))


def test_port_is_free_again_after_the_end(start, model, tmp_path):
    server = start()
    port = server.port
    server.complete(prompt="Hi", max_tokens=1)
    server.stop()
    again = start(port=port)
    assert again.stop() == 0


# name: what is given, and what the refusal says
BAD_OPTIONS = {
    "unknown_option": (["--no-such-option"], "--no-such-option; see motley serve --help"),
    "unknown_kv_dtype": (["--kv-cache-dtype", "float5"], "float5"),
    "unknown_policy": (["--scheduling-policy", "best"], "--scheduling-policy: best"),
    "unknown_device": (["--devices", "GPU:7"], "GPU:7"),
    "malformed_device": (["--devices", "::"], "::"),
    "port_outside": (["--port", "70000"], "--port: 70000 is not a whole number from 0 to 65535"),
    "port_text": (["--port", "http"], "--port: http is not a whole number from 0 to 65535"),
    "negative_threads": (["--threads", "-1"], "--threads: -1 is not a whole number from 0 to"),
    "number_beyond_its_type": (["--max-num-seqs", str(1 << 64)], f"--max-num-seqs: {1 << 64} is not a whole number"),
    "block_size_zero": (["--block-size", "0"], "--block-size must be 1 to"),
    "max_num_seqs_zero": (["--max-num-seqs", "0"], "--max-num-seqs must be 1 to"),
    "context_beyond_the_model": (["--max-model-len", "100000000"], "100000000"),
    "context_of_minus_two": (["--max-model-len", "-2"], "--max-model-len: -2 is not a whole number"),
    "kv_pool_of_a_byte": (["--kv-cache-memory-bytes", "1"], "raise --kv-cache-memory-bytes"),
    "kv_pool_beyond_memory": (["--kv-cache-memory-bytes", str(1 << 50)], "lower --kv-cache-memory-bytes"),
    "template_missing": (["--chat-template", "/nonexistent/template.jinja"], "/nonexistent/template.jinja"),
    "template_empty": (["--chat-template", ""], "--chat-template: must not be empty"),
    "config_missing": (["--config", "/nonexistent/config.toml"], "/nonexistent/config.toml"),
    "config_empty": (["--config", ""], "--config: must not be empty"),
    "budget_below_the_sequences": (["--max-num-batched-tokens", "8"], "(8) must be at least --max-num-seqs (128)"),
    "budget_below_the_context_without_chunks": (
        ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8", "--max-num-seqs", "4"], "without chunked prefill"),
    "host_that_is_none": (["--host", "999.1.1.1"], "999.1.1.1"),
    "host_empty": (["--host", ""], "--host: must not be empty"),
    "second_model": (["another.gguf"], "another.gguf"),
    "switch_half_on": (["--deterministic=perhaps"], "perhaps is not true or false"),
    "key_empty": (["--api-key", ""], "--api-key: must be one word"),
    "key_with_a_newline": (["--api-key", "a\nb"], "--api-key: must be one word"),
    "name_empty": (["--served-model-name", ""], "--served-model-name: must not be empty"),
    "name_not_utf8": (["--served-model-name", "a\udcff"], "--served-model-name: must be valid UTF-8"),
    "seed_negative": (["--seed", "-1"], "--seed: -1 is not a whole number from 0 to 18446744073709551615"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_impossible_option_is_refused(model, name):
    options, says = BAD_OPTIONS[name]
    if "--port" not in options:
        options = ["--port", free_port(), *options]
    refuse("serve", model, *options, says=says)


def test_refused_key_is_not_repeated(model):
    assert "opensesame" not in refuse("serve", model, "--api-key", "opensesame now", says="--api-key")


@pytest.mark.parametrize("arguments, says", [
    ([], ["a command is missing", "serve", "complete", "bench"]),
    (["no-such-command"], ["there is no command no-such-command", "motley has the commands", "serve"]),
    (["--no-such-option"], ["there is no option --no-such-option", "motley has the commands"]),
    (["bench"], ["a command is missing", "motley bench has the commands", "latency"]),
    (["bench", "speed"], ["there is no command speed", "motley bench has the commands", "latency"]),
    (["bench", "latency"], ["model", "see motley bench latency --help"]),
    (["serve"], ["model", "see motley serve --help"]),
    (["help", "no-such-command"], ["no such command", "motley help"]),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_command_line_without_a_whole_command_is_refused(arguments, says):
    refuse(*arguments, says=says)


def test_context_of_minus_one_is_what_fits(start):
    server = start("--max-model-len", "-1", "--kv-cache-memory-bytes", 64 << 20)
    least = server.get("/v1/models").json()["data"][0]["max_model_len"]
    assert 0 < least <= 8192


def test_closed_standard_descriptors_stay_unused(start):
    server = start(redirect="<&- >&- 2>&-")
    server.complete(prompt="Hi", max_tokens=1)
    for number in range(3):
        assert os.readlink(f"/proc/{server.process.pid}/fd/{number}") == "/dev/null"
    assert server.stop() == 0


def test_printed_request_can_be_pasted_whatever_the_models_name(model, tmp_path):
    link = tmp_path / "it's \"mine\" & $HOME.gguf"
    link.symlink_to(model)
    with Server(link, tmp_path / "log") as server:
        wait_until(lambda: " try: " in Path(server.log).read_text(), 30, "no request is printed")
        line = Path(server.log).read_text().split(" try: ", 1)[1].splitlines()[0]
        words = shlex.split(line)
        body = json.loads(words[words.index("-d") + 1])
        assert body["model"] == server.model_name() == str(link)
        assert server.post(words[1].split(str(server.port), 1)[1], {**body, "max_tokens": 1}).status == 200


def test_broken_template_is_refused(model, tmp_path):
    template = tmp_path / "broken.jinja"
    template.write_text("{% for x in %}")
    refuse("serve", model, "--port", free_port(), "--chat-template", template, says="broken.jinja")


def test_template_file_replaces_the_models_own(start, tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    server = start("--chat-template", template)
    name = server.model_name()
    chat = server.post("/tokenize", {"model": name, "messages": [{"role": "user", "content": "hello there"}]}).json()
    text = server.post("/tokenize", {"model": name, "prompt": "hello there", "add_special_tokens": False}).json()
    assert chat["tokens"] == text["tokens"]


def test_config_file_gives_options_and_the_command_line_wins(start, tmp_path):
    config = tmp_path / "motley.toml"
    config.write_text('max-model-len = 256\nserved-model-name = "from-file"\n')
    server = start("--config", config)
    model = server.get("/v1/models").json()["data"][0]
    assert (model["id"], model["max_model_len"]) == ("from-file", 256)
    server.stop()
    server = start("--config", config, "--served-model-name", "from-line")
    model = server.get("/v1/models").json()["data"][0]
    assert (model["id"], model["max_model_len"]) == ("from-line", 256)


def test_config_file_can_switch_off(start, tmp_path):
    config = tmp_path / "motley.toml"
    config.write_text("no_enable_prefix_caching = true\nmax-model-len = -1\n")
    server = start("--config", config)
    assert 'enable_prefix_caching="False"' in server.get("/metrics").body.decode()


@pytest.mark.parametrize("text, says", [
    ("no-such-option = 1\n", ":1: there is no option no-such-option; see motley serve --help"),
    ("help = true\n", ":1: there is no option help"),
    ("max-model-len = \n", ":1: "),
    ("\nthreads = \"many\"\n", ":2: threads: many is not a whole number from 0 to"),
    ("max-num-seqs = 1.5\n", ":1: max-num-seqs: 1.5 is not a whole number from 0 to"),
    ("deterministic = \"perhaps\"\n", ":1: deterministic: perhaps is not true or false"),
    ("api-key = [\"one\", \"\"]\n", ":1: api-key: must be one word"),
    ("api-key = []\n", ":1: api-key is an empty list"),
    ("max-num-seqs = 1\nmax_num_seqs = 2\n", ":2: max-num-seqs is given twice"),
    ("config = \"other.toml\"\n", ":1: config cannot name another file"),
    ("[serve\n", ":1: "),
    ("[serve]\nport = 1\n", ":1: serve is not a plain value"),
    ("# " + "a" * 5000 + "\n", ":1: the line has more than 4096 bytes"),
    ("a." * 30_000 + "b = 1\n", ":1: the line has more than 4096 bytes"),
    ("a." * 400_000 + "b = 1\n", ": holds more than 65536 bytes"),
    ("[" + "a." * 2000 + "b]\n" + "a." * 2000 + "b = 1\n", ":1: a is not a plain value"),
], ids=range(16))
def test_bad_config_file_is_refused(model, tmp_path, text, says):
    config = tmp_path / "motley.toml"
    config.write_text(text)
    refuse("serve", model, "--port", free_port(), "--config", config, says=f"{config}{says}")


def test_prompt_beyond_max_model_len_is_400(start):
    server = start("--max-model-len", "64")
    answer = server.post("/v1/completions", {"model": server.model_name(), "prompt": "word " * 100})
    assert answer.status == 400
    assert "64" in answer.error()["message"]


def test_every_kv_dtype_serves(start):
    for dtype in ("float32", "float16", "bfloat16", "fp8", "int8"):
        server = start("--kv-cache-dtype", dtype)
        assert "Paris" in server.complete(prompt="The capital of France is", max_tokens=8)["choices"][0]["text"], dtype
        server.stop()


def test_priority_policy_accepts_priorities(start):
    server = start("--scheduling-policy", "priority")
    assert server.complete(prompt="Hi", max_tokens=2, priority=5)["choices"]


# ---- model files ----
U32, STRING, ARRAY, U64 = 4, 8, 9, 10


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


def gguf(pairs=(), tensors=(), version=3, pair_count=None, tensor_count=None):
    return (b"GGUF" + struct.pack("<IQQ", version, len(tensors) if tensor_count is None else tensor_count,
                                  len(pairs) if pair_count is None else pair_count) + b"".join(pairs) + b"".join(tensors))


def tensor(name, dims, kind=0, offset=0):
    return text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)


LLAMA = pair("general.architecture", STRING, text("llama"))
# name: the file, and what the refusal says beside its name
BAD_MODELS = {
    "empty": (b"", "is empty"),
    "magic_alone": (b"GGUF", "reaches beyond the end"),
    "not_gguf": (b"PK\x03\x04" + bytes(1000), "not a GGUF file"),
    "text": (b"hello world\n" * 100, "not a GGUF file"),
    "version_99": (gguf(version=99), "version 99"),
    "version_1": (gguf(version=1), "version 1 "),
    "endless_tensors": (gguf([LLAMA], tensor_count=1 << 60), "tensors cannot be in a file"),
    "endless_pairs": (gguf([LLAMA], pair_count=(1 << 64) - 1), "keys cannot be in a file"),
    "endless_key": (gguf(pair_count=1) + struct.pack("<Q", 1 << 63) + bytes(64), "beyond the end"),
    "endless_string": (gguf([text("general.architecture") + struct.pack("<IQ", STRING, 1 << 62)]), "beyond the end"),
    "endless_array": (gguf([text("a") + struct.pack("<IIQ", ARRAY, STRING, 1 << 40)]), "beyond the end"),
    "nested_arrays": (gguf([text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 200]), "arrays of arrays"),
    "unknown_type": (gguf([pair("a", 77, bytes(64))]), "type 77"),
    "no_architecture": (gguf([pair("a", U32, struct.pack("<I", 1))]), "'general.architecture': is missing"),
    "unknown_architecture": (gguf([pair("general.architecture", STRING, text("sparrow"))]), "sparrow"),
    "architecture_is_a_number": (gguf([pair("general.architecture", U32, struct.pack("<I", 1))]), "not a string"),
    "no_hyperparameters": (gguf([LLAMA]), "'llama.block_count': is missing"),
    "same_key_twice": (gguf([LLAMA, LLAMA]), "stands twice"),
    "alignment_zero": (gguf([LLAMA, pair("general.alignment", U32, struct.pack("<I", 0))]), "not a power of two"),
    "dims_overflow": (gguf([LLAMA], [tensor("token_embd.weight", [1 << 33, 1 << 33])]), "dimension 1"),
    "five_dims": (gguf([LLAMA], [tensor("token_embd.weight", [1, 1, 1, 1, 1])]), "5 dimensions"),
    "offset_outside": (gguf([LLAMA], [tensor("token_embd.weight", [32], offset=1 << 40)]), "beyond the end"),
    "unknown_tensor_type": (gguf([LLAMA], [tensor("token_embd.weight", [32], kind=200)]), "type 200"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_model_file_is_refused(tmp_path, name):
    file = tmp_path / f"{name}.gguf"
    data, says = BAD_MODELS[name]
    file.write_bytes(data)
    refuse("complete", file, "--prompt", "Hi", "--max-tokens", 1, says=[file.name, says])


@pytest.mark.parametrize("size", [4, 23, 24, 1000, 100_000, 1 << 20, 2 << 20, 50 << 20])
def test_truncated_model_file_is_refused(tmp_path, model, size):
    file = tmp_path / "short.gguf"
    with open(model, "rb") as whole:
        file.write_bytes(whole.read(size))
    refuse("complete", file, "--prompt", "Hi", "--max-tokens", 1, says=file.name)


def test_missing_model_and_folder_are_refused(tmp_path):
    refuse("serve", tmp_path / "absent.gguf", "--port", free_port(), says="absent.gguf")
    refuse("serve", tmp_path, "--port", free_port(), says=tmp_path.name)
