"""The server as a process: signals, a busy port, options and files that cannot be."""
import signal
import struct

import pytest

from support import Stream, free_port, motley, wait_until


def refuse(*arguments, **options):
    """Runs the program, which must refuse: exit 1, nothing on standard output, one line on standard error."""
    done = motley(*arguments, **options)
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


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
    next(iter(stream))
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0


def test_second_sigint_stops_at_once(start):
    server = start("--shutdown-timeout", "100000")
    streams = [Stream(server, prompt="Count:", max_tokens=7000, ignore_eos=True) for _ in range(4)]
    for stream in streams:
        next(iter(stream))
    server.signal(signal.SIGINT)
    wait_until(lambda: draining(server), 30, "the server does not drain")
    assert server.process.poll() is None
    server.signal(signal.SIGINT)
    assert server.wait_exit() != 0


def test_busy_port_is_refused(server, model):
    line = refuse("serve", model, "--port", server.port)
    assert str(server.port) in line


def test_port_is_free_again_after_the_end(start, model, tmp_path):
    server = start()
    port = server.port
    server.complete(prompt="Hi", max_tokens=1)
    server.stop()
    again = start(port=port)
    assert again.stop() == 0


BAD_OPTIONS = {
    "unknown_option": ["--no-such-option"],
    "unknown_kv_dtype": ["--kv-cache-dtype", "float5"],
    "unknown_policy": ["--scheduling-policy", "best"],
    "unknown_device": ["--devices", "GPU:7"],
    "malformed_device": ["--devices", "::"],
    "port_outside": ["--port", "70000"],
    "port_text": ["--port", "http"],
    "negative_threads": ["--threads", "-1"],
    "block_size_zero": ["--block-size", "0"],
    "max_num_seqs_zero": ["--max-num-seqs", "0"],
    "context_beyond_the_model": ["--max-model-len", "100000000"],
    "kv_pool_of_a_byte": ["--kv-cache-memory-bytes", "1"],
    "kv_pool_beyond_memory": ["--kv-cache-memory-bytes", str(1 << 50)],
    "template_missing": ["--chat-template", "/nonexistent/template.jinja"],
    "config_missing": ["--config", "/nonexistent/config.toml"],
    "budget_below_the_context_without_chunks": ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8"],
    "host_that_is_none": ["--host", "999.1.1.1"],
    "second_model": ["another.gguf"],
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_impossible_option_is_refused(model, name):
    options = BAD_OPTIONS[name]
    if "--port" not in options:
        options = ["--port", free_port(), *options]
    refuse("serve", model, *options)


def test_options_without_command_are_refused():
    refuse()
    refuse("no-such-command")
    refuse("serve")
    refuse("help", "no-such-command")


def test_broken_template_is_refused(model, tmp_path):
    template = tmp_path / "broken.jinja"
    template.write_text("{% for x in %}")
    assert "broken.jinja" in refuse("serve", model, "--port", free_port(), "--chat-template", template)


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


@pytest.mark.parametrize("text", ["no-such-option = 1\n", "max-model-len = \n", "threads = \"many\"\n", "[serve\n"])
def test_bad_config_file_is_refused(model, tmp_path, text):
    config = tmp_path / "motley.toml"
    config.write_text(text)
    refuse("serve", model, "--port", free_port(), "--config", config)


def test_prompt_beyond_max_model_len_is_400(start):
    server = start("--max-model-len", "64")
    answer = server.post("/v1/completions", {"model": server.model_name(), "prompt": "word " * 100})
    assert answer.status == 400
    assert "64" in answer.error()["message"]


def test_every_kv_dtype_serves(start):
    for dtype in ("float32", "float16", "bfloat16", "int8"):
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
BAD_MODELS = {
    "empty": b"",
    "magic_alone": b"GGUF",
    "not_gguf": b"PK\x03\x04" + bytes(1000),
    "text": b"hello world\n" * 100,
    "version_99": gguf(version=99),
    "version_1": gguf(version=1),
    "endless_tensors": gguf([LLAMA], tensor_count=1 << 60),
    "endless_pairs": gguf([LLAMA], pair_count=(1 << 64) - 1),
    "endless_key": gguf(pair_count=1) + struct.pack("<Q", (1 << 63)) + b"key",
    "endless_string": gguf([text("general.architecture") + struct.pack("<IQ", STRING, 1 << 62)]),
    "endless_array": gguf([text("a") + struct.pack("<IIQ", ARRAY, STRING, 1 << 40)]),
    "nested_arrays": gguf([text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 200]),
    "unknown_type": gguf([pair("a", 77, b"")]),
    "no_architecture": gguf([pair("a", U32, struct.pack("<I", 1))]),
    "unknown_architecture": gguf([pair("general.architecture", STRING, text("sparrow"))]),
    "architecture_is_a_number": gguf([pair("general.architecture", U32, struct.pack("<I", 1))]),
    "no_hyperparameters": gguf([LLAMA]),
    "same_key_twice": gguf([LLAMA, LLAMA]),
    "alignment_zero": gguf([LLAMA, pair("general.alignment", U32, struct.pack("<I", 0))]),
    "dims_overflow": gguf([LLAMA], [tensor("token_embd.weight", [1 << 33, 1 << 33])]),
    "five_dims": gguf([LLAMA], [tensor("token_embd.weight", [1, 1, 1, 1, 1])]),
    "offset_outside": gguf([LLAMA], [tensor("token_embd.weight", [32], offset=1 << 40)]),
    "unknown_tensor_type": gguf([LLAMA], [tensor("token_embd.weight", [32], kind=200)]),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_model_file_is_refused(tmp_path, name):
    file = tmp_path / f"{name}.gguf"
    file.write_bytes(BAD_MODELS[name])
    assert file.name in refuse("complete", file, "--prompt", "Hi", "--max-tokens", 1)


@pytest.mark.parametrize("size", [4, 23, 24, 1000, 100_000, 1 << 20, 2 << 20, 50 << 20])
def test_truncated_model_file_is_refused(tmp_path, model, size):
    file = tmp_path / "short.gguf"
    with open(model, "rb") as whole:
        file.write_bytes(whole.read(size))
    assert file.name in refuse("complete", file, "--prompt", "Hi", "--max-tokens", 1)


def test_missing_model_and_folder_are_refused(tmp_path):
    assert "absent.gguf" in refuse("serve", tmp_path / "absent.gguf", "--port", free_port())
    assert tmp_path.name in refuse("serve", tmp_path, "--port", free_port())
