"""A model in your own program."""
from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union

from . import _fields, _motley
from .errors import UnimplementedError
from .outputs import RequestOutput, request_output
from .sampling_params import SamplingParams

# A text, token ids, or vLLM's {"prompt": text} and {"prompt_token_ids": ids}.
Prompt = Union[str, Sequence[int], Mapping[str, Any]]
Messages = Sequence[Mapping[str, Any]]

_OPTIONS: dict[str, _fields.Convert] = {
    "devices": _fields.text, "tensor_parallel_size": _fields.count, "max_model_len": _fields.count,
    "max_num_seqs": _fields.count, "max_num_batched_tokens": _fields.count, "block_size": _fields.count,
    "kv_cache_dtype": _fields.text, "kv_cache_memory_bytes": _fields.size, "enable_prefix_caching": _fields.flag,
    "enable_chunked_prefill": _fields.flag, "threads": _fields.count, "deterministic": _fields.flag,
    "chat_template": _fields.text, "seed": _fields.seed,
}
# vLLM's arguments that are not built or mean nothing here, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tokenizer": (None,), "tokenizer_mode": ("auto",), "skip_tokenizer_init": (False,), "revision": (None,),
    "trust_remote_code": (False, True), "dtype": ("auto",), "quantization": (None,), "load_format": ("auto",),
    "pipeline_parallel_size": (1,), "data_parallel_size": (1,), "enable_expert_parallel": (False,),
    "distributed_executor_backend": (None,), "gpu_memory_utilization": (), "swap_space": (0,), "cpu_offload_gb": (0,),
    "enforce_eager": (False, True), "disable_log_stats": (False, True), "enable_lora": (False,),
    "speculative_config": (None,), "hf_overrides": (None,), "limit_mm_per_prompt": (None,),
}


def _prompt_pair(prompt: Prompt) -> tuple[str | None, list[int]]:
    if isinstance(prompt, Mapping):
        known = {"prompt", "prompt_token_ids"}
        if not prompt or not set(prompt) <= known:
            raise TypeError(f"a prompt's keys must be among {sorted(known)}, not {sorted(prompt)}")
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        return (None if text is None else _fields.text("prompt", text),
                [] if ids is None else _fields.token_ids("prompt_token_ids", list(ids)))
    if isinstance(prompt, str):
        return prompt, []
    if isinstance(prompt, Sequence):
        return None, _fields.token_ids("a prompt", list(prompt))
    raise TypeError(f"a prompt must be a str, a list of token ids or a dict, not {type(prompt).__name__}")


def _is_one_prompt(prompts: object) -> bool:
    if isinstance(prompts, (str, Mapping)):
        return True
    return isinstance(prompts, Sequence) and len(prompts) > 0 and hasattr(prompts[0], "__index__")


