#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/jinja_cases.json: templates, variables, and what Jinja2 renders (null: it refuses).

Needs Jinja2 (3.1.6) alone. The environment is the one in which transformers renders chat templates.
Beside this file: jinja_templates.py, jinja_shapes.py, jinja_shapes_others.py (templates), jinja_plain_contexts.py, jinja_contexts.py
(conversations), jinja_expressions.py, jinja_language.py (small expressions and statements).
"""
import copy
import datetime
import functools
import json
import os
import pathlib
import sys

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

sys.path.insert(0, os.path.dirname(__file__))
import jinja_contexts  # noqa: E402
import jinja_expressions  # noqa: E402
import jinja_language  # noqa: E402
import jinja_plain_contexts  # noqa: E402
import jinja_shapes  # noqa: E402
import jinja_shapes_others  # noqa: E402
import jinja_templates  # noqa: E402

CONTEXTS = jinja_plain_contexts.CONTEXTS | jinja_contexts.CONTEXTS
TEMPLATES = jinja_templates.TEMPLATES | jinja_shapes.SHAPES | jinja_shapes_others.SHAPES
EXPRESSIONS = jinja_expressions.EXPRESSIONS + jinja_language.EXPRESSIONS
STATEMENTS = jinja_expressions.STATEMENTS + jinja_language.STATEMENTS
CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "

NOW = datetime.datetime(2024, 7, 26, 12, 34, 56)
OUTPUT = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/jinja_cases.json"


class Generation(Extension):
    """{% generation %}, a call block as in transformers."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(lineno)

    @staticmethod
    def _render(caller):
        return caller()


@functools.lru_cache(maxsize=1)
def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


@functools.lru_cache(maxsize=None)
def compiled(template):
    return environment().from_string(template)


def render(template, variables):
    try:
        return compiled(template).render(**variables)
    except Exception:  # every refusal counts the same
        return None


def continued(template, variables):
    """What transformers' apply_chat_template gives with continue_final_message."""
    chat = copy.deepcopy(variables["messages"])
    content = chat[-1]["content"]
    chat[-1]["content"] += CONTINUE_TAG
    text = render(template, {**variables, "messages": chat})
    if text is None or content.strip() not in text or CONTINUE_TAG.strip() not in text:
        return None
    end = text.rindex(CONTINUE_TAG.strip())
    return text[:end] if text[end:].startswith(CONTINUE_TAG) else text[:end].rstrip()


def main():
    cases = []
    continuations = [{"template": "@" + name, "variables": "last-assistant",
                      "output": continued(template, CONTEXTS["last-assistant"])}
                     for name, template in TEMPLATES.items()]
    for name, template in TEMPLATES.items():
        for context, variables in CONTEXTS.items():
            if context == "values":
                continue
            output = render(template, variables)
            cases.append({"name": f"{name}/{context}", "template": "@" + name, "variables": context, "output": output})
    values = CONTEXTS["values"]
    for i, expression in enumerate(EXPRESSIONS):
        template = "{{ " + expression + " }}"
        cases.append({"name": f"expression {i}", "template": template, "variables": "values",
                      "output": render(template, values)})
    for i, template in enumerate(STATEMENTS):
        cases.append({"name": f"statement {i}", "template": template, "variables": "values",
                      "output": render(template, values)})
    # What shows an address is different every time.
    cases = [c for c in cases if " at 0x" not in (c["output"] or "")]
    golden = {"contexts": CONTEXTS, "templates": TEMPLATES, "cases": cases, "continuations": continuations}
    text = json.dumps(golden, ensure_ascii=False, indent=0)
    OUTPUT.write_text(text + "\n", encoding="utf-8")
    refused = sum(c["output"] is None for c in cases)
    print(f"{len(cases)} cases, {refused} refused, {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
