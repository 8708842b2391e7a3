"""Clients and surroundings that would end a careless server, or fill its memory."""
import http.client
import os
import resource
import subprocess
import threading

import pytest

from support import MOTLEY, Server, free_port, wait_until


class ServerWithPipe(Server):
    """Its log goes to a pipe, the other end of which the test holds."""

    def __init__(self, model, *arguments):
        self.port = free_port()
        self.log = os.devnull
        self.process = subprocess.Popen([str(MOTLEY), "serve", str(model), "--port", str(self.port), *arguments],
                                        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.wait_ready()


def test_log_that_nobody_reads_is_no_end(model):
    with ServerWithPipe(model) as server:
        server.process.stderr.close()
        with server.socket() as client:  # a warning will be written
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 60\r\n\r\n" +
                           b'{"prompt": "x", "max_tokens": 4000, "ignore_eos": true}'.ljust(60) + b" " * 200_000)
            try:
                client.recv(1)
            except ConnectionResetError:
                pass  # cancelled, with bytes of ours unread
        server.wait_idle()
        assert server.complete(prompt="x", max_tokens=2)["choices"]
        assert server.stop() == 0


def test_large_bodies_of_clients_that_left_cost_no_memory(start):
    server = start()
    server.complete(prompt="x", max_tokens=2)
    before = server.memory_bytes("VmRSS")
    body = b'{"prompt": "' + b"word " * 200_000 + b'"}'
    header = f"POST /tokenize HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(300):
        with server.socket() as client:
            client.sendall(header + body)
    wait_until(lambda: server.get("/load").json()["server_load"] == 0, 60, "requests of clients that left still run")
    assert server.memory_bytes("VmRSS") <= before + 150e6  # all of them: 300 MB
    assert server.complete(prompt="x", max_tokens=2)["choices"]


def test_template_that_fails_is_a_clear_400(start, tmp_path):
    (tmp_path / "broken.jinja").write_text("{{ messages[0].content }}{{ no_such_function() }}")
    answer = start("--chat-template", tmp_path / "broken.jinja").post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
    assert answer.status == 400
    assert "chat template" in answer.error()["message"] and "no_such_function" in answer.error()["message"]


def test_requests_that_ask_for_more_memory_than_there_is_are_503_and_others_are_served(start):
    """Of the address space little is left; what each of these bodies or its tree of values takes is more."""
    server = start("--kv-cache-memory-bytes", 64 << 20, "--max-num-batched-tokens", 256)
    expected = server.complete(prompt="The capital of France is", max_tokens=4)["choices"][0]["text"]
    left = 16 << 20
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (server.memory_bytes("VmSize") + left,) * 2)
    bodies = {"/v1/completions": b'{"prompt": "' + b"a" * (30 << 20) + b'"}',
              "/v1/chat/completions": b'{"messages": [' + b"[]," * 900_000 + b"[]]}"}
    for _ in range(3):
        for path, body in bodies.items():
            answer = server.post(path, body)
            assert answer.status == 503, answer.body
            assert "no memory" in answer.error()["message"]
        assert server.complete(prompt="The capital of France is", max_tokens=4)["choices"][0]["text"] == expected
    assert server.get("/load").json()["server_load"] == 0
    assert server.stop() == 0


def limit_memory(server, bytes_left):
    hard = resource.prlimit(server.process.pid, resource.RLIMIT_AS)[1]
    limit = hard if bytes_left is None else server.memory_bytes("VmSize") + bytes_left
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (limit, hard))


@pytest.mark.parametrize("bytes_left", [64 << 10, 4 << 20, 16 << 20])
def test_clients_that_use_up_all_memory_at_once_do_not_end_the_server(start, bytes_left):
    """Where memory runs out is left to chance, so that no reply is foretold but what kind it is of: an answer, a 503 or
    a closed connection. What counts is that the server lives, and serves as before when the pressure ends."""
    server = start("--kv-cache-memory-bytes", 64 << 20, "--max-num-batched-tokens", 256)
    expected = server.complete(prompt="The capital of France is", max_tokens=4)["choices"][0]["text"]
    many = b'{"prompt": ["x", "y", "z"], "n": 8, "max_tokens": 3, "logprobs": 5, "ignore_eos": true%s}'
    bodies = [("/v1/completions", b'{"prompt": "' + b"a " * (1 << 20) + b'"}'),
              ("/v1/chat/completions", b'{"messages": [' + b"[]," * 900_000 + b"[]]}"),
              ("/tokenize", b'{"prompt": "' + b"word " * 200_000 + b'"}'),
              ("/v1/completions", many % b""),
              ("/v1/completions", many % b', "stream": true')]
    replies = set()

    def client(first):
        for i in range(len(bodies)):
            try:
                replies.add(server.post(*bodies[(first + i) % len(bodies)]).status)
            except (ConnectionError, http.client.IncompleteRead):  # among them http.client's RemoteDisconnected
                replies.add("closed")
            except Exception as failure:  # a thread's own would be lost
                replies.add(repr(failure))

    limit_memory(server, bytes_left)
    clients = [threading.Thread(target=client, args=(i,)) for i in range(5)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert server.process.poll() is None
    limit_memory(server, None)
    # The texts are too long, and the list holds no messages: where memory suffices they are 400. For the list it never
    # does.
    assert replies <= {200, 400, 503, "closed"} and replies & {503, "closed"}, replies
    server.wait_idle()
    assert server.complete(prompt="The capital of France is", max_tokens=4)["choices"][0]["text"] == expected
    wait_until(lambda: server.get("/load").json()["server_load"] == 0, 30, "requests are still counted")
    assert server.stop() == 0