class Stream(Iterator[RequestOutput]):
    """The answers to one prompt as they grow: each piece holds what came since the last one.

    Leaving its `with` block, or the end of its life, cancels what still runs. One thread at a time may ask for pieces;
    cancel() may come from any.
    """

    def __init__(self, run: _motley.Run, request_id: str) -> None:
        self._run = run
        self._request_id = request_id
        self._prompt: tuple[str | None, list[int]] | None = None
        self._lock = threading.Lock()

    def __next__(self) -> RequestOutput:
        with self._lock:
            native = self._run.next()
        if native is None:
            raise StopIteration
        piece = request_output(self._request_id, native)
        self._prompt = self._prompt or (piece.prompt, piece.prompt_token_ids)
        piece.prompt, piece.prompt_token_ids = self._prompt
        return piece

    def cancel(self) -> None:
        """Ends the request within a step of the engine; its answers finish with "abort"."""
        self._run.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class LLM:
    """A model, open for generating. The engine behind it is the one of `motley serve`.

    model: a GGUF file or a Hugging Face folder. devices: that may be used, e.g. "CPU:0". max_model_len: longest sequence
    in tokens. seed: from which requests that have none get theirs. chat_template: a Jinja file instead of the model's
    own. The other options are those of `motley serve` (docs/python.md). Any number of threads may use one LLM at once;
    requests run together.
    """

    def __init__(self, model: str | os.PathLike[str], *, devices: str | Sequence[str] = "CPU:0",
                 tensor_parallel_size: int = 1, max_model_len: int | None = None, max_num_seqs: int | None = None,
                 max_num_batched_tokens: int | None = None, block_size: int | None = None,
                 kv_cache_dtype: str = "auto", kv_cache_memory_bytes: int | None = None,
                 enable_prefix_caching: bool = True, enable_chunked_prefill: bool = True, threads: int | None = None,
                 deterministic: bool = False, chat_template: str | os.PathLike[str] | None = None,
                 seed: int | None = None, **others: Any) -> None:
        _fields.refuse("LLM", others, _NEUTRAL)
        devices = ",".join(_fields.texts("devices", devices))
        if chat_template is not None:
            chat_template = os.fspath(chat_template)
        values = dict(locals())
        native = _motley.LlmOptions()
        native.model = _fields.text("model", os.fspath(model))
        _fields.fill(native, _OPTIONS, values, none=frozenset())
        self._llm = _motley.LLM(native)
        self._request_ids = itertools.count()

    @property
    def info(self) -> _motley.ModelInfo:
        """The model's name, architecture and sizes."""
        return self._llm.info()

    def generate(self, prompts: Prompt | Sequence[Prompt],
                 sampling_params: SamplingParams | Sequence[SamplingParams] | None = None, *,
                 use_tqdm: bool = False) -> list[RequestOutput]:
        """The answers to each prompt, in the order of the prompts, computed together.

        One SamplingParams counts for all prompts; a list has one for each. Ctrl-C cancels.
        """
        if use_tqdm:
            raise UnimplementedError("use_tqdm=True is not supported; leave it out")
        each = [prompts] if _is_one_prompt(prompts) else list(prompts)
        return self._finish([_prompt_pair(prompt) for prompt in each], sampling_params)  # type: ignore[arg-type]

    def chat(self, messages: Messages | Sequence[Messages],
             sampling_params: SamplingParams | Sequence[SamplingParams] | None = None, *,
             add_generation_prompt: bool = True, chat_template_kwargs: Mapping[str, Any] | None = None,
             use_tqdm: bool = False) -> list[RequestOutput]:
        """The answers to one conversation, or to each of some. Messages are OpenAI's: {"role": ..., "content": ...}.

        What messages say can never become a special token.
        """
        if use_tqdm:
            raise UnimplementedError("use_tqdm=True is not supported; leave it out")
        one = len(messages) == 0 or isinstance(messages[0], Mapping)
        conversations: Sequence[Any] = [messages] if one else messages
        pairs = [self._chat_prompt(c, add_generation_prompt, chat_template_kwargs) for c in conversations]
        return self._finish(pairs, sampling_params)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Stream:
        """The answers to one prompt, piece by piece as they grow. Errors of the request are raised here."""
        return self._stream(_prompt_pair(prompt), sampling_params)

    def stream_chat(self, messages: Messages, sampling_params: SamplingParams | None = None, *,
                    add_generation_prompt: bool = True,
                    chat_template_kwargs: Mapping[str, Any] | None = None) -> Stream:
        """The answers to a conversation, piece by piece as they grow."""
        return self._stream(self._chat_prompt(messages, add_generation_prompt, chat_template_kwargs), sampling_params)

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids that generate() makes of a text."""
        return self._llm.tokenize(_fields.text("text", text), _fields.flag("add_special_tokens", add_special_tokens))

    def detokenize(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._llm.detokenize(_fields.token_ids("token_ids", list(token_ids)),
                                    _fields.flag("skip_special_tokens", skip_special_tokens))

    def _chat_prompt(self, messages: Messages, add_generation_prompt: bool,
                     variables: Mapping[str, Any] | None) -> tuple[str | None, list[int]]:
        return self._llm.chat_prompt(json.dumps(list(messages)),
                                     _fields.flag("add_generation_prompt", add_generation_prompt),
                                     "" if variables is None else json.dumps(dict(variables)))

    def _start(self, pairs: list[tuple[str | None, list[int]]],
               params: SamplingParams | Sequence[SamplingParams] | None) -> _motley.Run:
        each = [params or SamplingParams()] if params is None or isinstance(params, SamplingParams) else list(params)
        for one in each:
            if not isinstance(one, SamplingParams):
                raise TypeError(f"sampling_params must be SamplingParams, not {type(one).__name__}")
        return self._llm.start(pairs, [one._native() for one in each])

    def _finish(self, pairs: list[tuple[str | None, list[int]]],
                params: SamplingParams | Sequence[SamplingParams] | None) -> list[RequestOutput]:
        return [request_output(str(next(self._request_ids)), native) for native in self._start(pairs, params).wait()]

    def _stream(self, pair: tuple[str | None, list[int]], params: SamplingParams | None) -> Stream:
        return Stream(self._start([pair], params), str(next(self._request_ids)))
