"""Motley: large language models on whatever compute is there, in your own program.

    from motley import LLM, SamplingParams

    llm = LLM(model="model.gguf")
    for output in llm.generate(["The capital of France is"], SamplingParams(temperature=0)):
        print(output.outputs[0].text)
"""
from importlib.metadata import version as _version

from .errors import Error, InvalidArgumentError, NotFoundError, UnimplementedError
from .llm import LLM, Stream
from .outputs import CompletionOutput, Logprob, RequestOutput
from .sampling_params import SamplingParams
from .tokenizer import Tokenizer

__version__ = _version("motley")
__all__ = ["CompletionOutput", "Error", "InvalidArgumentError", "LLM", "Logprob", "NotFoundError", "RequestOutput",
           "SamplingParams", "Stream", "Tokenizer", "UnimplementedError"]
