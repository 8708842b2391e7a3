#!/usr/bin/env python3
"""Golden logits of tiny models in Hugging Face layout, one of each class that Motley reads, computed by transformers in float32.

Needs torch, transformers and safetensors from PyPI; run by hand, its output is committed:
    tools/golden/hf_models.py tests/golden/hf_models.json [FOLDER]

Weights are no part of the output: each is a function of its tensor's name and shape (`weights`, and the same in
tests/model/hf_models_test.cpp), so a test can write the folder that save_pretrained wrote here. With FOLDER the folders
themselves are kept.
"""
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

IDS = [(7 * i * i + 3 * i + 1) % 61 for i in range(24)]
POSITIONS = [0, 5, 11, 17, 23]  # whose logits are kept

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 61, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
         "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 150.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 16}
LONG = {"rope_type": "longrope", "rope_theta": 100.0, "long_factor": [1.5, 2.0, 3.0], "short_factor": [1.0, 1.1, 1.2]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4}

MODELS = [
    ("llama", "LlamaConfig", {"rope_parameters": LLAMA3}),
    ("llama, linear rope, head of 16", "LlamaConfig",
     {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}, "head_dim": 16, "num_key_value_heads": 4}),
    ("mistral", "MistralConfig", {"sliding_window": 7, "head_dim": 8}),
    ("qwen2", "Qwen2Config", {"tie_word_embeddings": True}),
    ("qwen2, windows, yarn", "Qwen2Config", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1,
                                             "rope_parameters": {**YARN, "truncate": True}}),
    ("qwen3", "Qwen3Config", {"head_dim": 16}),
    ("gemma2", "Gemma2Config", {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 12, "tie_word_embeddings": True}),
    ("gemma3", "Gemma3TextConfig", {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 7, "tie_word_embeddings": True,
                                    "query_pre_attn_scalar": 20}),
    ("phi3", "Phi3Config", {"rope_parameters": {**LONG, "partial_rotary_factor": 0.75},
                            "original_max_position_embeddings": 16}),
    ("phi3, factor", "Phi3Config", {"rope_parameters": {**LONG, "factor": 2.0, "partial_rotary_factor": 0.75},
                                    "original_max_position_embeddings": 16}),
    ("phi3, window", "Phi3Config", {"sliding_window": 5}),
    ("mixtral", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ("qwen2moe", "Qwen2MoeConfig", {**EXPERTS, "shared_expert_intermediate_size": 24, "norm_topk_prob": False}),
    ("qwen3moe", "Qwen3MoeConfig", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    ("gpt-oss", "GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 6,
                                 "rope_parameters": YARN}),
]


def weights(name, shape):
    """(-1/4, 1/4) evenly, 1 added to norms: SplitMix64 of the index, seeded with FNV-1a of the name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        x = np.uint64(seed) + (np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    values = ((x >> np.uint64(40)).astype(np.float32) - np.float32(2**23)) * np.float32(2.0**-25)
    if "norm" in name:
        values = np.float32(1) + values
    return values.reshape(shape)


def golden(name, config_class, changes, folder):
    config = getattr(transformers, config_class)(**{**SMALL, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tensors = {key: weights(key, value.shape) for key, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0, POSITIONS]
    return {"name": name, "config": json.loads((folder / "config.json").read_text()),
            "tensors": [[key, list(value.shape)] for key, value in sorted(tensors.items())],
            "logits": [[float(f"{v:.6g}") for v in row] for row in logits.tolist()]}


def main():
    keep = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    models = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, config_class, changes in MODELS:
            folder = (keep or Path(scratch)) / name.replace(", ", "-").replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            models.append(golden(name, config_class, changes, folder))
            print(f"{name}: {len(models[-1]['tensors'])} tensors", flush=True)
    with open(sys.argv[1], "w") as out:
        out.write('{"ids": ' + json.dumps(IDS) + ', "positions": ' + json.dumps(POSITIONS) + ', "models": [\n')
        out.write(",\n".join(json.dumps(model) for model in models))
        out.write("\n]}\n")


if __name__ == "__main__":
    main()
