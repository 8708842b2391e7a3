"""Answers piece by piece, and ways to end them early."""
import os
import signal
import subprocess
import sys
import threading

import pytest

from conftest import FRANCE
from motley import LLM, Error, SamplingParams

LONG = SamplingParams(temperature=0, max_tokens=1500, ignore_eos=True)


def test_pieces_make_the_whole(llm):
    params = SamplingParams(n=2, temperature=0.9, seed=3, max_tokens=20, logprobs=2, stop="zebra")
    [whole] = llm.generate(FRANCE, params)
    pieces = list(llm.stream(FRANCE, params))
    assert [piece.finished for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.prompt == FRANCE and piece.prompt_token_ids == whole.prompt_token_ids for piece in pieces)
    assert len({piece.request_id for piece in pieces}) == 1
    for completion in whole.outputs:
        parts = [part for piece in pieces for part in piece.outputs if part.index == completion.index]
        assert len(parts) > 1
        assert "".join(part.text for part in parts) == completion.text
        assert [id_ for part in parts for id_ in part.token_ids] == completion.token_ids
        assert [entries for part in parts for entries in part.logprobs] == completion.logprobs
        assert [part.finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1].finish_reason == completion.finish_reason
        assert parts[-1].cumulative_logprob == completion.cumulative_logprob


def test_pieces_never_cut_a_character(llm):
    ids = llm.tokenize("🙂日本語")
    assert len(ids) > 5  # characters of several tokens
    for id_ in ids:
        [piece] = llm.stream(FRANCE, SamplingParams(temperature=0, max_tokens=1, logit_bias={id_: 1000}))
        piece.outputs[0].text.encode()
        assert piece.outputs[0].token_ids == [id_]


def test_stream_chat_equals_chat(llm):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    params = SamplingParams(temperature=0, max_tokens=16)
    [whole] = llm.chat(messages, params)
    pieces = list(llm.stream_chat(messages, params))
    assert "".join(part.text for piece in pieces for part in piece.outputs) == whole.outputs[0].text
    assert pieces[0].prompt == whole.prompt


def test_cancel_ends_a_stream(llm):
    stream = llm.stream(FRANCE, LONG)
    first = next(stream)
    assert first.outputs[0].token_ids and not first.finished
    stream.cancel()
    rest = list(stream)
    assert rest[-1].finished and rest[-1].outputs[0].finish_reason == "abort"
    assert sum(len(part.token_ids) for piece in rest for part in piece.outputs) < 1400
    assert list(stream) == []


def test_cancel_from_another_thread_while_one_waits(llm):
    stream = llm.stream(FRANCE, LONG)
    begun = threading.Event()
    pieces = []

    def read():
        for piece in stream:
            pieces.append(piece)
            begun.set()
    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(60)  # this thread runs while the other waits inside: the GIL is free
    stream.cancel()
    reader.join(60)
    assert not reader.is_alive() and pieces[-1].outputs[0].finish_reason == "abort"


def test_with_block_and_end_of_life_cancel(model):
    mine = LLM(model=model, max_model_len=2048, max_num_seqs=1)
    with mine.stream(FRANCE, LONG) as stream:
        next(stream)
    stream = mine.stream(FRANCE, LONG)
    next(stream)
    del stream
    # One sequence runs at a time: this answer comes only when the two above are out of the way.
    [output] = mine.generate(FRANCE, SamplingParams(temperature=0, max_tokens=2))
    assert output.outputs[0].finish_reason == "length"


def test_stream_outlives_its_llm(model):
    mine = LLM(model=model, max_model_len=256)
    stream = mine.stream(FRANCE, SamplingParams(temperature=0, max_tokens=8))
    del mine
    assert sum(len(piece.outputs[0].token_ids) for piece in stream) == 8


def test_errors_of_a_request_come_at_once(llm):
    with pytest.raises(ValueError, match="temperature"):
        llm.stream(FRANCE, SamplingParams(temperature=-1))
    with pytest.raises(Error, match="prompt is empty"):
        llm.stream("")


# Interrupts itself once an answer has begun; the numbers are far beyond what could be generated in the time allowed.
INTERRUPTED = """
import os, signal, sys, threading
from motley import LLM, SamplingParams
llm = LLM(model=sys.argv[1], max_model_len=4096)
params = SamplingParams(n=16, temperature=1, max_tokens=4000, ignore_eos=True, seed=1)
prompt = "Once upon a time"
watch = llm.stream(prompt, SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True))
def interrupt():
    for _ in range(3): next(watch)  # steps run, the main thread waits in C++
    os.kill(os.getpid(), signal.SIGINT)
thread = threading.Thread(target=interrupt)
try:
    thread.start()
    if sys.argv[2] == "generate": llm.generate(prompt, params)
    else:
        for piece in llm.stream(prompt, params): pass
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted")
thread.join()
watch.cancel()
[after] = llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=2))
print(len(after.outputs[0].token_ids))
"""


@pytest.mark.parametrize("how", ["generate", "stream"])
def test_keyboard_interrupt_cancels_and_the_llm_goes_on(model, how):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, model, how], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["interrupted", "2"], done.stderr


def test_interrupt_ends_a_program(model):
    program = ("import sys; from motley import LLM, SamplingParams; llm = LLM(model=sys.argv[1], max_model_len=4096); "
               "s = llm.stream('Hi', SamplingParams(max_tokens=4000, ignore_eos=True)); next(s); "
               "print('begun', flush=True); llm.generate('Hi', SamplingParams(n=16, max_tokens=4000, ignore_eos=True))")
    process = subprocess.Popen([sys.executable, "-c", program, model], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT), errors
    assert b"KeyboardInterrupt" in errors


def test_works_from_any_folder(model, tmp_path):
    program = "import sys; from motley import LLM; print(LLM(sys.argv[1], max_model_len=64).info.device)"
    done = subprocess.run([sys.executable, "-c", program, model], cwd=tmp_path, capture_output=True, text=True,
                          timeout=60, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    assert done.stdout.strip() == "CPU:0" and done.stderr == ""
