"""A model in your own program."""
from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union

from . import _fields, _motley
from .outputs import RequestOutput, request_output
from .sampling_params import SamplingParams
from .tokenizer import Tokenizer

# A text, token ids, or vLLM's {"prompt": text} and {"prompt_token_ids": ids}.
Prompt = Union[str, Sequence[int], Mapping[str, Any]]
Messages = Sequence[Mapping[str, Any]]
Params = Union[SamplingParams, Sequence[SamplingParams], None]
_Pair = tuple[Union[str, None], list[int]]  # a prompt's text and token ids

_OPTIONS: dict[str, _fields.Convert] = {
    "devices": _fields.text, "device_map": _fields.text, "tensor_parallel_size": _fields.count,
    "max_model_len": _fields.count, "max_num_seqs": _fields.count, "max_num_batched_tokens": _fields.count,
    "block_size": _fields.count, "quality": _fields.text, "kv_cache_dtype": _fields.text,
    "kv_cache_memory_bytes": _fields.size,
    "enable_prefix_caching": _fields.flag, "enable_chunked_prefill": _fields.flag, "threads": _fields.count,
    "deterministic": _fields.flag, "chat_template": _fields.text, "seed": _fields.seed,
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
# The same of generate() and chat(), and of a prompt's dict.
_CALL_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "lora_request": (None,), "chat_template_content_format": ("auto",), "tokenization_kwargs": (None, {}),
    "mm_processor_kwargs": (None, {}),
}
_PROMPT_KEYS = ("prompt", "prompt_token_ids")
_PROMPT_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "multi_modal_data": (None, {}), "multi_modal_uuids": (None, {}), "mm_processor_kwargs": (None, {}),
    "prompt_embeds": (None,), "token_type_ids": (None,), "cache_salt": (None,),
}


def _prompt_pair(prompt: Prompt) -> _Pair:
    if isinstance(prompt, Mapping):
        others = {key: value for key, value in prompt.items() if key not in _PROMPT_KEYS}
        if len(others) == len(prompt) or not set(others) <= set(_PROMPT_NEUTRAL):
            raise TypeError(f"a prompt's keys must be among {list(_PROMPT_KEYS)}, not {list(prompt)}")
        _fields.refuse("a prompt", others, _PROMPT_NEUTRAL)
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        return (None if text is None else _fields.text("prompt", text),
                [] if ids is None else _fields.token_ids("prompt_token_ids", list(ids)))
    if isinstance(prompt, str):
        return _fields.text("a prompt", prompt), []
    if isinstance(prompt, Sequence):
        return None, _fields.token_ids("a prompt", list(prompt))
    raise TypeError(f"a prompt must be a str, a list of token ids or a dict, not {type(prompt).__name__}")


def _is_one_prompt(prompts: object) -> bool:
    if isinstance(prompts, (str, Mapping)):
        return True
    return isinstance(prompts, Sequence) and len(prompts) > 0 and hasattr(prompts[0], "__index__")


