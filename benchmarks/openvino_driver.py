"""One measurement of OpenVINO GenAI, which reads the GGUF file itself; cpu_vs_peers calls it.

Takes one JSON object on standard input: model, threads, prompts (lists of token ids; the first is run once uncounted,
each of the others is a pass, so that no cache of prompts helps). Prints one JSON object: per pass prefill_s (generate()
of one token, the first token's sampling included), load_s and version. Needs openvino-genai from PyPI.
SPDX-License-Identifier: Apache-2.0
"""
import json
import sys
import time

import numpy
import openvino
import openvino_genai


def main() -> None:
    work = json.load(sys.stdin)
    begin = time.perf_counter()
    pipeline = openvino_genai.LLMPipeline(work["model"], "CPU", INFERENCE_NUM_THREADS=work["threads"])
    load_s = time.perf_counter() - begin
    config = openvino_genai.GenerationConfig(max_new_tokens=1, ignore_eos=True, do_sample=False)
    times = []
    for prompt in work["prompts"]:
        ids = openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))
        mask = openvino.Tensor(numpy.ones((1, len(prompt)), dtype=numpy.int64))
        begin = time.perf_counter()
        pipeline.generate(openvino_genai.TokenizedInputs(ids, mask), config)
        times.append(time.perf_counter() - begin)
    print(json.dumps({"passes": [{"prefill_s": seconds} for seconds in times[1:]], "load_s": load_s,
                      "version": openvino_genai.__version__}))


main()
