"""What the CPU's benchmarks share: running programs, a model's size from its GGUF header, and the machine's bounds.
SPDX-License-Identifier: Apache-2.0
"""
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
RUN_SECONDS_MAX = 600


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def die(text: str) -> None:
    say(f"{Path(sys.argv[0]).name}: {text}")
    sys.exit(1)


def run(command: list, stdin: str | None = None, limit_s: float = RUN_SECONDS_MAX, **more) -> str:
    """Standard output of a command that must succeed."""
    shown = f"{Path(command[0]).name} {command[1] if len(command) > 1 else ''}".strip()
    try:
        done = subprocess.run([str(part) for part in command], input=stdin, capture_output=True, text=True,
                              timeout=limit_s, check=False, **more)
    except OSError as problem:
        die(f"{command[0]}: {problem.strerror}")
    except subprocess.TimeoutExpired:
        die(f"{shown}: not done within {limit_s:.0f} s")
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        die(f"{shown}: exit status {done.returncode}: {lines[-1]}")
    return done.stdout


# --- The model's size, from its GGUF header (docs/formats) -----------------------------------------------------------

GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
GGUF_STRING, GGUF_ARRAY = 8, 9
GLOBAL_EVERY = {"gemma3": 6}  # of layers with a window, every so many has none


class Gguf:
    """What a token costs at least: bytes of tensors, operations of matrices and the KV it reads; the vocabulary's size."""

    def __init__(self, path: Path):
        try:
            with path.open("rb") as file:
                self._file, self._size = file, path.stat().st_size
                self._read_header()
        except (OSError, struct.error, ValueError, KeyError) as problem:
            die(f"{path}: not a GGUF file that can be read: {problem}")

    def _scalar(self, code: str):
        return struct.unpack("<" + code, self._file.read(struct.calcsize("<" + code)))[0]

    def _string(self) -> str:
        length = self._scalar("Q")
        if length > self._size:
            raise ValueError(f"a string of {length} bytes")
        return self._file.read(length).decode("utf-8", "replace")

    def _value(self, kind: int):
        if kind == GGUF_STRING:
            return self._string()
        if kind == GGUF_ARRAY:
            inner, count = self._scalar("I"), self._scalar("Q")
            if count > self._size:
                raise ValueError(f"an array of {count} values")
            for _ in range(count):
                self._value(inner)
            return count
        return self._scalar(GGUF_SCALARS[kind])

    def _read_header(self) -> None:
        if self._file.read(4) != b"GGUF":
            raise ValueError("no magic")
        self._scalar("I")
        tensor_count, pair_count = self._scalar("Q"), self._scalar("Q")
        keys = {}
        for _ in range(pair_count):
            name = self._string()
            keys[name] = self._value(self._scalar("I"))
        tensors = []  # (offset, name, dimensions)
        for _ in range(tensor_count):
            name = self._string()
            dimensions = [self._scalar("Q") for _ in range(self._scalar("I"))]
            self._scalar("I")
            tensors.append((self._scalar("Q"), name, dimensions))
        alignment = keys.get("general.alignment", 32)
        data = -(-self._file.tell() // alignment) * alignment
        self._sum(sorted(tensors), self._size - data, keys)

    def _sum(self, tensors: list, data_size: int, keys: dict) -> None:
        ends = [tensor[0] for tensor in tensors[1:]] + [data_size]
        names = {name for _, name, _ in tensors}
        head = "output.weight" if "output.weight" in names else "token_embd.weight"
        self.vocab_size = keys["tokenizer.ggml.tokens"]
        self.architecture = keys["general.architecture"]
        self._shape = {name.split(".", 1)[1]: value for name, value in keys.items()
                       if name.startswith(self.architecture + ".")}
        self.tensor_bytes = self.token_bytes = self.layer_ops = self.head_ops = 0
        for (begin, name, dimensions), end in zip(tensors, ends):
            self.tensor_bytes += end - begin
            if name == "token_embd.weight" and head != name:
                continue  # one row of it is read
            self.token_bytes += end - begin
            if len(dimensions) == 2:
                ops = 2 * math.prod(dimensions)
                if name == head:
                    self.head_ops = ops
                else:
                    self.layer_ops += ops

    def _seen(self, context: int) -> int:
        """Positions of KV that a token at position `context` sees, added up over the layers."""
        layers, window = self._shape["block_count"], self._shape.get("attention.sliding_window", 0)
        whole = layers // GLOBAL_EVERY.get(self.architecture, 1) if window else layers
        return whole * context + (layers - whole) * min(context, window)

    def kv_bytes(self, context: int) -> int:
        """That a step reads for one sequence, in float16."""
        return self._seen(context) * 2 * self._shape["attention.head_count_kv"] * self._head_dim() * 2

    def attention_ops(self, context: int) -> int:
        """Of one token: scores and values."""
        return self._seen(context) * 2 * self._shape["attention.head_count"] * self._head_dim() * 2

    def _head_dim(self) -> int:
        return self._shape.get("attention.key_length",
                               self._shape["embedding_length"] // self._shape["attention.head_count"])



# --- The machine -----------------------------------------------------------------------------------------------------


def physical_cores() -> int:
    cores = set()
    for cpu in os.sched_getaffinity(0):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(path.read_text() if path.exists() else str(cpu))
    return len(cores)


def machine_name() -> str:
    lines = run(["lscpu"], env=os.environ | {"LC_ALL": "C"}).splitlines()
    shown = dict(line.split(":", 1) for line in lines if ":" in line)
    return f"{shown.get('Model name', 'CPU').strip()}, {shown.get('CPU(s)', '?').strip()} CPUs"


class Machine:
    """The bounds, measured by read_bandwidth."""

    def __init__(self, tensor_bytes: int, threads: int, work: Path):
        self._program, self._bytes, self._threads = work / "read_bandwidth", tensor_bytes, threads
        run(["g++", "-std=c++20", "-O2", "-march=native", "-pthread", HERE / "read_bandwidth.cpp", "-o", self._program])
        self.bandwidth = self.int8_ops = self.f32_ops = 0.0
        self.isa = ""

    def measure(self) -> None:
        seen = json.loads(run([self._program, self._bytes, self._threads]))
        self.bandwidth = max(self.bandwidth, seen["read_bytes_per_s"])
        self.int8_ops = max(self.int8_ops, seen["int8_ops_per_s"])
        self.f32_ops = max(self.f32_ops, seen["f32_ops_per_s"])
        self.isa = seen["isa"]
