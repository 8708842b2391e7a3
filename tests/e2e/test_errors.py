"""Every refusal: its status, OpenAI's shape, and that others keep being served."""
import socket

import pytest

from support import read_http

BAD_FIELDS = {
    "max_tokens_text": {"max_tokens": "many"},
    "max_tokens_negative": {"max_tokens": -1},
    "max_tokens_fraction": {"max_tokens": 1.5},
    "temperature_negative": {"temperature": -0.1},
    "temperature_text": {"temperature": "hot"},
    "temperature_null_list": {"temperature": [1]},
    "top_p_zero": {"top_p": 0},
    "top_p_large": {"top_p": 1.5},
    "top_k_negative": {"top_k": -2},
    "min_p_large": {"min_p": 2},
    "n_zero": {"n": 0},
    "n_large": {"n": 100000},
    "logprobs_large": {"logprobs": 1000},
    "presence_penalty_large": {"presence_penalty": 3},
    "repetition_penalty_zero": {"repetition_penalty": 0},
    "stop_number": {"stop": 5},
    "stop_token_ids_text": {"stop_token_ids": "a"},
    "logit_bias_outside": {"logit_bias": {"99999999": 1}},
    "logit_bias_name": {"logit_bias": {"abc": 1}},
    "prompt_missing": {"prompt": None},
    "prompt_number": {"prompt": 5},
    "prompt_empty_list": {"prompt": []},
    "prompt_token_outside": {"prompt": [1, 99999999]},
    "prompt_token_negative": {"prompt": [-1]},
    "prompt_too_long": {"prompt": "word " * 20000},
    "stream_text": {"stream": "yes"},
    "stream_options_without_stream": {"stream_options": {"include_usage": True}},
    "prompt_logprobs": {"prompt_logprobs": 1},
    "response_format": {"response_format": {"type": "json_object"}},
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_completion_field_is_400(server, name):
    body = {"model": server.model_name(), "prompt": "Hi", "max_tokens": 2, **BAD_FIELDS[name]}
    answer = server.post("/v1/completions", body)
    assert answer.status == 400, answer.body
    answer.error()


BAD_CHATS = {
    "messages_missing": {},
    "messages_empty": {"messages": []},
    "messages_text": {"messages": "hi"},
    "message_without_role": {"messages": [{"content": "hi"}]},
    "content_number": {"messages": [{"role": "user", "content": 3}]},
    "image_part": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    "tools": {"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function", "function": {"name": "f"}}]},
    "tools_required": {"messages": [{"role": "user", "content": "hi"}], "tool_choice": "required",
                       "tools": [{"type": "function", "function": {"name": "f"}}]},
    "arguments_broken": {"messages": [{"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]}]},
    "chat_template": {"messages": [{"role": "user", "content": "hi"}], "chat_template": "{{ messages }}"},
    "continue_and_prompt": {"messages": [{"role": "user", "content": "hi"}], "continue_final_message": True},
    "response_format": {"messages": [{"role": "user", "content": "hi"}], "response_format": {"type": "json_object"}},
    "top_logprobs_without_logprobs": {"messages": [{"role": "user", "content": "hi"}], "top_logprobs": 2},
    "top_logprobs_large": {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 21},
}


@pytest.mark.parametrize("name", BAD_CHATS)
def test_bad_chat_is_400(server, name):
    answer = server.post("/v1/chat/completions", {"model": server.model_name(), "max_tokens": 2, **BAD_CHATS[name]})
    assert answer.status == 400, answer.body
    answer.error()


BAD_BODIES = {
    "empty": b"",
    "not_json": b"hello",
    "half": b'{"model": "m", "prompt"',
    "array": b"[1, 2]",
    "trailing": b'{"prompt": "a"} x',
    "invalid_utf8": b'{"prompt": "\xff\xfe"}',
    "lone_surrogate": b'{"prompt": "\\ud800"}',
    "deep": b'{"prompt": ' + b"[" * 100000 + b"]" * 100000 + b"}",
    "huge_number": b'{"prompt": "a", "max_tokens": 1e400}',
    "nul_bytes": b"\x00" * 64,
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_body_is_400(server, name):
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        answer = server.post(path, BAD_BODIES[name])
        assert answer.status == 400, (path, answer.body)
        answer.error()


def test_unknown_model_is_404(server):
    answer = server.post("/v1/completions", {"model": "no-such-model", "prompt": "Hi"})
    assert answer.status == 404
    assert "no-such-model" in answer.error()["message"]


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/v1/completions/x", "/../etc/passwd", "/%00"])
def test_unknown_route_is_404(server, path):
    answer = server.get(path)
    assert answer.status == 404, answer.body
    answer.error()


@pytest.mark.parametrize("method,path", [("GET", "/v1/completions"), ("DELETE", "/v1/models"), ("POST", "/metrics"),
                                         ("PUT", "/v1/chat/completions")])
def test_wrong_method_is_405(server, method, path):
    answer = server.request(method, path)
    assert answer.status == 405, answer.body
    answer.error()


def send(server, data):
    """What the server answers to these bytes."""
    with server.socket() as connection:
        try:
            connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may refuse before it has read everything
        return read_http(connection)


def test_body_above_32_mib_is_413(server):
    size = (32 << 20) + 1
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    answer = send(server, head.encode())
    assert answer.status == 413
    answer.error()


def test_chunked_body_above_32_mib_is_413(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with server.socket() as connection:
        connection.sendall(head)
        # To the limit and one byte beyond it, so that the server leaves nothing unread: bytes it does not read would
        # make the kernel reset the connection, and the answer with it.
        for _ in range(32):
            connection.sendall(chunk)
        connection.sendall(b"1\r\n ")
        answer = read_http(connection)
    assert answer.status == 413
    answer.error()
    assert server.get("/health").status == 200


def test_large_header_is_431(server):
    answer = send(server, b"GET /health HTTP/1.1\r\nHost: x\r\nX-Large: " + b"a" * 65536 + b"\r\n\r\n")
    assert answer.status == 431
    answer.error()


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET\r\n\r\n",
                                  b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                                  b"POST /v1/completions HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"])
def test_what_is_not_http_gets_a_4xx_or_is_cut(server, data):
    with server.socket() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert answer == b"" or answer.split(b" ")[1].startswith((b"4", b"5")), answer
    assert server.get("/health").status == 200


def test_slow_header_and_slow_body_are_ended_while_others_are_served(server):
    """Clients that begin and never go on: 408 or a closed connection, by the server's own deadline."""
    with server.socket() as head, server.socket() as body:
        head.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        body.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert server.complete(prompt="Hi", max_tokens=2)["choices"]
        for connection in (head, body):
            data = connection.recv(65536)
            assert data == b"" or data.startswith(b"HTTP/1.1 408"), data


def test_api_key_is_asked_for(start):
    server = start("--api-key", "secret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": "Bearer "}):
        answer = server.get("/v1/models", headers)
        assert answer.status == 401
        answer.error()
    assert server.get("/v1/models", {"Authorization": "Bearer secret"}).status == 200
    assert server.get("/health").status == 200
    assert "secret" not in open(server.log).read()
