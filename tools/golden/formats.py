#!/usr/bin/env python3
"""Golden blocks of the quantised weight formats: random bytes and the numbers that the package gguf reads from them.

Needs gguf from PyPI; run by hand, its output is committed:
    tools/golden/formats.py tests/golden/formats.txt

One line a block: the format's name, the block's bytes, its values as little-endian f32; both in hexadecimal.
"""
import sys

import gguf
import numpy as np

# Where a block has f16 numbers: random bits could be infinities there.
HALVES = {
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2],
    "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}


def main(path):
    random = np.random.default_rng(4)
    with open(path, "w", encoding="ascii") as out:
        for name, halves in HALVES.items():
            kind = gguf.GGMLQuantizationType[name]
            block = random.integers(0, 256, gguf.GGML_QUANT_SIZES[kind][1], dtype=np.uint8)
            for at in halves:
                block[at:at + 2] = np.frombuffer(np.float16(random.normal()).tobytes(), dtype=np.uint8)
            values = gguf.quants.dequantize(block.reshape(1, -1), kind).astype("<f4")
            print(name, block.tobytes().hex(), values.tobytes().hex(), file=out)


if __name__ == "__main__":
    main(sys.argv[1])
