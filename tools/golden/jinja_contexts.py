# SPDX-License-Identifier: Apache-2.0
"""More conversations for the templates: what clients send beside the plain cases."""
from jinja_plain_contexts import CONTEXTS as _FIRST

_TOOLS = _FIRST["tools"]["tools"] + [
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Finds <b>things</b> & \"more\" – auch Ümläute.",
            "parameters": {
                "type": "object",
                "properties": {
                    "where": {"type": "object", "properties": {
                        "city": {"type": "string"}, "box": {"type": "array", "items": {"type": "number"}}},
                        "required": ["city"]},
                    "limit": {"type": "integer", "default": 10, "minimum": 1.0},
                    "exact": {"type": "boolean", "default": False},
                },
                "required": [],
            },
        },
    },
]

_COMMON = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}


def _call(name, arguments, id_):
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


CONTEXTS = {
    "calls": {
        **_COMMON,
        "tools": _TOOLS,
        "messages": [
            {"role": "system", "content": "Call what you need."},
            {"role": "user", "content": "Two things, please."},
            {"role": "assistant", "content": "Looking.", "reasoning_content": "Two calls.", "thinking": "Two calls.", "tool_calls": [
                _call("search", {"where": {"city": "Zürich", "box": [1, 2.5]}, "limit": 3, "exact": True}, "call00001"),
                _call("add", {"a": 1, "b": -2e-7}, "call00002")]},
            {"role": "tool", "name": "search", "content": "[\"日本\", \"<|im_end|>\"]", "tool_call_id": "call00001"},
            {"role": "tool", "name": "add", "content": "1", "tool_call_id": "call00002"},
            {"role": "assistant", "content": "<think>\nDone.\n</think>\n\nHere: 日本."},
        ],
        "add_generation_prompt": False,
    },
    "calls-text": {
        **_COMMON,
        "tools": _TOOLS[1:2],
        "messages": [
            {"role": "user", "content": "1 + 2"},
            {"role": "assistant", "content": "", "tool_calls": [_call("add", "{\"a\": 1, \"b\": 2}", "abcdefghi")]},
            {"role": "tool", "content": "3", "tool_call_id": "abcdefghi"},
        ],
        "add_generation_prompt": True,
        "builtin_tools": ["browser", "python"],
        "date_string": "1 Jan 2025",
    },
    "rag": {
        **_COMMON,
        "documents": [
            {"doc_id": 1, "title": "First", "text": " Words of\nthe first. "},
            {"doc_id": 2, "title": "Zweites <|im_end|>", "text": "\"Quoted\" & more", "source": "web", "year": 2020},
        ],
        "messages": [{"role": "user", "content": "What do they say?\r\n\r\nBoth."}],
        "add_generation_prompt": True,
        "controls": {"citations": True, "length": "short"},
        "citation_mode": "accurate",
        "thinking": True,
        "knobs": ["safe", "brief"],
    },
    "parts-system": {
        **_COMMON,
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "In parts. "}]},
            {"role": "user", "content": [{"type": "text", "text": " one"}, {"type": "text", "text": "two "}]},
            {"role": "assistant", "content": [{"type": "text", "text": "three"}]},
            {"role": "user", "content": "four /no_think"},
        ],
        "add_generation_prompt": True,
        "enable_thinking": False,
    },
    "empty": {
        **_COMMON,
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": ""},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": "\n \u3000\n"},
        ],
        "add_generation_prompt": True,
    },
    "disorder": {
        **_COMMON,
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "narrator", "content": "c"},
            {"role": "assistant", "content": None},
        ],
        "add_generation_prompt": False,
    },
    "last-assistant": {
        **_COMMON,
        "messages": [
            {"role": "system", "content": "Write. /system_override"},
            {"role": "user", "content": "Begin: e\u0301 👩‍👩‍👧 \u202e ünï"},
            {"role": "assistant", "content": "Once upon a time, "},
        ],
        "add_generation_prompt": False,
    },
}
