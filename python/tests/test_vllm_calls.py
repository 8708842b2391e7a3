"""Calls as they are written for vLLM: what may stand in them, in which order, and what it means."""
import copy
import inspect
import json

import pytest

from conftest import FRANCE
from hf_folder import write_hf_folder
from motley import LLM, Error, SamplingParams, Tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=6)
HELLO = [{"role": "user", "content": "Say <|im_end|> twice"}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
# Tells of all that a template can be given.
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
            "{% for d in documents or [] %}({{ d.text }}){% endfor %}{{ mood }}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def ids_of(outputs):
    return [[completion.token_ids for completion in output.outputs] for output in outputs]


def test_generate_takes_its_arguments_in_order(llm):
    expected = ids_of(llm.generate([FRANCE] * 2, GREEDY))
    assert ids_of(llm.generate([FRANCE] * 2, GREEDY, True, None, None)) == expected
    assert ids_of(llm.generate([FRANCE] * 2, GREEDY, False, None, [0, 0])) == expected
    assert ids_of(llm.generate(prompts=[FRANCE] * 2, sampling_params=[GREEDY] * 2, use_tqdm=True, lora_request=None,
                               priority=None, tokenization_kwargs=None)) == expected
    assert list(inspect.signature(llm.generate).parameters)[:5] == [
        "prompts", "sampling_params", "use_tqdm", "lora_request", "priority"]


def test_use_tqdm_shows_nothing(llm, capfd):
    llm.generate(FRANCE, GREEDY, use_tqdm=True)
    assert capfd.readouterr() == ("", "")


def test_chat_takes_its_arguments_in_order(llm):
    expected = llm.chat(HELLO, GREEDY, chat_template=TEMPLATE, tools=TOOLS, chat_template_kwargs={"mood": "calm"})
    again = llm.chat(HELLO, GREEDY, True, None, TEMPLATE, "auto", True, False, TOOLS, {"mood": "calm"})
    assert ids_of(again) == ids_of(expected) and again[0].prompt == expected[0].prompt
    assert list(inspect.signature(llm.chat).parameters)[:10] == [
        "messages", "sampling_params", "use_tqdm", "lora_request", "chat_template", "chat_template_content_format",
        "add_generation_prompt", "continue_final_message", "tools", "chat_template_kwargs"]


def test_chat_options_reach_the_template(llm):
    options = {"chat_template": TEMPLATE, "tools": TOOLS,
               "chat_template_kwargs": {"mood": "calm", "documents": [{"text": "page"}]}}
    text = "<|im_start|>user\nSay <|im_end|> twice<|im_end|>\n[get_weather](page)calm<|im_start|>assistant\n"
    [answer] = llm.chat(HELLO, GREEDY, **options)
    assert answer.prompt == text
    assert answer.prompt_token_ids.count(llm.info.eos_token_id) == 1, "the user's must be words"
    assert next(llm.stream_chat(HELLO, GREEDY, **options)).prompt == text
    assert [output.prompt for output in llm.chat([HELLO, HELLO], GREEDY, **options)] == [text] * 2


def test_tools_reach_the_models_own_template(model, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE)
    mine = LLM(model=model, max_model_len=256, chat_template=file)
    assert "[get_weather]" in mine.chat(HELLO, GREEDY, tools=TOOLS)[0].prompt
    assert "[get_weather]" not in mine.chat(HELLO, GREEDY, tools=[])[0].prompt


def test_chat_goes_on_with_the_final_message(llm):
    messages = [{"role": "user", "content": "What is the capital of France?"},
                {"role": "assistant", "content": "The capital of France is"}]
    [answer] = llm.chat(messages, GREEDY, add_generation_prompt=False, continue_final_message=True)
    assert answer.prompt.endswith("<|im_start|>assistant\nThe capital of France is")
    assert "Paris" in answer.outputs[0].text
    stream = llm.stream_chat(messages, GREEDY, add_generation_prompt=False, continue_final_message=True)
    assert "".join(piece.outputs[0].text for piece in stream) == answer.outputs[0].text


def test_prompt_dicts(llm):
    ids = llm.tokenize(FRANCE)
    expected = ids_of(llm.generate(FRANCE, GREEDY))
    for prompt in ({"prompt": FRANCE}, {"prompt_token_ids": ids}, {"prompt": "ignored", "prompt_token_ids": ids},
                   {"prompt": FRANCE, "multi_modal_data": None, "mm_processor_kwargs": {}, "cache_salt": None}):
        assert ids_of(llm.generate(prompt, GREEDY)) == ids_of(llm.generate([prompt], GREEDY)) == expected


def test_clone_shares_nothing():
    params = SamplingParams(temperature=0.5, stop=["a"], logit_bias={1: 2.0})
    twin = params.clone()
    assert twin == params == copy.deepcopy(params)
    twin.stop.append("b")
    twin.logit_bias[3] = 4.0
    assert params == SamplingParams(temperature=0.5, stop=["a"], logit_bias={1: 2.0})


def test_tokenizer(llm):
    tokenizer = llm.get_tokenizer()
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.encode(FRANCE) == llm.tokenize(FRANCE) and tokenizer.decode(tokenizer.encode(FRANCE)) == FRANCE
    assert len(tokenizer) == tokenizer.vocab_size == 49152
    assert tokenizer.eos_token_id == llm.info.eos_token_id and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer.eos_token_id) == "<|im_end|>"
    assert tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=True) == ""
    with pytest.raises(Error, match="99999"):
        tokenizer.decode([99999])


