from typing import Any

class LlmOptions:
    def __init__(self) -> None: ...
    model: str
    devices: str
    device_map: str
    tensor_parallel_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    quality: str
    kv_cache_dtype: str
    kv_cache_memory_bytes: int
    enable_prefix_caching: bool
    enable_chunked_prefill: bool
    threads: int
    deterministic: bool
    chat_template: str
    seed: int | None

class SamplingParams:
    def __init__(self) -> None: ...
    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    seed: int | None
    max_tokens: int | None
    min_tokens: int
    ignore_eos: bool
    stop: list[str]
    stop_token_ids: list[int]
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    logit_bias: dict[int, float]
    logprobs: int | None

class ChatOptions:
    def __init__(self) -> None: ...
    add_generation_prompt: bool
    continue_final_message: bool
    tools: str
    documents: str
    template_variables: str
    chat_template: str

class ModelInfo:
    @property
    def name(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def ffn(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def has_chat_template(self) -> bool: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_id(self) -> int | None: ...

class Run:
    def wait(self) -> list[tuple[Any, ...]]: ...
    def next(self) -> tuple[Any, ...] | None: ...
    def cancel(self) -> None: ...

class LLM:
    def __init__(self, options: LlmOptions) -> None: ...
    def start(self, prompts: list[tuple[str | None, list[int]]], params: SamplingParams) -> Run: ...
    def start_each(self, prompts: list[tuple[str | None, list[int]]], params: list[SamplingParams]) -> Run: ...
    def chat_prompt(self, messages_json: str, options: ChatOptions) -> tuple[str | None, list[int]]: ...
    def default_sampling_params(self) -> SamplingParams: ...
    def tokenize(self, text: str, add_special_tokens: bool) -> list[int]: ...
    def detokenize(self, token_ids: list[int], skip_special_tokens: bool) -> str: ...
    def info(self) -> ModelInfo: ...
