"""Whole answers: their shapes, and that they are what the rest of Motley gives."""
import json
import math
import os
import subprocess
import threading

import pytest

from conftest import FRANCE
from motley import LLM, CompletionOutput, Logprob, RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12)
PROMPTS = [FRANCE, "Once upon a time", "2 + 2 =", "naïve 日本語 🙂"]


def ids_of(outputs):
    return [[completion.token_ids for completion in output.outputs] for output in outputs]


def test_generate_has_the_shapes_of_vllm(llm):
    [output] = llm.generate(FRANCE, GREEDY)
    assert isinstance(output, RequestOutput) and isinstance(output.outputs[0], CompletionOutput)
    assert output.prompt == FRANCE and output.prompt_token_ids == llm.tokenize(FRANCE) and output.finished
    [completion] = output.outputs
    assert completion.index == 0 and completion.finish_reason == "length" and completion.finished()
    assert len(completion.token_ids) == 12 and "Paris" in completion.text
    assert completion.logprobs is None and completion.cumulative_logprob is None and completion.stop_reason is None


@pytest.mark.skipif(not os.environ.get("MOTLEY_TEST_COMMAND"), reason="no motley command to compare with")
@pytest.mark.parametrize("prompt", PROMPTS)
def test_generate_equals_the_command(llm, model, prompt):
    out = subprocess.run([os.environ["MOTLEY_TEST_COMMAND"], "complete", model, "--json", "--prompt", prompt,
                          "--max-tokens", "12", "--logprobs", "3", "--max-model-len", "2048"],
                         capture_output=True, check=True, timeout=120).stdout
    told = json.loads(out)
    [output] = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=12, logprobs=3))
    assert output.prompt_token_ids == told["prompt_token_ids"]
    assert output.outputs[0].token_ids == told["token_ids"]
    assert output.outputs[0].text == told["text"]
    assert output.outputs[0].finish_reason == told["finish_reason"]
    for mine, theirs in zip(output.outputs[0].logprobs, told["logprobs"], strict=True):
        assert [[id_, entry.logprob] for id_, entry in mine.items()] == theirs["top"]


def test_batch_equals_singles(llm):
    together = llm.generate(PROMPTS, GREEDY)
    assert [output.prompt for output in together] == PROMPTS
    assert ids_of(together) == ids_of(llm.generate(prompt, GREEDY)[0] for prompt in PROMPTS)


def test_token_ids_equal_their_text(llm):
    ids = llm.tokenize(FRANCE)
    expected = ids_of(llm.generate(FRANCE, GREEDY))
    for prompt in (ids, [ids], {"prompt_token_ids": ids}, [{"prompt_token_ids": ids}]):
        [output] = llm.generate(prompt, GREEDY)
        assert ids_of([output]) == expected and output.prompt is None and output.prompt_token_ids == ids
    assert ids_of(llm.generate([{"prompt": FRANCE}], GREEDY)) == expected
    assert llm.generate([], GREEDY) == []


def test_parameters_for_each_prompt(llm):
    lengths = [3, 7]
    outputs = llm.generate(PROMPTS[:2], [SamplingParams(temperature=0, max_tokens=n) for n in lengths])
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths


def test_more_prompts_than_run_at_once(llm):
    outputs = llm.generate([[i + 100, i + 200] for i in range(1500)], SamplingParams(temperature=0, max_tokens=1))
    assert [output.prompt_token_ids[0] for output in outputs] == list(range(100, 1600))
    assert all(len(output.outputs[0].token_ids) == 1 for output in outputs)


def test_n_answers_differ_and_the_seed_repeats_them(llm):
    params = SamplingParams(n=3, temperature=1.2, max_tokens=12, seed=7)
    [output] = llm.generate(FRANCE, params)
    assert [completion.index for completion in output.outputs] == [0, 1, 2]
    assert len({tuple(completion.token_ids) for completion in output.outputs}) == 3
    assert ids_of(llm.generate(FRANCE, params)) == ids_of([output])
    assert ids_of(llm.generate(FRANCE, SamplingParams(n=3, temperature=1.2, max_tokens=12, seed=8))) != ids_of([output])


def test_seed_of_the_llm_repeats_its_calls(model):
    params = SamplingParams(temperature=1.2, max_tokens=8)
    runs = []
    for seed in (5, 5, 6):
        mine = LLM(model=model, seed=seed, max_model_len=256)
        runs.append(ids_of(mine.generate([FRANCE, FRANCE], params) + mine.generate(FRANCE, params)))
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]  # equal prompts of one call do not get equal noise


def test_stop_strings_and_stop_tokens(llm):
    [whole] = llm.generate(FRANCE, GREEDY)
    text, ids = whole.outputs[0].text, whole.outputs[0].token_ids
    stop = text[5:9]
    [cut] = llm.generate(FRANCE, SamplingParams(temperature=0, max_tokens=12, stop=stop))
    assert cut.outputs[0].text == text[:text.index(stop)]
    assert cut.outputs[0].finish_reason == "stop" and cut.outputs[0].stop_reason == stop
    [kept] = llm.generate(FRANCE, SamplingParams(temperature=0, max_tokens=12, stop=["#", stop],
                                                 include_stop_str_in_output=True))
    assert kept.outputs[0].text == text[:text.index(stop) + len(stop)]
    [by_id] = llm.generate(FRANCE, SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[ids[3]]))
    assert by_id.outputs[0].token_ids == ids[:ids.index(ids[3]) + 1]
    assert by_id.outputs[0].finish_reason == "stop" and by_id.outputs[0].stop_reason == ids[3]
    [late] = llm.generate(FRANCE, SamplingParams(temperature=0, max_tokens=12, min_tokens=12, stop=stop))
    assert late.outputs[0].text == text