def test_chat_template_of_the_tokenizer(llm):
    tokenizer = llm.get_tokenizer()
    [answer] = llm.chat(HELLO, GREEDY)
    assert tokenizer.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True) == answer.prompt
    assert tokenizer.apply_chat_template(HELLO, add_generation_prompt=True) == answer.prompt_token_ids
    assert tokenizer.apply_chat_template(HELLO, return_tensors=None, truncation=False) == tokenizer.apply_chat_template(HELLO)
    with pytest.raises(Error, match="max_length"):
        tokenizer.apply_chat_template(HELLO, max_length=2)
    assert not tokenizer.apply_chat_template(HELLO, tokenize=False).endswith("assistant\n")
    told = tokenizer.apply_chat_template(HELLO, chat_template=TEMPLATE, tools=TOOLS, documents=[{"text": "page"}],
                                         mood="calm", tokenize=False)
    assert told.endswith("[get_weather](page)calm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_hf_folder(path)
    return path


def advise(folder, advice):
    (folder / "generation_config.json").write_text(json.dumps(advice))
    return LLM(model=folder)


def test_default_sampling_is_what_the_model_advises(llm, folder):
    assert llm.get_default_sampling_params() == SamplingParams()
    mine = advise(folder, {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05,
                           "max_new_tokens": 5, "do_sample": True, "eos_token_id": None})
    advised = mine.get_default_sampling_params()
    assert advised == SamplingParams(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05, max_tokens=5)
    mine = advise(folder, {"temperature": 0, "max_new_tokens": 3})
    expected = ids_of(mine.generate("hi", SamplingParams(temperature=0, max_tokens=3)))
    assert ids_of(mine.generate("hi")) == ids_of(mine.generate("hi", None)) == expected
    assert ids_of(mine.chat(HELLO)) == ids_of(mine.chat(HELLO, mine.get_default_sampling_params()))
    assert len(mine.generate("hi", SamplingParams(ignore_eos=True))[0].outputs[0].token_ids) == 16


@pytest.mark.parametrize("advice, text", [
    ({"temperature": "hot"}, "temperature.*must be a number"), ({"top_k": 0.5}, "top_k"),
    ({"top_p": 2}, "top_p"), ({"max_new_tokens": -1}, "max_new_tokens")])
def test_advice_that_cannot_be_is_refused_where_it_is_used(folder, advice, text):
    mine = advise(folder, advice)
    with pytest.raises(ValueError, match="generation_config.json: .*" + text):
        mine.generate("hi")
    assert mine.generate("hi", GREEDY)[0].finished
