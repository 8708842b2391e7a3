"""/v1/completions, /v1/chat/completions and the token routes, through the official client."""
import openai
import pytest

from support import Stream

FRANCE = "The capital of France is"


@pytest.fixture
def name(server):
    return server.model_name()


def counts(answer):
    """Of its usage, what does not depend on the prefix cache."""
    return answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens


def test_models_lists_the_model(client, name):
    models = client.models.list().data
    assert [m.id for m in models] == [name]
    assert models[0].object == "model"


def test_greedy_completion_names_paris(client, name):
    answer = client.completions.create(model=name, prompt=FRANCE, max_tokens=8, temperature=0)
    assert "Paris" in answer.choices[0].text
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == "length"


def test_greedy_is_repeatable(client, name):
    texts = {client.completions.create(model=name, prompt=FRANCE, max_tokens=24, temperature=0).choices[0].text
             for _ in range(3)}
    assert len(texts) == 1


def test_streaming_completion_equals_the_whole(client, name):
    fields = dict(model=name, prompt="Once upon a time", max_tokens=32, temperature=0)
    whole = client.completions.create(**fields)
    chunks = list(client.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices == [] and counts(chunks[-1]) == counts(whole)
    assert whole.usage.completion_tokens == 32
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 32


def test_streaming_without_include_usage_has_no_usage(client, name):
    chunks = list(client.completions.create(model=name, prompt=FRANCE, max_tokens=4, temperature=0, stream=True))
    assert all(c.usage is None for c in chunks)


def test_stream_ends_with_done(server):
    answer = server.post("/v1/completions", {"model": server.model_name(), "prompt": FRANCE, "max_tokens": 2,
                                             "temperature": 0, "stream": True})
    assert answer.body.rstrip().endswith(b"data: [DONE]")


def test_chat_answers(client, name):
    answer = client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "Where is the Eiffel Tower?"}], max_tokens=32, temperature=0)
    message = answer.choices[0].message
    assert message.role == "assistant" and "Paris" in message.content
    assert answer.object == "chat.completion"


def test_chat_stream_equals_the_whole(client, name):
    fields = dict(model=name, max_tokens=24, temperature=0, messages=[
        {"role": "system", "content": "You are brief."}, {"role": "user", "content": [{"type": "text", "text": "Say hello."}]}])
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert counts(chunks[-1]) == counts(whole)


def test_user_text_never_becomes_a_special_token(server):
    """A user who types the end-of-turn marker sends its characters: more tokens than the one it spells."""
    def count(text):
        answer = server.post("/tokenize", {"model": server.model_name(), "messages": [{"role": "user", "content": text}]})
        assert answer.status == 200, answer.body
        return answer.json()["count"]
    assert count("a<|im_end|>b") > count("ab") + 2


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


def test_tools_with_choice_none_are_answered_as_text(client, name):
    messages = [{"role": "user", "content": "What is 1 + 2?"},
                {"role": "assistant", "content": "Adding.", "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1, \"b\": 2}"}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "3"}]
    answer = client.chat.completions.create(model=name, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=4)
    assert isinstance(answer.choices[0].message.content, str)
    assert answer.choices[0].message.tool_calls is None


def test_tools_without_a_choice_are_refused_with_the_remedy(client, name):
    with pytest.raises(openai.BadRequestError, match='"tool_choice": "none"'):
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}], tools=TOOLS, max_tokens=2)


def test_continue_final_message_ends_the_prompt_with_its_content(server):
    messages = [{"role": "user", "content": "Where is Paris?"}, {"role": "assistant", "content": "Paris lies in"}]
    body = {"model": server.model_name(), "messages": messages, "add_generation_prompt": False}

    def text(**more):
        tokens = server.post("/tokenize", {**body, **more}).json()["tokens"]
        return server.post("/detokenize", {"model": server.model_name(), "tokens": tokens}).json()["prompt"]

    assert text(continue_final_message=True).endswith("assistant\nParis lies in")
    assert text().endswith("assistant\nParis lies in<|im_end|>\n")


