"""Many clients at once, clients that leave, and what the process uses."""
import asyncio
import time

import openai

from support import Stream, read_http, wait_until

CLIENTS = 64
CONNECTIONS = 1000
STEPS_LEFT_MAX = 4  # what ran and what was planned when the server saw the client go, for one sequence


def assert_cancelled(server):
    """The one request has gone: the server sees that before it answers what is asked afterwards."""
    at_leave = server.metrics()["vllm:generation_tokens_total"]
    server.wait_idle()
    assert server.metrics()["vllm:generation_tokens_total"] - at_leave <= STEPS_LEFT_MAX


def test_64_clients_with_a_third_leaving_early(server):
    """Streaming and not; the others' texts are what they are alone, and nothing keeps running."""
    prompts = [f"Tell me about the number {i}:" for i in range(8)]
    alone = [server.complete(prompt=p, max_tokens=16)["choices"][0]["text"] for p in prompts]
    before = server.metrics()

    async def one(client, i):
        fields = dict(model=server.model_name(), prompt=prompts[i % 8], temperature=0)
        if i % 3 == 0:  # leaves after the first words of a long answer
            stream = await client.completions.create(**fields, max_tokens=1000, stream=True,
                                                     extra_body={"ignore_eos": True})
            async for _ in stream:
                break
            await stream.close()
            return None
        if i % 3 == 1:
            stream = await client.completions.create(**fields, max_tokens=16, stream=True)
            return "".join([c.choices[0].text async for c in stream])
        return (await client.completions.create(**fields, max_tokens=16)).choices[0].text

    async def everyone():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=120) as client:
            return await asyncio.gather(*(one(client, i) for i in range(CLIENTS)))

    texts = asyncio.run(everyone())
    for i, text in enumerate(texts):
        assert text is None or text == alone[i % 8], i
    server.wait_idle()
    after = server.metrics()
    made = after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"]
    left = sum(i % 3 == 0 for i in range(CLIENTS))
    assert made < (CLIENTS - left) * 16 + left * 64  # cancelled, not run to the end


def test_client_that_goes_away_is_cancelled(server):
    server.wait_idle()
    stream = Stream(server, prompt="Count:", max_tokens=2000, ignore_eos=True)
    next(iter(stream))
    stream.leave()
    assert_cancelled(server)


def test_client_that_goes_away_without_streaming_is_cancelled(server):
    server.wait_idle()
    with server.socket() as connection:
        body = '{"model": "%s", "prompt": "Count:", "max_tokens": 2000, "ignore_eos": true}' % server.model_name()
        connection.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_until(lambda: server.metrics()["vllm:num_requests_running"] == 1, 30, "the request does not run")
    assert_cancelled(server)


def test_a_thousand_connections_are_held_and_served(server):
    connections = []
    try:
        for _ in range(CONNECTIONS):
            connections.append(server.socket())
        assert server.complete(prompt="Hi", max_tokens=2)["choices"]
        for connection in connections:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [read_http(c).status for c in connections] == [200] * CONNECTIONS
    finally:
        for connection in connections:
            connection.close()


def test_metrics_name_vllms_series(server):
    server.complete(prompt="Hi", max_tokens=2)
    answer = server.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    text, values = answer.body.decode(), server.metrics()
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
                 "prefix_cache_hits_total", "num_preemptions_total", "prompt_tokens_total", "generation_tokens_total",
                 "request_success_total"):
        assert f"vllm:{name}" in values, name
    for name in ("iteration_tokens_total", "request_prompt_tokens", "request_generation_tokens",
                 "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
                 "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
                 "request_inference_time_seconds"):
        assert f"# TYPE vllm:{name} histogram" in text, name
        assert f"vllm:{name}_count" in values, name
    assert f'model_name="{server.model_name()}"' in text
    assert values["vllm:prompt_tokens_total"] > 0 and values["vllm:generation_tokens_total"] > 0


def test_prefix_cache_hits_are_counted(server):
    prompt = "A long common beginning, " * 20
    first = server.complete(prompt=prompt, max_tokens=4)
    before = server.metrics()["vllm:prefix_cache_hits_total"]
    assert server.complete(prompt=prompt, max_tokens=4)["choices"] == first["choices"]
    assert server.metrics()["vllm:prefix_cache_hits_total"] > before


def test_idle_server_uses_no_cpu(server):
    server.wait_idle()
    before = server.cpu_seconds()
    time.sleep(1.0)  # the interval measured
    assert server.cpu_seconds() - before <= 0.03


def test_memory_stays_within_its_bound(start, model):
    server = start()
    positions = 0
    for i in range(3):
        usage = server.complete(prompt=f"Story {i}:", max_tokens=16)["usage"]
        positions += usage["total_tokens"] + 16  # blocks are whole
    kv_bytes_per_position = 2 * 30 * 3 * 64 * 4  # K and V, layers, KV heads, head size, at most f32
    file = model.stat().st_size
    assert server.memory_bytes("VmRSS") <= 1.6 * file + positions * kv_bytes_per_position + 150e6
    assert server.memory_bytes("VmSize") <= file + 2 * (1 << 30) + 3 * (1 << 30)
