"""The reference of benchmarks/perplexity: transformers in float32 on a GGUF file's de-quantised weights, on the CPU.

Takes one JSON object on standard input: model (path of the GGUF file), ids (windows of token ids) and first (of each
window, the ids from this one on count). Prints {"nll_sums": [nats of each window], "by": versions}.
Needs torch, transformers, accelerate and gguf from PyPI; benchmarks/perplexity --reference makes their environment.
SPDX-License-Identifier: Apache-2.0
"""
import json
import sys
from pathlib import Path

import torch
import transformers


def main() -> None:
    work = json.load(sys.stdin)
    path = Path(work["model"]).resolve()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name,
                                                              dtype=torch.float32).eval()
    first, sums = work["first"], []
    with torch.no_grad():
        for done, ids in enumerate(work["ids"]):
            ids = torch.tensor([ids])
            logits = model(ids).logits[0, first - 1:-1]
            sums.append(sum(torch.nn.functional.cross_entropy(part.double(), wanted, reduction="sum").item()
                            for part, wanted in zip(logits.split(64), ids[0, first:].split(64))))
            print(f"\rreference: window {done + 1} of {len(work['ids'])}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(json.dumps({"nll_sums": sums, "by": f"transformers {transformers.__version__}, torch {torch.__version__}"}))


main()
