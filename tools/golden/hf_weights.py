#!/usr/bin/env python3
"""Golden weights of quantised Hugging Face checkpoints: tensors as the published packers lay them out, and their values.

Needs torch, transformers and compressed-tensors from PyPI; run by hand, its output is committed:
    tools/golden/hf_weights.py tests/golden/hf_weights.json

Values come from the codes, zeros and scales that were drawn, never from unpacking; the packers are those of
compressed-tensors, and for GPTQ and AWQ transcriptions of what AutoGPTQ's and AutoAWQ's linear layers do. MXFP4 and
FP8 are unpacked by transformers and torch.
"""
import json
import sys

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32", torch.int64: "I64",
         torch.int8: "I8", torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3"}


def as_hex(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes().hex()


def case(name, config, dtype, tensors, values, relative=0.0, absolute=0.0):
    assert values.ndim == 2
    return {"name": name, "config": config, "dtype": dtype, "rows": values.shape[0], "cols": values.shape[1],
            "tensors": {part: {"dtype": NAMES[t.dtype], "shape": list(t.shape), "hex": as_hex(t.reshape(-1))}
                        for part, t in tensors.items()},
            "values": as_hex(values.float().reshape(-1)), "relative_error": relative, "absolute_error": absolute}


def draw(generator, rows, cols, group, zero=None, zero_min=1):
    """codes [rows, cols], zeros [rows, groups], scales f16 [rows, groups], the group of each column"""
    groups = cols // group
    codes = torch.from_numpy(generator.integers(0, 16, (rows, cols)).astype(np.int32))
    zeros = torch.from_numpy(generator.integers(zero_min, 16, (rows, groups)).astype(np.int32))
    if zero is not None:
        zeros[:] = zero
    scales = torch.from_numpy(generator.uniform(0.001, 0.1, (rows, groups))).half()
    return codes, zeros, scales, torch.arange(cols) // group


def dequantise(codes, zeros, scales, index):
    return scales.float()[:, index] * (codes - zeros[:, index]).float()


def pack_gptq(codes, zeros, scales, index, stored_less=1, borrow=False):
    """qweight [cols/8, rows]: column 8i+j of a row in bits 4j of word i; qzeros [groups, rows/8], less one each modulo
    16 (what AutoGPTQ's layers read) or in each word at once with borrow (what GPTQModel writes)."""
    rows, cols = codes.shape
    qweight = np.zeros((cols // 8, rows), dtype=np.uint32)
    for i in range(cols // 8):
        for j in range(8):
            qweight[i] |= codes[:, 8 * i + j].numpy().astype(np.uint32) << np.uint32(4 * j)
    qzeros = np.zeros((zeros.shape[1], rows // 8), dtype=np.uint32)
    for i in range(rows // 8):
        for j in range(8):
            nibble = zeros[8 * i + j].numpy() - (0 if borrow else stored_less) & 15
            qzeros[:, i] |= nibble.astype(np.uint32) << np.uint32(4 * j)
    if borrow:
        qzeros -= np.uint32(0x11111111)
    return {"qweight": torch.from_numpy(qweight.view(np.int32)), "qzeros": torch.from_numpy(qzeros.view(np.int32)),
            "scales": scales.T.contiguous(), "g_idx": index.to(torch.int32)}


def pack_awq(codes, zeros, scales):
    """qweight [cols, rows/8]: row 8i+AWQ_ORDER[j] of a column in bits 4j of word i; qzeros [groups, rows/8] alike."""
    def pack(matrix):
        words = np.zeros((matrix.shape[0], matrix.shape[1] // 8), dtype=np.uint32)
        for i in range(matrix.shape[1] // 8):
            for j in range(8):
                words[:, i] |= matrix[:, 8 * i + AWQ_ORDER[j]].numpy().astype(np.uint32) << np.uint32(4 * j)
        return torch.from_numpy(words.view(np.int32))
    return {"qweight": pack(codes.T), "qzeros": pack(zeros.T), "scales": scales.T.contiguous()}


def gptq_cases(generator):
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
    drawn = draw(generator, 72, 64, 32, zero=8)
    yield case("gptq symmetric", config, "Q4_0", pack_gptq(*drawn), dequantise(*drawn))
    codes, zeros, scales, index = draw(generator, 16, 64, 32)
    error = float((scales.float() * zeros).max()) / 2048
    yield case("gptq asymmetric", {**config, "sym": False}, "Q4_1", pack_gptq(codes, zeros, scales, index),
               dequantise(codes, zeros, scales, index), absolute=error)
    yield case("gptq asymmetric, second format", {**config, "sym": False, "checkpoint_format": "gptq_v2"}, "Q4_1",
               pack_gptq(codes, zeros, scales, index, stored_less=0), dequantise(codes, zeros, scales, index),
               absolute=error)
    index = index[torch.from_numpy(generator.permutation(64))]
    yield case("gptq act-order", {**config, "sym": False, "desc_act": True}, "F16",
               pack_gptq(codes, zeros, scales, index), dequantise(codes, zeros, scales, index), relative=2.0**-11)
    drawn = draw(generator, 8, 64, 64, zero=8)
    yield case("gptq one group", {**config, "group_size": -1}, "Q4_0", pack_gptq(*drawn), dequantise(*drawn))
    drawn = draw(generator, 8, 48, 16, zero=8)
    yield case("gptq group 16", {**config, "group_size": 16}, "F16", pack_gptq(*drawn), dequantise(*drawn),
               relative=2.0**-11)


def zero_of_zero_cases(generator):
    """Zeros from 0 on, which stored less one leave their four bits."""
    codes, zeros, scales, index = draw(generator, 16, 64, 32, zero_min=0)
    zeros[::3] = 0
    error = float((scales.float() * zeros).max()) / 2048
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
    yield case("gptq zeros modulo 16", config, "Q4_1", pack_gptq(codes, zeros, scales, index),
               dequantise(codes, zeros, scales, index), absolute=error)
    yield case("gptq zeros with borrow", {**config, "meta": {"quantizer": ["gptqmodel:4.2.5"]}}, "Q4_1",
               pack_gptq(codes, zeros, scales, index, borrow=True), dequantise(codes, zeros, scales, index),
               absolute=error)


def awq_cases(generator):
    codes, zeros, scales, index = draw(generator, 72, 64, 32)
    yield case("awq", {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "GEMM"}, "Q4_1",
               pack_awq(codes, zeros, scales), dequantise(codes, zeros, scales, index),
               absolute=float((scales.float() * zeros).max()) / 2048)


def compressed_config(form, **weights):
    return {"quant_method": "compressed-tensors", "format": form,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"type": "int", "dynamic": False, **weights}}}}


def compressed_cases(generator):
    codes, zeros, scales, index = draw(generator, 72, 64, 32, zero=8)
    shape = torch.tensor(codes.shape)
    packed = pack_to_int32((codes - 8).to(torch.int8), 4)
    config = compressed_config("pack-quantized", num_bits=4, symmetric=True, strategy="group", group_size=32)
    scales = scales.bfloat16()
    yield case("compressed-tensors int4", config, "Q4_0",
               {"weight_packed": packed, "weight_scale": scales, "weight_shape": shape},
               dequantise(codes, zeros, scales, index))
    codes, zeros, scales, index = draw(generator, 12, 64, 32)
    config = compressed_config("pack-quantized", num_bits=4, symmetric=False, strategy="group", group_size=32)
    yield case("compressed-tensors int4 asymmetric", config, "Q4_1",
               {"weight_packed": pack_to_int32((codes - 8).to(torch.int8), 4), "weight_scale": scales,
                "weight_shape": torch.tensor(codes.shape),
                "weight_zero_point": pack_to_int32((zeros - 8).to(torch.int8), 4, packed_dim=0)},
               dequantise(codes, zeros, scales, index), absolute=float((scales.float() * zeros).max()) / 2048)
    codes = torch.from_numpy(generator.integers(-128, 128, (6, 64)).astype(np.int8))
    scales = torch.from_numpy(generator.uniform(0.001, 0.1, (6, 1))).float()
    channel = compressed_config("int-quantized", num_bits=8, symmetric=True, strategy="channel")
    yield case("compressed-tensors int8 channel", channel, "Q8_0", {"weight": codes, "weight_scale": scales},
               codes.float() * scales, relative=2.0**-11)
    yield case("compressed-tensors int8 tensor", {**channel, "format": "naive-quantized"}, "Q8_0",
               {"weight": codes, "weight_scale": scales[:1, 0]}, codes.float() * scales[0], relative=2.0**-11)
    yield case("compressed-tensors int8 packed", {**channel, "format": "pack-quantized"}, "Q8_0",
               {"weight_packed": pack_to_int32(codes, 8), "weight_scale": scales, "weight_shape": torch.tensor(codes.shape)},
               codes.float() * scales, relative=2.0**-11)
    codes = torch.from_numpy(generator.integers(-128, 128, (5, 24)).astype(np.int8))
    scales = torch.from_numpy(generator.uniform(0.001, 0.1, (5, 1))).float()
    yield case("compressed-tensors int8, no whole blocks", channel, "F16", {"weight": codes, "weight_scale": scales},
               codes.float() * scales, relative=2.0**-11)


def fp8_cases(generator):
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    every[0x7F], every[0xFF] = 0x7E, 0xFE  # the two NaN
    codes = every.view(torch.float8_e4m3fn).reshape(8, 32)
    one = torch.tensor(0.37)
    yield case("fp8 tensor", {"quant_method": "fp8"}, "BF16", {"weight": codes, "weight_scale": one},
               codes.float() * one, relative=2.0**-8)
    codes = torch.from_numpy(generator.uniform(-400, 400, (20, 40))).float().to(torch.float8_e4m3fn)
    scales = torch.from_numpy(generator.uniform(1e-4, 1e-2, (3, 3))).float()
    whole = scales.repeat_interleave(8, 0)[:20].repeat_interleave(16, 1)[:, :40]
    yield case("fp8 blocks", {"quant_method": "fp8", "weight_block_size": [8, 16]}, "BF16",
               {"weight": codes, "weight_scale_inv": scales}, codes.float() * whole, relative=2.0**-8)
    rows = torch.from_numpy(generator.uniform(1e-4, 1e-2, (20, 1))).bfloat16()
    yield case("fp8 rows", {"quant_method": "fbgemm_fp8"}, "BF16", {"weight": codes, "weight_scale": rows},
               codes.float() * rows.float(), relative=2.0**-8)


def fp8_block_cases(generator):
    """Rows of whole blocks of 64, which keep the file's codes."""
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    every[0x7F], every[0xFF] = 0x7E, 0xFE  # the two NaN
    codes = every.view(torch.float8_e4m3fn).reshape(2, 128)
    rows = torch.from_numpy(generator.uniform(1e-4, 1e-2, (2, 1))).float()
    yield case("fp8 rows of blocks", {"quant_method": "fbgemm_fp8"}, "F8_E4M3", {"weight": codes, "weight_scale": rows},
               codes.float() * rows)
    codes = torch.from_numpy(generator.uniform(-400, 400, (5, 192))).float().to(torch.float8_e4m3fn)
    scales = torch.from_numpy(generator.uniform(1e-4, 1e-2, (3, 2))).float()
    whole = scales.repeat_interleave(2, 0)[:5].repeat_interleave(128, 1)[:, :192]
    yield case("fp8 blocks of blocks", {"quant_method": "fp8", "weight_block_size": [2, 128]}, "F8_E4M3",
               {"weight": codes, "weight_scale_inv": scales}, codes.float() * whole)
    one = torch.tensor(3e-8).bfloat16()  # below F16's range
    yield case("fp8 tensor of blocks", {"quant_method": "fp8"}, "F8_E4M3", {"weight": codes, "weight_scale": one},
               codes.float() * one.float())


def mxfp4(generator):
    """Two experts of 6 rows (gate and up alternate) and 64 columns, as gpt-oss stores them."""
    blocks = torch.from_numpy(generator.integers(0, 256, (2, 6, 2, 16)).astype(np.uint8))
    scales = torch.from_numpy(generator.integers(110, 140, (2, 6, 2)).astype(np.uint8))
    values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    return {"experts": 2, "rows": 6, "cols": 64, "blocks": as_hex(blocks.reshape(-1)), "scales": as_hex(scales.reshape(-1)),
            "values": as_hex(values.contiguous().reshape(-1))}


def main():
    generator = np.random.default_rng(4)
    cases = [*gptq_cases(generator), *awq_cases(generator), *compressed_cases(generator), *fp8_cases(generator),
             *zero_of_zero_cases(np.random.default_rng(5)), *fp8_block_cases(np.random.default_rng(6))]
    with open(sys.argv[1], "w") as out:
        json.dump({"cases": cases, "mxfp4": mxfp4(generator)}, out, indent=0)
        out.write("\n")


if __name__ == "__main__":
    main()