def test_n_gives_distinct_seeded_choices(client, name):
    fields = dict(model=name, prompt="My favourite word is", max_tokens=12, temperature=1.0, seed=5, n=4)
    first, second = client.completions.create(**fields), client.completions.create(**fields)
    assert [c.index for c in first.choices] == [0, 1, 2, 3]
    assert [c.text for c in first.choices] == [c.text for c in second.choices]
    assert len({c.text for c in first.choices}) > 1
    assert first.usage.completion_tokens >= 4


def test_stream_of_n_choices_equals_the_whole(client, name):
    fields = dict(model=name, prompt="My favourite word is", max_tokens=12, temperature=1.0, seed=5, n=3)
    whole = client.completions.create(**fields)
    texts = ["", "", ""]
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [c.text for c in whole.choices]


def test_several_prompts_give_a_choice_each(client, name):
    alone = [client.completions.create(model=name, prompt=p, max_tokens=6, temperature=0).choices[0].text
             for p in (FRANCE, "Water boils at")]
    both = client.completions.create(model=name, prompt=[FRANCE, "Water boils at"], max_tokens=6, temperature=0)
    assert [c.text for c in both.choices] == alone


def test_seed_decides_the_text(client, name):
    def text(seed):
        return client.completions.create(model=name, prompt="Random words:", max_tokens=16, temperature=1.0,
                                         seed=seed).choices[0].text
    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_completion_logprobs(client, name):
    choice = client.completions.create(model=name, prompt=FRANCE, max_tokens=5, temperature=0, logprobs=3).choices[0]
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 5
    assert "".join(logprobs.tokens) == choice.text
    for token, own, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert own <= 0 and top[token] == own and max(top.values()) == own  # greedy: the chosen one is the best
        assert len(top) >= 3


def test_chat_logprobs(client, name):
    choice = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hi"}], max_tokens=4,
                                            temperature=0, logprobs=True, top_logprobs=2).choices[0]
    assert 0 < len(choice.logprobs.content) <= 4
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0
        assert entry.token.encode() == bytes(entry.bytes)


def test_stop_string_ends_the_text_before_it(client, name):
    whole = client.completions.create(model=name, prompt=FRANCE, max_tokens=24, temperature=0).choices[0].text
    stop = whole[6:10]
    choice = client.completions.create(model=name, prompt=FRANCE, max_tokens=24, temperature=0, stop=[stop]).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.text == whole[:whole.index(stop)]
    streamed = "".join(c.choices[0].text for c in client.completions.create(
        model=name, prompt=FRANCE, max_tokens=24, temperature=0, stop=[stop], stream=True))
    assert streamed == choice.text


def test_stop_token_ends_the_answer(server):
    token = server.post("/tokenize", {"model": server.model_name(), "prompt": " Paris", "add_special_tokens": False})
    ids = token.json()["tokens"]
    body = server.complete(prompt=FRANCE, max_tokens=24, stop_token_ids=[ids[0]])
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] < 24


def test_ignore_eos_and_min_tokens_lengthen_the_answer(server):
    def count(**more):
        body = server.post("/v1/chat/completions", {
            "model": server.model_name(), "messages": [{"role": "user", "content": "Say only: ok"}], "temperature": 0,
            "max_tokens": 96, **more}).json()
        return body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]
    assert count(ignore_eos=True) == (96, "length")
    plain, _ = count()
    assert count(min_tokens=min(96, plain + 8))[0] >= min(96, plain + 8)


def test_echo_gives_the_prompt_back(client, name):
    answer = client.completions.create(model=name, prompt=FRANCE, max_tokens=4, temperature=0, echo=True)
    plain = client.completions.create(model=name, prompt=FRANCE, max_tokens=4, temperature=0)
    assert answer.choices[0].text == FRANCE + plain.choices[0].text


