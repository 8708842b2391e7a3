"""What cannot be: each refusal names the argument, in an exception of the right kind."""
import ast
from pathlib import Path

import pytest

import motley
from conftest import FRANCE
from motley import LLM, Error, InvalidArgumentError, NotFoundError, SamplingParams, UnimplementedError

ONE = SamplingParams(temperature=0, max_tokens=1)
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("fields, text", [
    ({"temperature": -1}, "temperature must be non-negative"), ({"top_p": 0}, "top_p"), ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"), ({"min_p": 2}, "min_p"), ({"n": 0}, "n must be 1 to 128"), ({"n": 129}, "n must be"),
    ({"n": -1}, "n must be from 0"), ({"max_tokens": 0}, "max_tokens"), ({"min_tokens": 17}, "min_tokens"),
    ({"presence_penalty": 3}, "presence_penalty"), ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logprobs": 21}, "logprobs"), ({"logprobs": -1}, "logprobs"), ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 65}, "stop"), ({"stop_token_ids": [49152]}, "stop_token_ids"),
    ({"logit_bias": {49152: 1}}, "logit_bias"), ({"logit_bias": {1: float("nan")}}, "logit_bias"),
    ({"seed": 2**64}, "seed")])
def test_parameters_out_of_range(llm, fields, text):
    with pytest.raises(InvalidArgumentError, match=text) as caught:
        llm.generate(FRANCE, SamplingParams(**fields))
    assert isinstance(caught.value, ValueError) and caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("fields, text", [
    ({"temperature": "hot"}, "temperature must be a number, not str"), ({"n": 1.5}, "n must be an int"),
    ({"max_tokens": "8"}, "max_tokens"), ({"ignore_eos": 1}, "ignore_eos must be a bool"), ({"stop": 5}, "stop"),
    ({"stop": ["a", 5]}, r"stop\[1\]"), ({"stop_token_ids": "ab"}, "stop_token_ids"), ({"logit_bias": [1]}, "logit_bias")])
def test_parameters_of_the_wrong_type(llm, fields, text):
    with pytest.raises(TypeError, match=text):
        llm.generate(FRANCE, SamplingParams(**fields))


def test_unknown_and_unbuilt_arguments(model):
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1)
    with pytest.raises(UnimplementedError, match="prompt_logprobs=1 is not supported"):
        SamplingParams(prompt_logprobs=1)
    assert SamplingParams(prompt_logprobs=None, best_of=1) == SamplingParams()
    with pytest.raises(TypeError, match="modle"):
        LLM(model=model, modle=1)
    with pytest.raises(UnimplementedError, match="dtype='bfloat16'"):
        LLM(model=model, dtype="bfloat16")
    with pytest.raises(NotImplementedError, match="gpu_memory_utilization"):
        LLM(model=model, gpu_memory_utilization=0.9)


@pytest.mark.parametrize("options, kind, text", [
    ({"tensor_parallel_size": 2}, InvalidArgumentError, "2 devices are asked for"),
    ({"devices": "CPU:0,cpu:0"}, InvalidArgumentError, "CPU:0 is listed twice"),
    ({"devices": ["CPU:0", "CPU:0/cores=0"]}, InvalidArgumentError, "share cores"),
    ({"devices": "GPU:0"}, NotFoundError, "GPU:0 is not there"),
    ({"devices": "GPU:0", "device_map": "GPU:0"}, InvalidArgumentError, "NAME=SIM:PRESET"),
    ({"devices": "GPU:0", "device_map": "GPU:0=SIM:no"}, NotFoundError, "SIM:no"),  # no simulations in the package
    ({"max_model_len": 10**6}, InvalidArgumentError, "context"),
    ({"quality": "best"}, InvalidArgumentError, "'best'"),
    ({"kv_cache_dtype": "fp6"}, InvalidArgumentError, "fp6"), ({"block_size": 0}, InvalidArgumentError, "block"),
    ({"chat_template": "/nonexistent"}, NotFoundError, "/nonexistent"), ({"devices": 5}, TypeError, "devices")])
def test_llm_refuses_options(model, options, kind, text):
    with pytest.raises(kind, match=text):
        LLM(model=model, **options)


def test_llm_refuses_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nonexistent"):
        LLM(model="/nonexistent.gguf")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(Error, match="broken.gguf") as caught:
        LLM(model=broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt, kind, text", [
    ("", Error, "prompt is empty"), ([49152], Error, "49152"), ([-1], Error, "-1"), ("word " * 3000, Error, "2048"),
    (5, TypeError, "int"), ([["a"]], TypeError, "token id|must be"), ({"text": "x"}, TypeError, "text"),
    (["good", ""], Error, "prompt 1: the prompt is empty"), ([FRANCE, 7.5], TypeError, "float")])
def test_prompts_that_cannot_be(llm, prompt, kind, text):
    with pytest.raises(kind, match=text):
        llm.generate(prompt, SamplingParams(temperature=0, max_tokens=2))
    assert llm.generate(FRANCE, SamplingParams(max_tokens=1))[0].finished


