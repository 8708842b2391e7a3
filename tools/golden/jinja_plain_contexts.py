# SPDX-License-Identifier: Apache-2.0
"""The plain conversations for the templates: turns, a system text, tools."""

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place.\nNow or later.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "A town, e.g. \"Zürich\""},
                    "days": {"type": ["integer", "null"], "description": "How far ahead", "default": 1},
                    "units": {"type": "string", "enum": ["metric", "imperial"], "description": "Units"},
                    "fields": {"type": "array", "items": {"type": "string"}, "description": "What to tell"},
                },
                "required": ["place"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds numbers.",
            "parameters": {"type": "object", "properties": {
                "a": {"type": "number", "description": " first "}, "b": {"type": "number", "description": "second"}},
                "required": ["a", "b"]},
        },
    },
]

_COMMON = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}

CONTEXTS = {
    "plain": {
        **_COMMON,
        "messages": [
            {"role": "system", "content": " Be brief. "},
            {"role": "user", "content": "  Hello, wörld!\nHow are you?  "},
            {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nFine."},
            {"role": "user", "content": "What is 2 < 3 && \"x\"? <|im_end|>"},
        ],
        "add_generation_prompt": True,
    },
    "no-system": {
        **_COMMON,
        "messages": [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Two", "reasoning_content": "Counting."},
            {"role": "user", "content": "Three"},
            {"role": "assistant", "content": "Four", "reasoning_content": "\nStill counting.\n"},
        ],
        "add_generation_prompt": False,
        "enable_thinking": False,
    },
    "tools": {
        **_COMMON,
        "tools": _TOOLS,
        "messages": [
            {"role": "user", "content": "Weather in Bern and 1+2?"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "call12345", "type": "function",
                 "function": {"name": "get_weather", "arguments": {"place": "Bern", "days": 2}}}]},
            {"role": "tool", "content": "{\"sun\": true}", "tool_call_id": "call12345"},
            {"role": "assistant", "content": "Sunny.\n"},
            {"role": "user", "content": "Thanks"},
        ],
        "add_generation_prompt": True,
        "enable_thinking": False,
    },
    "parts": {
        **_COMMON,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "text", "text": "here"}]},
        ],
        "add_generation_prompt": True,
    },
    "values": {
        "x": 3, "y": 0, "z": None, "s": "hello", "u": "äöü ßñ日本😀", "pad": " \t padded\n ", "big": 9223372036854775807,
        "l": [1, 2, 3], "d": {"a": 1, "b": "two", "nested": {"list": [1, 2]}},
        "nested": {"a": {"b": {"c": ["p", "q"]}}},
        "people": [
            {"name": "Ann", "age": 30, "team": "red"}, {"name": "Bob", "age": 25, "team": "Blue"},
            {"name": "Cem", "age": 41, "team": "red", "nick": "C"}, {"name": "Dua", "age": 0, "team": "blue"},
        ],
    },
}
