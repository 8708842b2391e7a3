"""A tiny random model in Hugging Face layout, for tests of whole programs."""
import json
import random
import struct

LAYERS, HIDDEN, HEADS, KV_HEADS, FFN = 2, 64, 4, 2, 96


def byte_alphabet():
    """GPT-2's printable character of each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def tensors(vocabulary):
    head = HIDDEN // HEADS
    shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {layer + "input_layernorm.weight": (HIDDEN,), layer + "post_attention_layernorm.weight": (HIDDEN,),
                   layer + "self_attn.q_proj.weight": (HIDDEN, HIDDEN), layer + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
                   layer + "self_attn.k_proj.weight": (KV_HEADS * head, HIDDEN),
                   layer + "self_attn.v_proj.weight": (KV_HEADS * head, HIDDEN),
                   layer + "mlp.gate_proj.weight": (FFN, HIDDEN), layer + "mlp.up_proj.weight": (FFN, HIDDEN),
                   layer + "mlp.down_proj.weight": (HIDDEN, FFN)}
    return shapes


def write_hf_folder(folder):
    """Makes the folder: a llama of 256 positions with a vocabulary of bytes and a chat template."""
    folder.mkdir()
    vocabulary = {char: byte for byte, char in byte_alphabet().items()} | {"<s>": 256, "</s>": 257}
    write = lambda name, value: (folder / name).write_text(json.dumps(value))  # noqa: E731
    write("config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "intermediate_size": FFN, "rms_norm_eps": 1e-5,
        "vocab_size": len(vocabulary), "max_position_embeddings": 256, "tie_word_embeddings": True,
        "bos_token_id": 256, "eos_token_id": 257})
    special = [{"id": i, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False} for text, i in (("<s>", 256), ("</s>", 257))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write("tokenizer.json", {"version": "1.0", "added_tokens": special, "normalizer": None, "pre_tokenizer": byte_level,
                             "post_processor": None, "decoder": byte_level,
                             "model": {"type": "BPE", "vocab": vocabulary, "merges": []}})
    write("tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>",
                                    "chat_template": "{% for m in messages %}<s>{{ m.content }}{% endfor %}"})
    draw, header, data = random.Random(1), {}, bytearray()
    for name, shape in tensors(len(vocabulary)).items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [1.0] * count if len(shape) == 1 else [draw.gauss(0, 0.1) for _ in range(count)]
        begin = len(data)
        data += struct.pack(f"<{count}f", *values)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
