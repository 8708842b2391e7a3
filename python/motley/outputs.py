"""What comes back, in vLLM's shapes."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Logprob:
    """`rank` 1 is the likeliest token; None for a chosen token that is not among the alternatives asked for."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One answer. In a stream: what it grew by since the last piece.

    token_ids: an end token included. logprobs: for each token a dict from id to Logprob, the chosen one first.
    finish_reason: "stop", "length" or "abort"; None while it runs. stop_reason: the stop string or stop token id that
    ended it, if one did.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """The answers to one prompt. `prompt` is None where token ids were given."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    num_cached_tokens: int = 0


def _logprobs(native: list[Any] | None) -> list[dict[int, Logprob]] | None:
    if native is None:
        return None
    return [{id_: Logprob(logprob, rank, text) for id_, logprob, rank, text in token} for token in native]


def request_output(request_id: str, native: tuple[Any, ...]) -> RequestOutput:
    _, prompt, prompt_token_ids, completions, cached, finished = native
    outputs = [CompletionOutput(index, text, ids, cumulative, _logprobs(logprobs), finish_reason, stop_reason)
               for index, text, ids, cumulative, logprobs, finish_reason, stop_reason in completions]
    return RequestOutput(request_id, prompt, prompt_token_ids, outputs, finished, cached)