def test_end_token_stands_in_the_ids_and_not_in_the_text(llm):
    messages = [{"role": "user", "content": "Say only: ok"}]
    [output] = llm.chat(messages, SamplingParams(temperature=0, max_tokens=200))
    completion = output.outputs[0]
    assert completion.finish_reason == "stop" and completion.stop_reason is None
    assert completion.token_ids[-1] == llm.info.eos_token_id and "<|im_end|>" not in completion.text
    [on] = llm.chat(messages, SamplingParams(temperature=0, max_tokens=len(completion.token_ids) + 4, ignore_eos=True))
    assert on.outputs[0].finish_reason == "length"


def test_logprobs_are_of_the_chosen_token_first(llm):
    [output] = llm.generate(FRANCE, SamplingParams(temperature=1.5, max_tokens=8, seed=1, logprobs=4))
    completion = output.outputs[0]
    assert len(completion.logprobs) == len(completion.token_ids)
    for id_, entries in zip(completion.token_ids, completion.logprobs, strict=True):
        assert next(iter(entries)) == id_ and len(entries) in (4, 5)
        chosen = entries[id_]
        assert isinstance(chosen, Logprob) and chosen.decoded_token == llm.detokenize([id_], False)
        ranked = sorted((entry.rank, entry.logprob) for entry in entries.values() if entry.rank is not None)
        assert [rank for rank, _ in ranked] == [1, 2, 3, 4]
        assert [value for _, value in ranked] == sorted((value for _, value in ranked), reverse=True)
        assert chosen.rank is not None or chosen.logprob <= ranked[-1][1]
    total = sum(entries[id_].logprob for id_, entries in zip(completion.token_ids, completion.logprobs, strict=True))
    assert math.isclose(completion.cumulative_logprob, total, rel_tol=1e-6)
    [bare] = llm.generate(FRANCE, SamplingParams(temperature=0, max_tokens=2, logprobs=0))
    assert [list(entries) for entries in bare.outputs[0].logprobs] == [[id_] for id_ in bare.outputs[0].token_ids]


def test_logit_bias_decides(llm):
    [output] = llm.generate(FRANCE, SamplingParams(temperature=0, max_tokens=3, logit_bias={1234: 1000}))
    assert output.outputs[0].token_ids == [1234] * 3


def test_chat_is_the_template_and_generate(llm):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    [answer] = llm.chat(messages, GREEDY)
    assert "<|im_start|>user\nWhat is the capital of France?<|im_end|>" in answer.prompt
    assert answer.prompt.endswith("<|im_start|>assistant\n")
    assert ids_of([answer]) == ids_of(llm.generate(answer.prompt, GREEDY))
    both = llm.chat([messages, [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]], GREEDY)
    assert len(both) == 2 and ids_of(both[:1]) == ids_of([answer])
    assert not llm.chat(messages, GREEDY, add_generation_prompt=False)[0].prompt.endswith("assistant\n")


def test_chat_users_cannot_write_special_tokens(llm):
    end = llm.info.eos_token_id
    plain, sly = (llm.chat([{"role": "user", "content": text}], GREEDY)[0].prompt_token_ids
                  for text in ("hi", "hi<|im_end|>"))
    assert plain.count(end) == sly.count(end)


def test_tokenize_round_trip(llm):
    for prompt in PROMPTS:
        assert llm.detokenize(llm.tokenize(prompt)) == prompt
    assert llm.tokenize("<|im_end|>") == [llm.info.eos_token_id]
    assert llm.detokenize([llm.info.eos_token_id]) == ""
    assert llm.detokenize([llm.info.eos_token_id], skip_special_tokens=False) == "<|im_end|>"


def test_info(llm):
    info = llm.info
    assert info.architecture == "llama" and info.device == "CPU:0" and info.max_model_len == 2048
    assert (info.layers, info.hidden, info.heads, info.kv_heads, info.head_dim) == (30, 576, 9, 3, 64)
    assert info.vocab_size == 49152 and info.has_chat_template
    for name in (name for name in vars(type(info)) if not name.startswith("_")):
        assert f"{name}={getattr(info, name)!r}" in repr(info)
    assert str(info).startswith("ModelInfo(name='")


def test_prefix_cache_is_used(model):
    mine = LLM(model=model, max_model_len=512)
    prompt = list(range(1000, 1100))
    first, second = (mine.generate(prompt, SamplingParams(temperature=0, max_tokens=2))[0] for _ in range(2))
    assert first.num_cached_tokens == 0 and 64 <= second.num_cached_tokens < 100
    assert ids_of([first]) == ids_of([second])


def test_threads_share_one_llm(llm):
    expected = ids_of(llm.generate(PROMPTS, GREEDY))
    found = [None] * len(PROMPTS)

    def work(i):
        found[i] = ids_of(llm.generate(PROMPTS[i], GREEDY))[0]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == expected
