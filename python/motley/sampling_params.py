"""How tokens are chosen and where an answer ends."""
from __future__ import annotations

import copy
import struct
from typing import Any

from . import _fields, _motley

_FIELDS: dict[str, _fields.Convert] = {
    "n": _fields.count, "temperature": _fields.number, "top_p": _fields.number, "top_k": _fields.integer,
    "min_p": _fields.number, "presence_penalty": _fields.number, "frequency_penalty": _fields.number,
    "repetition_penalty": _fields.number, "seed": _fields.seed, "max_tokens": _fields.count,
    "min_tokens": _fields.count, "ignore_eos": _fields.flag, "stop": _fields.texts,
    "stop_token_ids": _fields.token_ids, "include_stop_str_in_output": _fields.flag,
    "skip_special_tokens": _fields.flag, "logit_bias": _fields.biases, "logprobs": _fields.count,
}
# vLLM's parameters that are not built, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1), "prompt_logprobs": (None,), "bad_words": (None, []), "allowed_token_ids": (None,),
    "structured_outputs": (None,), "guided_decoding": (None,), "detokenize": (True,), "output_kind": (),
    "spaces_between_special_tokens": (True,), "truncate_prompt_tokens": (None,), "logits_processors": (None, []),
    "extra_args": (None, {}), "logprob_token_ids": (None,), "flat_logprobs": (False,),
    "thinking_token_budget": (None,), "repetition_detection": (None,),
}


def _decimal(single: float) -> float:
    """The shortest decimal that a float32 stands for: 0.6, where it came as 0.6000000238418579."""
    for digits in range(6, 9):
        short = float(f"{single:.{digits}g}")
        if struct.unpack("f", struct.pack("f", short))[0] == single:
            return short
    return single


class SamplingParams:
    """vLLM's names, meanings and defaults. Ranges are checked when the parameters are used, by the engine.

    n: answers to each prompt. temperature: 0 = greedy. top_k: 0 or -1 = off. seed: the same seed, the same answer.
    max_tokens: None, and at most, what the context leaves. min_tokens: until then nothing ends the answer.
    stop: one text or some that end it. logprobs: alternatives to report for each token (0 = the chosen one alone).
    """

    def __init__(self, n: int = 1, presence_penalty: float = 0.0, frequency_penalty: float = 0.0,
                 repetition_penalty: float = 1.0, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0,
                 min_p: float = 0.0, seed: int | None = None, stop: str | list[str] | None = None,
                 stop_token_ids: list[int] | None = None, ignore_eos: bool = False, max_tokens: int | None = 16,
                 min_tokens: int = 0, logprobs: int | None = None, include_stop_str_in_output: bool = False,
                 skip_special_tokens: bool = True, logit_bias: dict[int, float] | None = None, **others: Any) -> None:
        _fields.refuse("SamplingParams", others, _NEUTRAL)
        self.n = n
        self.presence_penalty = presence_penalty
        self.frequency_penalty = frequency_penalty
        self.repetition_penalty = repetition_penalty
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.min_p = min_p
        self.seed = seed
        self.stop = stop
        self.stop_token_ids = stop_token_ids
        self.ignore_eos = ignore_eos
        self.max_tokens = max_tokens
        self.min_tokens = min_tokens
        self.logprobs = logprobs
        self.include_stop_str_in_output = include_stop_str_in_output
        self.skip_special_tokens = skip_special_tokens
        self.logit_bias = logit_bias

    def __repr__(self) -> str:
        return f"SamplingParams({', '.join(f'{name}={getattr(self, name)!r}' for name in _FIELDS)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SamplingParams) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # its fields can be changed

    def clone(self) -> SamplingParams:
        """A copy that shares nothing with this one."""
        return copy.deepcopy(self)

    @classmethod
    def _of_advice(cls, native: _motley.SamplingParams) -> SamplingParams:
        """Of LLM.default_sampling_params(): the fields that a model may advise."""
        return cls(temperature=_decimal(native.temperature), top_p=_decimal(native.top_p), top_k=native.top_k,
                   min_p=_decimal(native.min_p), repetition_penalty=_decimal(native.repetition_penalty),
                   max_tokens=native.max_tokens)

    def _native(self) -> _motley.SamplingParams:
        native = _motley.SamplingParams()
        _fields.fill(native, _FIELDS, vars(self), none=frozenset({"max_tokens"}))
        return native