def _dicts(name: str, values: object) -> list[dict[str, Any]]:
    if not isinstance(values, Sequence) or not all(isinstance(value, Mapping) for value in values):
        raise TypeError(f"{name} must be a list of dicts")
    return [dict(value) for value in values]


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

    model: a GGUF file or a Hugging Face folder. devices: that may be used, e.g. "CPU:0"; "auto": every one there is.
    device_map: names there that simulated devices stand for, e.g. "GPU:0=SIM:gpu-like".
    max_model_len: longest sequence in tokens. seed: from which requests that have none get theirs. chat_template: a
    Jinja file instead of the model's own. The other options are those of `motley serve` (docs/python.md). Any number of
    threads may use one LLM at once; requests run together.
    """

    def __init__(self, model: str | os.PathLike[str], *, devices: str | Sequence[str] = "auto", device_map: str = "",
                 tensor_parallel_size: int = 1, max_model_len: int | None = None, max_num_seqs: int | None = None,
                 max_num_batched_tokens: int | None = None, block_size: int | None = None,
                 quality: str = "exact", kv_cache_dtype: str = "auto", kv_cache_memory_bytes: int | None = None,
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

    def generate(self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None, use_tqdm: bool = False,
                 lora_request: None = None, priority: Sequence[int] | None = None,
                 tokenization_kwargs: Mapping[str, Any] | None = None) -> list[RequestOutput]:
        """The answers to each prompt, in the order of the prompts, computed together.

        One SamplingParams counts for all prompts; a list has one for each; None: get_default_sampling_params(). Ctrl-C
        cancels. use_tqdm is taken and shows nothing. Of the last three only what asks for nothing is taken.
        """
        _fields.flag("use_tqdm", use_tqdm)
        each: list[Any] = [prompts] if _is_one_prompt(prompts) else list(prompts)
        pairs = [_prompt_pair(prompt) for prompt in each]
        _fields.refuse("generate", {"lora_request": lora_request, "tokenization_kwargs": tokenization_kwargs,
                                    "priority": priority}, _CALL_NEUTRAL | {"priority": (None, [0] * len(pairs))})
        return self._finish(pairs, sampling_params)

    def chat(self, messages: Messages | Sequence[Messages], sampling_params: Params = None, use_tqdm: bool = False,
             lora_request: None = None, chat_template: str | None = None, chat_template_content_format: str = "auto",
             add_generation_prompt: bool = True, continue_final_message: bool = False,
             tools: Sequence[Mapping[str, Any]] | None = None, chat_template_kwargs: Mapping[str, Any] | None = None,
             tokenization_kwargs: Mapping[str, Any] | None = None,
             mm_processor_kwargs: Mapping[str, Any] | None = None) -> list[RequestOutput]:
        """The answers to one conversation, or to each of some. Messages are OpenAI's: {"role": ..., "content": ...}.

        What messages say can never become a special token. chat_template: a Jinja template's text (not a file) in place
        of the model's. continue_final_message: the answer goes on with the last message; add_generation_prompt must
        then be False. tools: OpenAI's, for the template to tell of; calls are not parsed out of the answer.
        chat_template_kwargs: variables of the template; "documents" among them are what a template retrieves from.
        The others are as in generate(); of content formats, "auto" alone is taken.
        """
        _fields.flag("use_tqdm", use_tqdm)
        _fields.refuse("chat", {"lora_request": lora_request, "tokenization_kwargs": tokenization_kwargs,
                                "chat_template_content_format": chat_template_content_format,
                                "mm_processor_kwargs": mm_processor_kwargs}, _CALL_NEUTRAL)
        one = len(messages) == 0 or isinstance(messages[0], Mapping)
        conversations: Sequence[Any] = [messages] if one else messages
        pairs = [self._chat_prompt(conversation, chat_template=chat_template, tools=tools,
                                   add_generation_prompt=add_generation_prompt,
                                   continue_final_message=continue_final_message,
                                   chat_template_kwargs=chat_template_kwargs) for conversation in conversations]
        return self._finish(pairs, sampling_params)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Stream:
        """The answers to one prompt, piece by piece as they grow. Errors of the request are raised here."""
        return self._stream(_prompt_pair(prompt), sampling_params)

    def stream_chat(self, messages: Messages, sampling_params: SamplingParams | None = None, *,
                    chat_template: str | None = None, add_generation_prompt: bool = True,
                    continue_final_message: bool = False, tools: Sequence[Mapping[str, Any]] | None = None,
                    chat_template_kwargs: Mapping[str, Any] | None = None) -> Stream:
        """The answers to one conversation, piece by piece as they grow; as chat() otherwise."""
        pair = self._chat_prompt(messages, chat_template=chat_template, tools=tools,
                                 add_generation_prompt=add_generation_prompt,
                                 continue_final_message=continue_final_message,
                                 chat_template_kwargs=chat_template_kwargs)
        return self._stream(pair, sampling_params)

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer and chat template without the model."""
        return Tokenizer(self._llm, self._chat_prompt)

    def get_default_sampling_params(self) -> SamplingParams:
        """What calls without sampling_params use: what generation_config.json of a Hugging Face folder advises, else
        SamplingParams()."""
        return SamplingParams._of_advice(self._llm.default_sampling_params())

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids that generate() makes of a text."""
        return self._llm.tokenize(_fields.text("text", text), _fields.flag("add_special_tokens", add_special_tokens))

    def detokenize(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._llm.detokenize(_fields.token_ids("token_ids", list(token_ids)),
                                    _fields.flag("skip_special_tokens", skip_special_tokens))

    def _chat_prompt(self, messages: Messages, *, add_generation_prompt: bool, continue_final_message: bool,
                     tools: Sequence[Mapping[str, Any]] | None, chat_template: str | None,
                     chat_template_kwargs: Mapping[str, Any] | None,
                     documents: Sequence[Mapping[str, Any]] | None = None) -> _Pair:
        variables = dict(chat_template_kwargs or {})
        documents = variables.pop("documents", documents)
        options = _motley.ChatOptions()
        options.add_generation_prompt = _fields.flag("add_generation_prompt", add_generation_prompt)
        options.continue_final_message = _fields.flag("continue_final_message", continue_final_message)
        options.chat_template = "" if chat_template is None else _fields.text("chat_template", chat_template)
        options.tools = "" if tools is None else _fields.json_text("tools", _dicts("tools", tools))
        options.documents = "" if documents is None else _fields.json_text("documents", _dicts("documents", documents))
        options.template_variables = _fields.json_text("chat_template_kwargs", variables) if variables else ""
        return self._llm.chat_prompt(_fields.json_text("messages", _dicts("messages", messages)), options)

    def _start(self, pairs: list[_Pair], params: Params) -> _motley.Run:
        if params is None:
            params = self.get_default_sampling_params()
        if isinstance(params, SamplingParams):
            return self._llm.start(pairs, params._native())
        for one in params if isinstance(params, Sequence) else [params]:
            if not isinstance(one, SamplingParams):
                raise TypeError(f"sampling_params must be SamplingParams or a list of them, not {type(one).__name__}")
        return self._llm.start_each(pairs, [one._native() for one in params])

    def _finish(self, pairs: list[_Pair], params: Params) -> list[RequestOutput]:
        return [request_output(str(next(self._request_ids)), native) for native in self._start(pairs, params).wait()]

    def _stream(self, pair: _Pair, params: SamplingParams | None) -> Stream:
        return Stream(self._start([pair], params), str(next(self._request_ids)))
