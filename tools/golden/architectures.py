#!/usr/bin/env python3
"""Goldens for the architectures: logits of tiny random models, computed by Hugging Face transformers.

Each case is a GGUF file that make_model writes: in F32 the variants of each architecture, then every architecture in
every type of weight. Its weights, de-quantised by `gguf`, are put into the transformers model of the same configuration,
and what that computes on the CPU in f32 is kept at a few positions and vocabulary ids. tests/model makes the same files
and compares. Needs torch, transformers and gguf from PyPI; run by hand, its output is committed:
    tools/golden/architectures.py build/bin/make_model tests/golden/architectures.json
SPDX-License-Identifier: Apache-2.0
"""
import functools
import json
import math
import os
import random
import subprocess
import sys
import tempfile

import numpy
import torch
import transformers
from gguf import GGUFReader, dequantize

VOCABULARY = 320
VOCABULARY_STEP = 13
IDS = random.Random(7).sample(range(VOCABULARY), 40)
POSITIONS = [0, 1, 13, 27, 39]
SMALL = {"layers": 2, "hidden": 128, "heads": 4, "kv-heads": 2, "head-dim": 32, "ffn": 160, "context": 256, "seed": 3}
MOE = {"experts": 6, "experts_used": 3, "expert_ffn": 96}


def case(name, arch, config, sizes=SMALL, **options):
    return {"name": name, "config": config, "max_model_len": options.pop("max_model_len", 0),
            "spec": {"arch": arch, "type": "F32"} | sizes | {k.replace("_", "-"): v for k, v in options.items()}}


# The transformers configuration class of each case; what its fields must be follows from the spec, in config_of().
CASES = [
    case("llama", "llama", "Llama"),
    case("llama with divisors", "llama", "Llama", rope_freqs=True),
    case("mistral with a window", "llama", "Mistral", window=12),
    case("mixtral", "llama", "Mixtral", **MOE),
    case("mistral3 with YaRN", "mistral3", "Ministral3", rope_scaling="yarn"),
    case("qwen2", "qwen2", "Qwen2", tied=True),
    case("qwen2 with YaRN", "qwen2", "Qwen2", rope_scaling="yarn"),
    case("qwen2moe", "qwen2moe", "Qwen2Moe", **MOE),
    case("qwen3", "qwen3", "Qwen3"),
    case("qwen3moe", "qwen3moe", "Qwen3Moe", **MOE),
    case("gemma2", "gemma2", "Gemma2", layers=3, window=12),
    case("gemma3", "gemma3", "Gemma3Text", layers=7, window=12, rope_scaling="linear"),
    case("phi3", "phi3", "Phi3", window=12, rope_dims=24),
    case("phi3, long", "phi3", "Phi3", rope_scaling="longrope", context=64),
    case("phi3, short", "phi3", "Phi3", rope_scaling="longrope", max_model_len=64),
    case("gpt-oss", "gpt-oss", "GptOss", layers=3, window=12, rope_scaling="yarn", **MOE),
]

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
         "IQ4_XS", "MXFP4"]
# With types: few positions, rows of whole blocks of 256, windows that are shorter than the prompt. A router chooses by
# comparing, so with experts the prompt is, of so many random ones, the one whose closest choice is the clearest: a
# device that rounds a little must choose as transformers does.
TYPED_ROWS, TYPED_POSITIONS, TYPED_PROMPTS = 12, [5, 11], 512
TYPED = {"layers": 2, "hidden": 256, "heads": 4, "kv-heads": 2, "head-dim": 64, "ffn": 512, "context": 256, "seed": 11}
TYPED_MOE = {"experts": 4, "experts_used": 2, "expert_ffn": 256}
TYPED_CASES = [
    case("llama", "llama", "Llama", TYPED, tied=True),
    case("mistral3", "mistral3", "Ministral3", TYPED, rope_scaling="yarn"),
    case("qwen2", "qwen2", "Qwen2", TYPED),
    case("qwen2moe", "qwen2moe", "Qwen2Moe", TYPED, **TYPED_MOE),
    case("qwen3", "qwen3", "Qwen3", TYPED),
    case("qwen3moe", "qwen3moe", "Qwen3Moe", TYPED, **TYPED_MOE),
    case("gemma2", "gemma2", "Gemma2", TYPED, window=9),
    case("gemma3", "gemma3", "Gemma3Text", TYPED, layers=6, window=9),
    case("phi3", "phi3", "Phi3", TYPED),
    case("gpt-oss", "gpt-oss", "GptOss", TYPED, window=9, **TYPED_MOE),
]


def make(make_model, spec, path):
    command = [make_model]
    for key, value in spec.items():
        command += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    subprocess.run(command + [path], check=True)


def read(path):
    """The tensors of a GGUF file, de-quantised to f32, and its keys."""
    reader = GGUFReader(path)
    tensors = {t.name: torch.from_numpy(numpy.array(dequantize(t.data, t.tensor_type))) for t in reader.tensors}
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return tensors, fields


