"""Makes a Hugging Face folder in bfloat16 of a GGUF file, for servers that read none: gguf_to_hf.py MODEL.gguf FOLDER

Weights are de-quantised to float32 and rounded to bfloat16; the tokenizer is what transformers makes of the file's.
Needs torch, transformers, accelerate and gguf from PyPI. SPDX-License-Identifier: Apache-2.0
"""
import sys
from pathlib import Path

import torch
import transformers


def main() -> None:
    path, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    read = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a model that remembers its GGUF file refuses to be saved
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())  # rounds
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


main()
