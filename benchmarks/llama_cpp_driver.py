"""One measurement of llama.cpp, through the low-level interface of llama-cpp-python; cpu_vs_peers calls it.

Takes one JSON object on standard input: model, threads, prompts (equally long lists of token ids, one per stream),
output_len, iterations, and the settings flash_attention, kv_unified, batch, ubatch. All prompts are prefilled at once,
then every step decodes one greedy token for each stream in one batch. One untimed pass comes first. Prints one JSON
object: per pass prefill_s (until the first tokens are known), decode_s (from there to the last tokens) and the first
stream's token_ids; load_s (model and context, the start of Python and of the library left out), resident_bytes (growth
of the process's peak over what Python had before the load), system (what the library was built with) and version.
SPDX-License-Identifier: Apache-2.0
"""
import ctypes
import json
import sys
import time

import llama_cpp
import numpy

KV_PADDING = 256  # llama.cpp rounds each sequence's cells up to this


def status_bytes(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))


def fail(text: str) -> None:
    sys.exit(f"llama.cpp: {text}")


class Llama:
    """A model, a context and a batch as wide as the work needs."""

    def __init__(self, work: dict):
        self.streams = len(work["prompts"])
        length = len(work["prompts"][0]) + work["output_len"]
        cells = -(-length // KV_PADDING) * KV_PADDING
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(work["model"].encode(), model_params)
        if not self.model:
            fail(f"cannot load {work['model']}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = cells * self.streams
        params.n_seq_max = self.streams
        params.n_batch = max(work["batch"], self.streams * len(work["prompts"][0]))
        params.n_ubatch = work["ubatch"]
        params.n_threads = params.n_threads_batch = work["threads"]
        params.flash_attn_type = int(work["flash_attention"])
        params.kv_unified = work["kv_unified"]
        params.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            fail("no context")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def step(self, tokens: list[list[int]], position: int) -> list[list[int]]:
        """Runs tokens[stream] from position on; returns the greedy next token of each stream."""
        at = 0
        for stream, row in enumerate(tokens):
            for offset, token in enumerate(row):
                self.batch.token[at] = token
                self.batch.pos[at] = position + offset
                self.batch.n_seq_id[at] = 1
                self.batch.seq_id[at][0] = stream
                self.batch.logits[at] = offset + 1 == len(row)
                at += 1
        self.batch.n_tokens = at
        code = llama_cpp.llama_decode(self.context, self.batch)
        if code != 0:
            fail(f"llama_decode returned {code}")
        address = llama_cpp.llama_get_logits(self.context)  # the rows asked for, in the order of the batch
        logits = numpy.ctypeslib.as_array(address, shape=(len(tokens) * self.vocab_size,))
        return [[int(row.argmax())] for row in logits.reshape(len(tokens), self.vocab_size)]

    def run(self, prompts: list[list[int]], output_len: int) -> dict:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        begin = time.perf_counter()
        tokens = self.step(prompts, 0)
        first = time.perf_counter()
        out = [tokens]
        for i in range(output_len - 1):
            out.append(self.step(out[-1], len(prompts[0]) + i))
        return {"prefill_s": first - begin, "decode_s": time.perf_counter() - first,
                "token_ids": [step[0][0] for step in out]}


def main() -> None:
    work = json.load(sys.stdin)
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    before = status_bytes("VmRSS")
    begin = time.perf_counter()
    llama = Llama(work)
    load_s = time.perf_counter() - begin
    llama.run(work["prompts"], min(work["output_len"], 4))
    passes = [llama.run(work["prompts"], work["output_len"]) for _ in range(work["iterations"])]
    print(json.dumps({"passes": passes, "load_s": load_s, "resident_bytes": status_bytes("VmHWM") - before,
                      "system": llama_cpp.llama_print_system_info().decode(), "version": llama_cpp.__version__}))


main()
