"""`motley bench serve`: against Motley, against servers that are not Motley, and against ones that fail."""
import json
import re
import socket
import threading
from contextlib import contextmanager

import pytest

from support import ROOT, Server, free_port, motley, refuse, wait_until

PROMPTS, INPUT_LEN, OUTPUT_LEN = 16, 12, 6


@pytest.fixture(scope="module")
def tiny(tiny, tmp_path_factory):
    """A server of it."""
    with Server(tiny, tmp_path_factory.mktemp("bench") / "log") as server:
        server.folder = tiny
        yield server
        assert server.stop() == 0


def bench(port, *arguments, prompts=PROMPTS, **options):
    return motley("bench", "serve", "--port", port, "--num-prompts", prompts, *arguments, **options)


def results(port, path, *arguments):
    done = bench(port, "--save-result", "--result-filename", path, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


def shown(text, label):
    [value] = re.findall(rf"^{re.escape(label)}: +([\d.]+) *$", text, re.M)
    return float(value)


def check_consistency(result):
    assert result["completed"] + result["failed"] == result["num_prompts"] == PROMPTS
    assert sum(result["output_lens"]) == result["total_output_tokens"]
    assert sum(n for n, e in zip(result["input_lens"], result["errors"]) if not e) == result["total_input_tokens"]
    duration = result["duration"]
    assert result["request_throughput"] == pytest.approx(result["completed"] / duration)
    assert result["output_throughput"] == pytest.approx(result["total_output_tokens"] / duration)
    assert result["total_token_throughput"] == pytest.approx(
        (result["total_input_tokens"] + result["total_output_tokens"]) / duration)
    for name in ("ttft", "tpot", "itl", "e2el"):
        assert 0 <= result[f"p1_{name}_ms"] <= result[f"p50_{name}_ms"] <= result[f"p99.5_{name}_ms"], name
        assert result[f"median_{name}_ms"] == result[f"p50_{name}_ms"]
    assert result["p50_ttft_ms"] <= result["p50_e2el_ms"]
    for ttft, itl, latency, start in zip(*(result[k] for k in ("ttfts", "itls", "latencies", "start_times"))):
        assert latency == pytest.approx(ttft + sum(itl))
        assert start + latency <= duration
    assert 1 <= result["max_concurrent_requests"] <= (result["max_concurrency"] or PROMPTS)


@pytest.mark.parametrize("options", [
    ["--random-input-len", INPUT_LEN, "--random-output-len", OUTPUT_LEN, "--num-warmups", 3],
    ["--input-len", INPUT_LEN, "--output-len", OUTPUT_LEN, "--backend", "openai-chat", "--max-concurrency", 2],
    ["--input-len", INPUT_LEN, "--output-len", OUTPUT_LEN, "--request-rate", 200, "--burstiness", 0.5],
    ["--input-len", INPUT_LEN, "--output-len", OUTPUT_LEN, "--ramp-up-strategy", "exponential",
     "--ramp-up-start-rps", 50, "--ramp-up-end-rps", 500],
], ids=["all at once", "chat", "gamma", "ramp"])
@pytest.mark.parametrize("tokenizer", [False, True], ids=["asked", "local"])
def test_results_are_consistent(tiny, tmp_path, options, tokenizer):
    result, text = results(tiny.port, tmp_path / "r.json", "--save-detailed", "--metric-percentiles", "1,50,99.5",
                           "--percentile-metrics", "ttft,tpot,itl,e2el", "--temperature", 0, *options,
                           *(["--model", tiny.folder] if tokenizer else []))
    check_consistency(result)
    assert result["completed"] == PROMPTS and result["failed"] == 0
    assert result["output_lens"] == [OUTPUT_LEN] * PROMPTS
    if "openai-chat" not in options:
        assert result["input_lens"] == [INPUT_LEN] * PROMPTS
    assert result["request_goodput"] is None
    assert result["tokenizer_id"] == (str(tiny.folder) if tokenizer else None)
    assert text.startswith("============ Serving Benchmark Result ============\n")
    assert shown(text, "Successful requests") == PROMPTS
    assert shown(text, "Total generated tokens") == PROMPTS * OUTPUT_LEN
    assert shown(text, "P99.5 TTFT (ms)") == pytest.approx(result["p99.5_ttft_ms"], abs=0.006)


def test_the_server_saw_what_was_sent(tiny, tmp_path):
    before = tiny.metrics()
    results(tiny.port, tmp_path / "r.json", "--input-len", INPUT_LEN, "--output-len", OUTPUT_LEN, "--seed", 5)
    after = tiny.metrics()
    for name, count in (("prompt_tokens", INPUT_LEN), ("generation_tokens", OUTPUT_LEN), ("request_success", 1)):
        assert after[f"vllm:{name}_total"] - before[f"vllm:{name}_total"] == count * PROMPTS, name


def test_goodput_is_of_requests_within_every_limit(tiny, tmp_path):
    lengths = ("--input-len", INPUT_LEN, "--output-len", OUTPUT_LEN)
    easy, text = results(tiny.port, tmp_path / "a.json", *lengths, "--goodput", "ttft:1e9,tpot:1e9,e2el:1e9")
    assert easy["request_goodput"] == easy["request_throughput"]
    assert shown(text, "Request goodput (req/s)") == shown(text, "Request throughput (req/s)")
    hard, _ = results(tiny.port, tmp_path / "b.json", *lengths, "--goodput", "ttft:1e9", "e2el:0")
    assert hard["request_goodput"] == 0


def test_files_are_read_and_appended_to(tiny, tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "one", "output_tokens": 3}\n{"prompt": "four"}\n')
    common = ("--save-detailed", "--disable-shuffle", "--ignore-eos", "--dataset-path")
    first, _ = results(tiny.port, tmp_path / "r.json", "--dataset-name", "custom", *common, lines, "--no-oversample",
                       "--custom-output-len", 4, "--metadata", "tp=1", "note=a=b")
    assert first["input_lens"] == [3, 4] and first["output_lens"] == [4, 4]
    assert first["tp"] == "1" and first["note"] == "a=b" and first["completed"] == 2
    shared = tmp_path / "shared.json"
    shared.write_text(json.dumps([{"conversations": [{"value": "question"}, {"value": "answer"}]}, {"id": 1}]))
    done = bench(tiny.port, "--append-result", "--result-dir", tmp_path, "--result-filename", "r.json",
                 "--dataset-name", "sharegpt", *common, shared)
    assert done.returncode == 0, done.stderr
    again, second = map(json.loads, (tmp_path / "r.json").read_text().splitlines())
    assert again == first
    assert second["input_lens"] == [8] * PROMPTS and second["output_lens"] == [6] * PROMPTS


def test_default_name_of_the_file(tiny, tmp_path):
    done = bench(tiny.port, "--output-len", 2, "--input-len", 2, "--save-result", "--result-dir", tmp_path / "new",
                 "--max-concurrency", 4, "--label", "mine")
    assert done.returncode == 0, done.stderr
    [file] = (tmp_path / "new").iterdir()
    assert re.fullmatch(r"mine-infqps-concurrency4-tiny-\d{8}-\d{6}\.json", file.name)
    assert set(json.loads(file.read_text())) >= {
        "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate",
        "burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens",
        "total_output_tokens", "request_throughput", "request_goodput", "output_throughput", "total_token_throughput",
        "max_output_tokens_per_s", "max_concurrent_requests", "mean_ttft_ms", "median_ttft_ms", "std_ttft_ms",
        "p99_ttft_ms", "mean_tpot_ms", "median_tpot_ms", "std_tpot_ms", "p99_tpot_ms", "mean_itl_ms",
        "median_itl_ms", "std_itl_ms", "p99_itl_ms"}


def test_a_server_that_is_not_there(tmp_path):
    refuse("bench", "serve", "--port", free_port(), says=["Connection refused", "start the server"])
    refuse("bench", "serve", "--port", free_port(), "--ready-check-timeout-sec", 1, says="Connection refused")


def test_a_server_that_is_still_starting_is_waited_for(tiny, tmp_path):
    port, ended = free_port(), threading.Event()

    def late():
        with Server(tiny.folder, tmp_path / "log", port=port):
            ended.wait()

    thread = threading.Thread(target=late)
    thread.start()
    try:
        done = bench(port, "--input-len", 2, "--output-len", 2, "--ready-check-timeout-sec", 60)
        assert done.returncode == 0, done.stderr
    finally:
        ended.set()
        thread.join()


def test_a_model_that_the_server_does_not_have(tiny):
    refuse("bench", "serve", "--port", tiny.port, "--model", "gpt-9", says=["has no model gpt-9", str(tiny.folder)])


def test_a_key_that_is_wanted(tiny, tmp_path):
    with Server(tiny.folder, tmp_path / "log", "--api-key", "secret", "--served-model-name", "m") as server:
        refuse("bench", "serve", "--port", server.port, says=["HTTP 401", "OPENAI_API_KEY"])
        lengths = ("--input-len", 2, "--output-len", 2)
        assert bench(server.port, *lengths, environment={"OPENAI_API_KEY": "secret"}).returncode == 0
        assert bench(server.port, *lengths, "--header", "Authorization=Bearer secret").returncode == 0


def test_requests_that_the_server_refuses(tiny):
    done = bench(tiny.port, "--input-len", 2, "--output-len", 1_000_000)
    assert done.returncode == 1 and done.stdout == ""
    assert "no request succeeded: 16 requests: HTTP 400 Bad Request: " in done.stderr


def test_a_server_that_dies_in_mid_run(tiny, tmp_path):
    """Long answers, one after another over two connections: some are whole when it goes, the rest fail."""
    with Server(tiny.folder, tmp_path / "log") as server:
        path = tmp_path / "r.json"

        def kill():
            wait_until(lambda: server.metrics().get("vllm:request_success_total", 0) >= 2, 60, "no request succeeds")
            server.process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        done = bench(server.port, "--input-len", 4, "--output-len", 40, "--max-concurrency", 2, "--save-result",
                     "--save-detailed", "--result-filename", path, prompts=4000)
        killer.join()
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["completed"] >= 1 and result["failed"] >= 1
    assert result["completed"] + result["failed"] == 4000
    assert "failed: " in done.stderr and "Connection refused" in done.stderr
    assert len(re.findall("failed: ", done.stderr)) <= 10
    for error, tokens in zip(result["errors"], result["output_lens"]):
        assert tokens == (0 if error else 40)


@contextmanager
def other_server(stream, usage=True):
    """A server of another make: llama-server's /tokenize, a stream as told. It serves each request on a connection of
    its own."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection):
        with connection:
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            head, body = data.split(b"\r\n\r\n", 1)
            length = int((re.search(rb"Content-Length: (\d+)", head) or [0, 0])[1])
            while len(body) < length:
                body += connection.recv(65536)
            path = head.split()[1]
            if path == b"/v1/models":
                reply = {"data": [{"id": "other"}]}
            elif path == b"/tokenize":
                reply = {"tokens": list(json.loads(body)["content"].encode())}
            elif path == b"/v1/completions":
                assert json.loads(body)["prompt"] and json.loads(body)["ignore_eos"] is True
                return connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + stream)
            text = json.dumps(reply).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                               % (len(text), text))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,)).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


TOKEN = b'data: {"choices": [{"text": "ab"}]}\n\n'
LAST = b'data: {"choices": [{"text": "", "finish_reason": "length"}]}\n\n'


def test_another_server_that_counts_nothing(tiny, tmp_path):
    with other_server(TOKEN * 3 + LAST + b"data: [DONE]\n\n") as port:
        result, _ = results(port, tmp_path / "a.json", "--input-len", 5, "--output-len", 3)
        assert (result["total_input_tokens"], result["total_output_tokens"]) == (5 * PROMPTS, 3 * PROMPTS)
        result, _ = results(port, tmp_path / "b.json", "--input-len", 5, "--output-len", 3, "--tokenizer", tiny.folder)
        assert result["total_output_tokens"] == 6 * PROMPTS  # of the text


@pytest.mark.parametrize("stream, says", [
    (TOKEN + b"data: {oops\n\n", "no JSON object"),
    (TOKEN + b'data: {"error": {"message": "out of memory"}}\n\n', "error in the stream: out of memory"),
    (TOKEN, "without [DONE]"),
    (b"", "no event with a choice"),
])
def test_streams_that_cannot_be_counted(stream, says):
    with other_server(stream) as port:
        done = bench(port, "--input-len", 5, "--output-len", 3)
    assert done.returncode == 1 and done.stdout == ""
    assert f"no request succeeded: {PROMPTS} requests: " in done.stderr and says in done.stderr


@pytest.mark.parametrize("arguments, says", [
    (["--goodput", "itl:5"], "--goodput: itl:5 is not ttft:MS"),
    (["--goodput", "ttft:-1"], "--goodput: ttft:-1"),
    (["--goodput", "ttft"], "--goodput: ttft is not"),
    (["--metric-percentiles", "50,101"], "--metric-percentiles: 101 is not a number from 0 to 100"),
    (["--percentile-metrics", "ttft,x"], "--percentile-metrics: x is none of ttft"),
    (["--request-rate", "0"], "--request-rate: 0 is not above 0, or inf"),
    (["--burstiness", "-1"], "--burstiness: -1 is not above 0"),
    (["--ramp-up-strategy", "linear"], "--ramp-up-start-rps above 0"),
    (["--max-concurrency", "0"], "--max-concurrency: 0 is not a whole number from 1"),
    (["--base-url", "https://x"], "https is not built"),
    (["--endpoint", "/v1/embeddings"], "no path that ends with completions"),
    (["--backend", "openai-chat", "--endpoint", "/v1/completions"], "none of --backend openai-chat"),
    (["--extra-body", "[1]"], "--extra-body: not a JSON object"),
    (["--header", "x"], "--header: x is not KEY=VALUE"),
])
def test_options_that_cannot_be(arguments, says):
    refuse("bench", "serve", "--port", free_port(), *arguments, says=says)


@pytest.mark.parametrize("arguments, says", [
    (["--dataset-name", "custom"], "needs --dataset-path"),
    (["--dataset-path", "x"], "--dataset-path needs --dataset-name"),
    (["--dataset-name", "custom", "--dataset-path", "/nonexistent"], "/nonexistent"),
    (["--dataset-name", "custom", "--dataset-path", ROOT / "README.md"], "README.md:1: not a JSON object"),
    (["--dataset-name", "sharegpt", "--dataset-path", ROOT / "README.md"], "README.md: not JSON"),
    (["--random-range-ratio", "1"], "--random-range-ratio must be from 0 to below 1"),
    (["--tokenizer", "/nonexistent"], "/nonexistent"),
    (["--save-result", "--result-dir", "/proc/x"], "no file can be written there"),
    (["--metadata", "x", "--save-result", "--result-dir", "/tmp"], "--metadata: x is not KEY=VALUE"),
])
def test_runs_that_cannot_be(tiny, arguments, says):
    refuse("bench", "serve", "--port", tiny.port, *arguments, says=says)


def test_help_names_vllms_options():
    text = motley("help", "bench", "serve").stdout
    assert text.startswith("load a running server") and "Usage: motley bench serve" in text
    for option in ("backend", "base-url", "host", "port", "endpoint", "header", "model", "served-model-name", "tokenizer",
                   "dataset-name", "dataset-path", "num-prompts", "seed", "input-len", "output-len", "random-input-len",
                   "random-output-len", "random-range-ratio", "random-prefix-len", "sharegpt-output-len",
                   "custom-output-len", "disable-shuffle", "no-oversample", "request-rate", "burstiness",
                   "ramp-up-strategy", "ramp-up-start-rps", "ramp-up-end-rps", "max-concurrency", "num-warmups",
                   "ready-check-timeout-sec", "ignore-eos", "temperature", "top-p", "top-k", "min-p",
                   "frequency-penalty", "presence-penalty", "repetition-penalty", "logprobs", "extra-body",
                   "percentile-metrics", "metric-percentiles", "goodput", "save-result", "save-detailed",
                   "append-result", "result-dir", "result-filename", "label", "metadata", "disable-tqdm"):
        assert f"--{option} " in text or f"--{option}\n" in text, option