@pytest.mark.parametrize("messages", [[], "hi", ["hi"], [{"content": "hi"}], [{"role": "user", "content": 5}]])
def test_messages_that_cannot_be(llm, messages):
    with pytest.raises((Error, TypeError)):
        llm.chat(messages, SamplingParams(max_tokens=1))


def test_other_refusals(llm):
    for count in (0, 1, 3):
        with pytest.raises(ValueError, match=f"{count} sampling parameters in a list for 2 prompts"):
            llm.generate([FRANCE] * 2, [SamplingParams()] * count)
    with pytest.raises(ValueError, match="2 sampling parameters in a list for 1 prompts"):
        llm.chat(HELLO, [SamplingParams()] * 2)
    for params, kind in (({"temperature": 0}, "dict"), ([5], "int"), (5, "int")):
        with pytest.raises(TypeError, match=f"SamplingParams or a list of them, not {kind}"):
            llm.generate(FRANCE, params)
    with pytest.raises(Error, match="99999"):
        llm.detokenize([99999])


@pytest.mark.parametrize("name, value", [
    ("lora_request", "adapter"), ("priority", [1]), ("priority", [0, 0]), ("tokenization_kwargs", {"a": True})])
def test_generate_refuses_by_name(llm, name, value):
    with pytest.raises(UnimplementedError, match=f"{name}=.* is not supported"):
        llm.generate(FRANCE, ONE, **{name: value})


@pytest.mark.parametrize("name, value, kind, text", [
    ("lora_request", "adapter", UnimplementedError, "lora_request='adapter' is not supported"),
    ("chat_template_content_format", "openai", UnimplementedError, "chat_template_content_format='openai'"),
    ("mm_processor_kwargs", {"a": 1}, UnimplementedError, "mm_processor_kwargs"),
    ("use_tqdm", print, TypeError, "use_tqdm must be a bool"),
    ("chat_template", "/a/file.jinja", InvalidArgumentError, "chat_template must be a template's text"),
    ("chat_template", "{% for %}", InvalidArgumentError, "chat_template: "),
    ("chat_template", 5, TypeError, "chat_template must be a str"),
    ("continue_final_message", True, ValueError, "add_generation_prompt"),
    ("continue_final_message", "yes", TypeError, "continue_final_message must be a bool"),
    ("tools", [5], TypeError, "tools must be a list of dicts"), ("tools", "look", TypeError, "tools must be"),
    ("tools", [{"function": print}], TypeError, "tools: .*not JSON serializable"),
    ("chat_template_kwargs", {"messages": []}, ValueError, "chat_template_kwargs must not set messages"),
    ("chat_template_kwargs", {"tools": []}, ValueError, "chat_template_kwargs must not set tools"),
    ("chat_template_kwargs", {"x": float("nan")}, ValueError, "chat_template_kwargs: "),
    ("chat_template_kwargs", {"documents": 5}, TypeError, "documents must be a list of dicts")])
def test_chat_refuses_by_name(llm, name, value, kind, text):
    with pytest.raises(kind, match=text):
        llm.chat(HELLO, ONE, **{name: value})


@pytest.mark.parametrize("prompt, kind, text", [
    ({"prompt": "x", "multi_modal_data": {"image": 1}}, UnimplementedError, "multi_modal_data"),
    ({"prompt": "x", "cache_salt": "s"}, UnimplementedError, "cache_salt='s' is not supported"),
    ({}, TypeError, "keys"), ({"prompt": 5}, TypeError, "prompt must be a str"),
    ({"prompt": None}, ValueError, "prompt is empty")])
def test_prompt_dicts_that_cannot_be(llm, prompt, kind, text):
    with pytest.raises(kind, match=text):
        llm.generate(prompt, ONE)


@pytest.mark.parametrize("call", [
    lambda llm, text: llm.generate(text, ONE), lambda llm, text: llm.generate([FRANCE, {"prompt": text}], ONE),
    lambda llm, text: llm.stream(text, ONE), lambda llm, text: llm.chat([{"role": "user", "content": text}], ONE),
    lambda llm, text: llm.chat(HELLO, ONE, tools=[{"function": {"name": text}}]),
    lambda llm, text: llm.chat(HELLO, ONE, chat_template="{{ x }}" + text), lambda llm, text: llm.tokenize(text),
    lambda llm, text: llm.generate(FRANCE, SamplingParams(stop=text)),
    lambda llm, text: llm.get_tokenizer().encode(text), lambda llm, text: LLM(model=text)])
def test_a_lone_surrogate_is_named(llm, call):
    with pytest.raises(InvalidArgumentError, match=r"holds the lone surrogate U\+D83D"):
        call(llm, "half a smile: \ud83d")
    assert llm.tokenize("\U0001f642") == llm.tokenize(b"\xf0\x9f\x99\x82".decode())


def test_stub_names_what_the_module_has():
    folder = Path(motley.__file__).parent
    assert (folder / "py.typed").exists()
    for node in ast.parse((folder / "_motley.pyi").read_text()).body:
        if not isinstance(node, ast.ClassDef):
            continue
        real = {name for name in vars(getattr(motley._motley, node.name)) if not name.startswith("_")}
        told = {getattr(item, "name", None) or item.target.id for item in node.body} - {"__init__"}
        assert told == real, node.name
