#!/usr/bin/env python3
"""Golden logits of real models: what transformers computes in float32 on the de-quantised weights of the GGUF file.

Needs torch, transformers, accelerate and gguf from PyPI; run by hand, its output is committed:
    tools/golden/logits.py NAME MODEL.gguf tests/golden/NAME_logits.json        NAME: one of MODELS below

For each text: its ids and, per position, the TOP largest log-probabilities of the next token (all others lumped into the
rest). For each prompt: the greedy continuation, with the gap between the two best logits at each step. The weights that
transformers' own GGUF conversion gives must be those that `gguf` de-quantises.
"""
import json
import os
import sys
from typing import Callable, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from architectures import read, state_of
from tokenizer_families import gguf_vocabulary, reference_of_scores
from tokenizer_oracle import smollm2

TOP = 24
GREEDY_TOKENS = 48


class Model(NamedTuple):
    tokenizer: Callable  # of the path of the GGUF file: an oracle that adds what starts a text
    words: dict[str, str] = {}  # what stands for SmolLM2's marks of a chat's turns


MODELS = {
    "smollm2": Model(smollm2),
    "gemma3": Model(lambda path: reference_of_scores(gguf_vocabulary(path)),
                    {"<|im_start|>assistant": "<start_of_turn>model", "<|im_start|>": "<start_of_turn>",
                     "<|im_end|>": "<end_of_turn>"}),
}

TEXTS = [
    "The river rises in the hills above the town and falls two hundred metres before it reaches the sea. In spring, when "
    "the snow melts, it floods the meadows on both banks; in late summer a child can cross it without wetting her knees. "
    "The mill that stood at the second bridge ground wheat for three centuries and was turned into a library in 1987. "
    "Old people still call the street that leads to it the Flour Road, although no flour has been carried along it for "
    "forty years. On market days the square is full of stalls that sell cheese, honey, tools and second-hand books.",
    "def merge(left, right):\n    \"\"\"Merge two sorted lists into one sorted list.\"\"\"\n    result = []\n    i = j = 0\n"
    "    while i < len(left) and j < len(right):\n        if left[i] <= right[j]:\n            result.append(left[i])\n"
    "            i += 1\n        else:\n            result.append(right[j])\n            j += 1\n"
    "    result.extend(left[i:])\n    result.extend(right[j:])\n    return result\n\n\nprint(merge([1, 4, 9], [2, 3, 10]))\n",
    "Water boils at 100 degrees Celsius at sea level, but on a high mountain it boils at a lower temperature because the "
    "pressure of the air is lower there. This is why it takes longer to cook rice or beans in the mountains. A pressure "
    "cooker solves the problem: its lid keeps the steam inside, the pressure rises, and the water can become hotter than "
    "100 degrees before it boils. The same idea, used the other way round, lets chemists distil liquids that would be "
    "destroyed by heat: they pump the air out of the flask, and the liquid boils while it is still lukewarm.",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat are three good reasons to learn how "
    "to cook at home?<|im_end|>\n<|im_start|>assistant\nLearning to cook at home saves money, because ingredients cost less "
    "than meals in restaurants. It is healthier, since you decide how much salt, sugar and fat goes into the food. And it "
    "brings people together: a meal that was made by hand is a good reason to sit down with family and friends.<|im_end|>\n",
    "Dear neighbours, the lift will be repaired on Thursday between nine and twelve o'clock. Please use the stairs during "
    "this time. If you need help with shopping bags or a pram, ring the bell of the caretaker on the ground floor.",
]

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "To make a good cup of tea, you should first",
    "The three states of matter are",
    "def fibonacci(n):\n",
    "The reason why the sky is blue is that",
    "<|im_start|>user\nWrite one sentence about the moon.<|im_end|>\n<|im_start|>assistant\n",
    "In 1969, the first people landed on",
    "A list of fruits: apple, banana,",
    "My favourite season is autumn because",
]


def load(path):
    model = AutoModelForCausalLM.from_pretrained(os.path.dirname(os.path.abspath(path)), dtype=torch.float32,
                                                 gguf_file=os.path.basename(path)).eval()
    tensors, fields = read(path)
    wanted, found = state_of(fields, tensors), model.state_dict()
    if set(wanted) != set(found) or any(not torch.equal(wanted[name], found[name]) for name in wanted):
        sys.exit(f"{path}: transformers' weights are not those that gguf de-quantises")
    return model


def golden_text(model, ids):
    logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    best = torch.topk(logprobs, TOP, dim=-1)
    return {"ids": ids, "top_ids": best.indices.tolist(),
            "top_logprobs": [[round(v, 4) for v in row] for row in best.values.tolist()]}


def golden_greedy(model, prompt, ids):
    tokens, gaps, cache, step = [], [], None, ids
    for _ in range(GREEDY_TOKENS):
        result = model(torch.tensor([step]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = result.past_key_values
        best = torch.topk(result.logits[0, -1], 2)
        step = [best.indices[0].item()]
        tokens += step
        gaps.append(round((best.values[0] - best.values[1]).item(), 4))
    return {"prompt": prompt, "prompt_ids": ids, "ids": tokens, "gaps": gaps}


def main():
    name, model_path, out_path = sys.argv[1:]
    torch.manual_seed(0)
    tokenizer = MODELS[name].tokenizer(model_path)

    def encode(text):
        return tokenizer.encode(text).ids

    def of_model(text):
        for word, its_word in MODELS[name].words.items():
            text = text.replace(word, its_word)
        return text

    model = load(model_path)
    with torch.no_grad():
        out = {"top": TOP, "texts": [golden_text(model, encode(of_model(text))) for text in TEXTS],
               "greedy": [golden_greedy(model, of_model(prompt), encode(of_model(prompt))) for prompt in PROMPTS]}
    positions = sum(len(t["ids"]) for t in out["texts"])
    with open(out_path, "w", encoding="utf-8") as file:
        json.dump(out, file, separators=(",", ":"))
        file.write("\n")
    print(f"{positions} positions, {len(out['greedy'])} prompts")


if __name__ == "__main__":
    main()