def rope_of(spec, tensors, get):
    """rope_parameters, from the file's keys."""
    rope = {"rope_type": "default", "rope_theta": get("rope.freq_base")}
    original = get("rope.scaling.original_context_length")
    scaling = spec.get("rope-scaling")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": get("rope.scaling.factor")}
    elif scaling == "yarn":
        rope |= {"rope_type": "yarn", "factor": get("rope.scaling.factor"), "original_max_position_embeddings": original,
                 "beta_fast": 32.0, "beta_slow": 1.0}
        if spec["arch"] == "gpt-oss":
            rope["truncate"] = False
        if spec["arch"] == "mistral3":
            rope["llama_4_scaling_beta"] = 0.1  # without effect below the original context
    elif scaling == "longrope":
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": original,
                 "long_factor": tensors["rope_factors_long.weight"].tolist(),
                 "short_factor": tensors["rope_factors_short.weight"].tolist()}
    if spec.get("rope-dims"):
        rope["partial_rotary_factor"] = spec["rope-dims"] / spec["head-dim"]
    return rope


def config_of(case_, tensors, fields):
    spec = case_["spec"]
    arch = spec["arch"]

    def get(suffix):
        return fields.get(f"{arch}.{suffix}")

    rope = rope_of(spec, tensors, get)
    config = dict(vocab_size=get("vocab_size"), hidden_size=get("embedding_length"),
                  intermediate_size=get("feed_forward_length"), num_hidden_layers=get("block_count"),
                  num_attention_heads=get("attention.head_count"), num_key_value_heads=get("attention.head_count_kv"),
                  head_dim=get("attention.key_length"), max_position_embeddings=get("context_length"),
                  rms_norm_eps=get("attention.layer_norm_rms_epsilon"), rope_parameters=rope,
                  sliding_window=get("attention.sliding_window"), tie_word_embeddings="output.weight" not in tensors,
                  pad_token_id=None, bos_token_id=None, eos_token_id=None, attn_implementation="eager")
    if "experts" in spec:
        experts = get("expert_count")
        config |= dict(num_experts=experts, num_local_experts=experts, num_experts_per_tok=get("expert_used_count"),
                       moe_intermediate_size=get("expert_feed_forward_length"),
                       shared_expert_intermediate_size=get("expert_shared_feed_forward_length"))
        if arch == "llama" or arch == "gpt-oss":
            config["intermediate_size"] = get("expert_feed_forward_length")
        if arch.startswith("qwen"):
            config["norm_topk_prob"] = arch == "qwen3moe"
    if arch.startswith("qwen2"):
        config.pop("head_dim")  # heads times head_dim is the width in these
    if arch.startswith("gemma"):
        config["query_pre_attn_scalar"] = get("attention.key_length")
    if arch == "gemma3":
        config["rope_parameters"] = {"full_attention": rope,
                                     "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    if arch == "phi3":
        config["original_max_position_embeddings"] = get("rope.scaling.original_context_length")
    if "experts" in spec:
        config["experts_implementation"] = "eager"
    known = {k: v for k, v in config.items() if v is not None or k == "pad_token_id"}
    return getattr(transformers, case_["config"] + "Config")(**known)


def unpermuted(rows, heads):
    """GGUF's order of query and key rows for rope on neighbouring pairs, back to halves."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


# GGUF's names below "blk.N." and what transformers calls them below "model.layers.N.".
NAMES = {
    "attn_norm.weight": "input_layernorm.weight", "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight", "attn_qkv.weight": "self_attn.qkv_proj.weight",
    "attn_sinks.weight": "self_attn.sinks", "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
    "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
} | {f"attn_{a}.{s}": f"self_attn.{b}_proj.{s}" for s in ("weight", "bias")
     for a, b in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o"))
} | {f"ffn_{a}.weight": f"mlp.{a}_proj.weight" for a in ("gate", "up", "down")}
OF_ARCH = {
    "phi3": {"ffn_up.weight": "mlp.gate_up_proj.weight"},
    "gpt-oss": {"post_attention_norm.weight": "post_attention_layernorm.weight",
                "ffn_gate_inp.weight": "mlp.router.weight", "ffn_gate_inp.bias": "mlp.router.bias"},
} | {gemma: {"post_attention_norm.weight": "post_attention_layernorm.weight",
             "ffn_norm.weight": "pre_feedforward_layernorm.weight",
             "post_ffw_norm.weight": "post_feedforward_layernorm.weight"} for gemma in ("gemma2", "gemma3")
} | {arch: {"ffn_gate_inp.weight": "mlp.gate.weight"} for arch in ("llama", "qwen2moe", "qwen3moe")}


def add_experts(arch, layer, tensors, state):
    """The experts of one layer: gate and up in one tensor there, interleaved in gpt-oss, whose matrices are transposed."""
    def get(name):
        return tensors.get(f"blk.{layer}.{name}")

    at = f"model.layers.{layer}.mlp.experts."
    gate, up, down = (get(f"ffn_{x}_exps.weight") for x in ("gate", "up", "down"))
    if gate is None:
        return
    if arch != "gpt-oss":
        state[at + "gate_up_proj"], state[at + "down_proj"] = torch.cat([gate, up], dim=1), down
        return
    state[at + "gate_up_proj"] = torch.stack([gate, up], dim=2).flatten(1, 2).transpose(1, 2)
    state[at + "gate_up_proj_bias"] = torch.stack([get("ffn_gate_exps.bias"), get("ffn_up_exps.bias")], dim=2).flatten(1)
    state[at + "down_proj"], state[at + "down_proj_bias"] = down.transpose(1, 2), get("ffn_down_exps.bias")


def state_of(fields, tensors):
    """What transformers calls the weights of a GGUF file, and the order that it has them in."""
    arch = fields["general.architecture"]
    names = NAMES | OF_ARCH.get(arch, {})
    heads = {}
    if arch in ("llama", "mistral3"):
        heads = {"attn_q": fields[f"{arch}.attention.head_count"], "attn_k": fields[f"{arch}.attention.head_count_kv"]}
    state = {"model.embed_tokens.weight": tensors["token_embd.weight"],
             "model.norm.weight": tensors["output_norm.weight"],
             "lm_head.weight": tensors.get("output.weight", tensors["token_embd.weight"])}
    for full, value in tensors.items():
        if not full.startswith("blk."):
            continue
        _, layer, name = full.split(".", 2)
        if name.split(".")[0] in heads:
            value = unpermuted(value, heads[name.split(".")[0]])
        if name == "ffn_gate_inp_shexp.weight":
            value = value.reshape(1, -1)
        if name in names:
            state[f"model.layers.{layer}.{names[name]}"] = value
        elif "_exps." not in name:
            raise KeyError(full)
    for layer in range(fields[f"{arch}.block_count"]):
        add_experts(arch, layer, tensors, state)
    if arch.startswith("gemma"):  # there the norms add the 1 themselves
        state = {k: v - 1 if "norm" in k else v for k, v in state.items()}
    return state


def load(case_, path):
    tensors, fields = read(path)
    model = getattr(transformers, case_["config"].removesuffix("Text") + "ForCausalLM")(
        config_of(case_, tensors, fields)).float().eval()
    model.load_state_dict(state_of(fields, tensors), strict=True)
    if "rope_freqs.weight" in tensors:
        rotary = model.model.rotary_emb
        rotary.inv_freq = rotary.inv_freq / tensors["rope_freqs.weight"]
    return model


def clearest_prompt(model, prompts):
    """Of `prompts` [n, rows] the one where the routers' last chosen and first unchosen experts lie furthest apart, and
    how far, in logits. Without experts the first."""
    margins = []

    def watch(router, inputs):
        logits = torch.nn.functional.linear(inputs[0], router.weight, getattr(router, "bias", None))
        best = logits.reshape(*prompts.shape, -1).topk(model.config.num_experts_per_tok + 1, dim=-1).values
        margins.append((best[..., -2] - best[..., -1]).amin(dim=1))

    routers = [module for name, module in model.named_modules() if name.endswith(("mlp.gate", "mlp.router"))]
    if not routers:
        return prompts[0], math.inf
    hooks = [router.register_forward_pre_hook(watch) for router in routers]
    model(prompts)
    for hook in hooks:
        hook.remove()
    margin, index = torch.stack(margins).amin(dim=0).max(dim=0)
    return prompts[index], margin.item()


def golden_of(case_, make_model):
    typed = case_["typed"]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = os.path.join(folder, "m.gguf")
        make(make_model, case_["spec"], path)
        model = load(case_, path)
        ids, positions, margin = torch.tensor(IDS), POSITIONS, math.inf
        if typed:
            draw = random.Random(7)
            prompts = [draw.choices(range(VOCABULARY), k=TYPED_ROWS) for _ in range(TYPED_PROMPTS)]
            positions = TYPED_POSITIONS
            ids, margin = clearest_prompt(model, torch.tensor(prompts))
        logits = model(ids[None]).logits[0]
    print(f"{case_['name']} {case_['spec']['type']}: deviation of the logits {logits.std():.3f}"
          + (f", routers' margin {margin:.3f}" if margin < math.inf else ""), flush=True)
    return {"name": case_["name"], "spec": case_["spec"], "max_model_len": case_["max_model_len"], "ids": ids.tolist(),
            "positions": positions,
            "logits": [[round(v, 5) for v in logits[p, ::VOCABULARY_STEP].tolist()] for p in positions]}


def main():
    torch.set_num_threads(1)
    make_model, out_path = sys.argv[1], sys.argv[2]
    cases = [case_ | {"typed": False} for case_ in CASES]
    cases += [case_ | {"typed": True, "spec": case_["spec"] | {"type": type_}} for case_ in TYPED_CASES for type_ in TYPES]
    made, failed = [], False
    for case_ in cases:
        try:
            made.append(golden_of(case_, make_model))
        except Exception as failure:  # pylint: disable=broad-except; one that fails hides no other
            print(f"{case_['name']}: {failure!r}", file=sys.stderr)
            failed = True
    dump = functools.partial(json.dumps, separators=(",", ":"))
    with open(out_path, "w", encoding="utf-8") as file:
        file.write(f'{{"vocabulary_step":{VOCABULARY_STEP},"cases":[\n' + ",\n".join(map(dump, made)) + "]}\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