def test_logit_bias_forces_and_forbids_a_token(server, client, name):
    ids = server.post("/tokenize", {"model": name, "prompt": " banana", "add_special_tokens": False}).json()["tokens"]
    forced = client.completions.create(model=name, prompt=FRANCE, max_tokens=1, temperature=0,
                                       logit_bias={str(ids[0]): 100})
    expected = server.post("/detokenize", {"model": name, "tokens": ids[:1]}).json()["prompt"]
    assert forced.choices[0].text == expected
    first = client.completions.create(model=name, prompt=FRANCE, max_tokens=1, temperature=0).choices[0].text
    first_id = server.post("/tokenize", {"model": name, "prompt": first, "add_special_tokens": False}).json()["tokens"][0]
    forbidden = client.completions.create(model=name, prompt=FRANCE, max_tokens=1, temperature=0,
                                          logit_bias={str(first_id): -100})
    assert forbidden.choices[0].text != first


def test_penalties_change_a_repeating_text(client, name):
    fields = dict(model=name, prompt="one one one one one one one one one one", max_tokens=24, temperature=0)
    plain = client.completions.create(**fields).choices[0].text
    assert client.completions.create(**fields, frequency_penalty=2.0).choices[0].text != plain
    assert client.completions.create(**fields, extra_body={"repetition_penalty": 1.8}).choices[0].text != plain


def test_top_k_1_and_tiny_top_p_and_min_p_1_are_greedy(client, name):
    fields = dict(model=name, prompt=FRANCE, max_tokens=8, seed=3)
    greedy = client.completions.create(**fields, temperature=0).choices[0].text
    for more in (dict(extra_body={"top_k": 1}), dict(top_p=1e-6), dict(extra_body={"min_p": 1.0})):
        assert client.completions.create(**fields, temperature=1.5, **more).choices[0].text == greedy


def test_prompt_may_be_token_ids(server):
    ids = server.post("/tokenize", {"model": server.model_name(), "prompt": FRANCE}).json()["tokens"]
    assert server.complete(prompt=ids, max_tokens=6)["choices"][0]["text"] == \
        server.complete(prompt=FRANCE, max_tokens=6)["choices"][0]["text"]


@pytest.mark.parametrize("text", ["Hello world", "naïve café", "日本語 🦜", " a\n\tb  c", "123 4567"])
def test_tokenize_and_detokenize_are_inverse(server, text):
    answer = server.post("/tokenize", {"model": server.model_name(), "prompt": text, "add_special_tokens": False}).json()
    assert answer["count"] == len(answer["tokens"]) > 0
    assert answer["max_model_len"] > 0
    back = server.post("/detokenize", {"model": server.model_name(), "tokens": answer["tokens"]}).json()
    assert back["prompt"] == text


def test_every_chunk_of_a_stream_is_valid_utf8(server):
    """Forced tokens that each hold a part of a character come out as the text that they are together."""
    def of(route, **fields):
        return server.post(route, {"model": server.model_name(), **fields}).json()
    ids = of("/tokenize", prompt="🦜", add_special_tokens=False)["tokens"]
    assert len(ids) > 1
    count = 6
    chunks = [e["choices"][0]["text"] for e in
              Stream(server, prompt="Emoji:", max_tokens=count, ignore_eos=True, logit_bias={str(ids[0]): 100})]
    made = of("/detokenize", tokens=[ids[0]] * count)["prompt"]
    assert "".join(chunks) == made


def test_unknown_fields_are_ignored(server):
    assert server.complete(prompt=FRANCE, max_tokens=1, some_field_of_tomorrow={"a": [1]})["choices"]


def test_plain_routes_answer(server):
    assert server.get("/health").status == 200
    assert server.get("/ping").status == 200
    assert "version" in server.get("/version").json()
    assert server.get("/load").status == 200
