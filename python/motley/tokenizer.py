"""The tokenizer of a model, as a thing of its own."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, overload

from . import _fields, _motley

_Render = Callable[..., "tuple[str | None, list[int]]"]


# What transformers' apply_chat_template takes beside the template's variables, and the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "return_tensors": (None,), "return_dict": (False,), "return_assistant_tokens_mask": (False,), "padding": (False,),
    "truncation": (False,), "max_length": (None,), "tokenizer_kwargs": (None,)}


class Tokenizer:
    """What LLM.get_tokenizer() gives: the model's own, under the names that transformers has for it.

    Not transformers' class: what is not here, there is not. vocab_size and len() are the model's, which may have more
    ids than the tokenizer has tokens. Any number of threads may use it; it keeps its model alive.
    """

    def __init__(self, llm: _motley.LLM, render: _Render) -> None:
        self._llm = llm
        self._render = render
        info = llm.info()
        self.vocab_size: int = info.vocab_size
        self.bos_token_id: int | None = info.bos_token_id
        self.eos_token_id: int | None = info.eos_token_id

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def bos_token(self) -> str | None:
        return None if self.bos_token_id is None else self.decode([self.bos_token_id])

    @property
    def eos_token(self) -> str | None:
        return None if self.eos_token_id is None else self.decode([self.eos_token_id])

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Text that spells a special token becomes that token."""
        return self._llm.tokenize(_fields.text("text", text), _fields.flag("add_special_tokens", add_special_tokens))

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text; bytes that are no UTF-8 become U+FFFD. As in transformers, and other than in LLM.detokenize(), special
        tokens are written out unless they are to be skipped."""
        ids = [token_ids] if hasattr(token_ids, "__index__") else list(token_ids)
        return self._llm.detokenize(_fields.token_ids("token_ids", ids),
                                    _fields.flag("skip_special_tokens", skip_special_tokens))

    @overload
    def apply_chat_template(self, conversation: Sequence[Mapping[str, Any]],
                            tools: Sequence[Mapping[str, Any]] | None = ...,
                            documents: Sequence[Mapping[str, Any]] | None = ..., chat_template: str | None = ...,
                            add_generation_prompt: bool = ..., continue_final_message: bool = ...,
                            tokenize: Literal[True] = ..., **variables: Any) -> list[int]: ...

    @overload
    def apply_chat_template(self, conversation: Sequence[Mapping[str, Any]],
                            tools: Sequence[Mapping[str, Any]] | None = ...,
                            documents: Sequence[Mapping[str, Any]] | None = ..., chat_template: str | None = ...,
                            add_generation_prompt: bool = ..., continue_final_message: bool = ..., *,
                            tokenize: Literal[False], **variables: Any) -> str: ...

    def apply_chat_template(self, conversation: Sequence[Mapping[str, Any]],
                            tools: Sequence[Mapping[str, Any]] | None = None,
                            documents: Sequence[Mapping[str, Any]] | None = None, chat_template: str | None = None,
                            add_generation_prompt: bool = False, continue_final_message: bool = False,
                            tokenize: bool = True, **variables: Any) -> Union[list[int], str]:
        """One conversation as a prompt: token ids, or its text. In the ids, what messages say is never a special token;
        a text that is tokenised again has lost that difference. Further keywords are variables of the template."""
        known = {name: variables.pop(name) for name in list(variables) if name in _NEUTRAL}
        _fields.refuse("apply_chat_template", known, _NEUTRAL)
        text, ids = self._render(conversation, tools=tools, documents=documents, chat_template=chat_template,
                                 add_generation_prompt=add_generation_prompt,
                                 continue_final_message=continue_final_message, chat_template_kwargs=variables)
        return ids if _fields.flag("tokenize", tokenize) else text or ""
