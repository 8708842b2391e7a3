#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/jinja_cases.json: templates, variables, and what Jinja2 renders (null: it refuses).

Needs Jinja2 alone. The environment is the one in which transformers renders chat templates.
The templates are in jinja_templates.py, the small expressions in jinja_expressions.py, both beside this file.
"""
import datetime
import json
import os
import pathlib
import sys

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

sys.path.insert(0, os.path.dirname(__file__))
from jinja_expressions import EXPRESSIONS, STATEMENTS  # noqa: E402
from jinja_templates import CONTEXTS, TEMPLATES  # noqa: E402

NOW = datetime.datetime(2024, 7, 26, 12, 34, 56)
OUTPUT = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/jinja_cases.json"


class Generation(Extension):
    """{% generation %} as a tag that only groups."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return body


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


def render(template, variables):
    try:
        return environment().from_string(template).render(**variables)
    except Exception:  # every refusal counts the same
        return None


def main():
    cases = []
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
    text = json.dumps({"contexts": CONTEXTS, "templates": TEMPLATES, "cases": cases}, ensure_ascii=False, indent=0)
    OUTPUT.write_text(text + "\n", encoding="utf-8")
    refused = sum(c["output"] is None for c in cases)
    print(f"{len(cases)} cases, {refused} refused, {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
