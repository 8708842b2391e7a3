"""Models in Hugging Face layout, through the whole program. Their numbers are held against transformers elsewhere."""
import json
import random
import shutil
import struct

import pytest

from support import Server, motley

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


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    """A tiny random llama with a vocabulary of bytes and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny llama"
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
    return folder


def test_a_template_that_cannot_be_read_is_told_to_clients(directory, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(directory, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": "{% block b %}in{% endblock %}"}))
    with Server(folder, tmp_path / "log") as server:
        answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        assert server.stop() == 0
    assert answer.status == 400
    assert "the model's chat template: " in answer.json()["error"]["message"]


def test_a_directory_completes(directory):
    done = motley("complete", directory, "--prompt", "héllo", "--max-tokens", "8", "--ignore-eos", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["prompt_token_ids"] == list("héllo".encode())
    assert len(answer["token_ids"]) == 8
    again = motley("complete", directory, "--prompt", "héllo", "--max-tokens", "8", "--ignore-eos", "--json")
    assert json.loads(again.stdout)["token_ids"] == answer["token_ids"]


def test_a_directory_serves_chat(directory, tmp_path):
    with Server(directory, tmp_path / "log") as server:
        answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3})
        assert server.stop() == 0
    assert answer.status == 200, answer.body
    assert answer.json()["usage"]["prompt_tokens"] == 3


def test_a_directory_is_inspected(directory):
    done = motley("inspect", directory, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["architecture"] == "llama"
    assert "Hugging Face" in report["format"]
    assert "runs" in motley("inspect", directory).stdout


def test_damaged_directories_are_refused(directory, tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        copy = tmp_path / name.replace(".", "-")
        copy.mkdir()
        for file in directory.iterdir():
            data = file.read_bytes()
            (copy / file.name).write_bytes(data[:len(data) // 2] if file.name == name else data)
        done = motley("complete", copy, "--prompt", "x")
        assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert name in done.stderr
