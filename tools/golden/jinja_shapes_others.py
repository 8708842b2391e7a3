# SPDX-License-Identifier: Apache-2.0
"""The rest of jinja_shapes.py: templates in the manner of further published families."""

SHAPES = {}

SHAPES["hermes-3"] = r"""{%- macro json_to_python_type(json_spec) %}
{%- set basic_type_map = {
    "string": "str",
    "number": "float",
    "integer": "int",
    "boolean": "bool"
} %}
{%- if basic_type_map[json_spec.type] is defined %}
    {{- basic_type_map[json_spec.type] }}
{%- elif json_spec.type == "array" %}
    {{- "list[" +  json_to_python_type(json_spec|items) + "]"}}
{%- elif json_spec.type == "object" %}
    {%- if json_spec.additionalProperties is defined %}
        {{- "dict[str, " + json_to_python_type(json_spec.additionalProperties) + ']'}}
    {%- else %}
        {{- "dict" }}
    {%- endif %}
{%- elif json_spec.type is iterable %}
    {{- "Union[" }}
    {%- for t in json_spec.type %}
      {{- json_to_python_type({"type": t}) }}
      {%- if not loop.last %}
        {{- "," }}
    {%- endif %}
    {%- endfor %}
    {{- "]" }}
{%- else %}
    {{- "Any" }}
{%- endif %}
{%- endmacro %}

{{- bos_token }}
{{- "<|im_start|>system\nSignatures between <tools></tools>: <tools> " }}
{%- for tool in tools or [] %}
  {%- if tool.function is defined %}
    {%- set tool = tool.function %}
  {%- endif %}
  {{- '{"type": "function", "function": ' }}
  {{- '{"name": "' + tool.name + '", ' }}
  {{- '"description": "' + tool.name + '(' }}
  {%- for param_name, param_fields in tool.parameters.properties|items %}
    {%- if param_fields.type != "array" %}{{- param_name + ": " + json_to_python_type(param_fields) }}{%- endif %}
    {%- if not loop.last %}
      {{- ", " }}
    {%- endif %}
  {%- endfor %}
  {{- ")" }}
  {%- if tool.return is defined %}
    {{- " -> " + json_to_python_type(tool.return) }}
  {%- endif %}
  {{- " - " + tool.description + "\n\n" }}
  {{- '", "parameters": ' }}
  {%- if tool.parameters.properties | length == 0 %}
    {{- "{}" }}
  {%- else %}
    {{- tool.parameters|tojson }}
  {%- endif %}
  {{- "}" }}
  {%- if not loop.last %}
    {{- "\n" }}
  {%- endif %}
{%- endfor %}
{{- " </tools>" }}
{{- '<|im_end|>\n' }}
{%- for message in messages %}
    {%- if message.role == "user" or message.role == "system" or (message.role == "assistant" and message.tool_calls is not defined) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
    {%- for tool_call in message.tool_calls %}
       {{- '\n<tool_call>\n' }}
           {%- if tool_call.function is defined %}
             {%- set tool_call = tool_call.function %}
           {%- endif %}
           {{- '{' }}
           {{- '"name": "' }}
           {{- tool_call.name }}
           {{- '"' }}
           {{- ', '}}
           {%- if tool_call.arguments is defined %}
               {{- '"arguments": ' }}
               {%- if tool_call.arguments is string %}
                   {{- tool_call.arguments }}
               {%- else %}
                   {{- tool_call.arguments|tojson }}
               {%- endif %}
           {%- endif %}
            {{- '}' }}
            {{- '\n</tool_call>' }}
    {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}
            {{- '<|im_start|>tool\n' }}
        {%- endif %}
        {{- '<tool_response>\n' }}
        {{- message.content }}
        {%- if not loop.last %}
            {{- '\n</tool_response>\n' }}
        {%- else %}
            {{- '\n</tool_response>' }}
        {%- endif %}
        {%- if not loop.last and loop.nextitem.role != "tool" %}
            {{- '<|im_end|>' }}
        {%- elif loop.last %}
            {{- '<|im_end|>' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

SHAPES["granite-3.3"] = r"""{%- if messages[0]['role'] == 'system' %}
     {%- set system_message = messages[0]['content'] %}
     {%- set loop_messages = messages[1:] %}
{%- else %}
     {%- set system_message = " Knowledge: April 2024.\n Today: " + strftime_now('%B %d, %Y') + "." %}
     {%- if tools and documents %}
         {%- set system_message = system_message + " Functions and texts follow." %}
     {%- elif tools %}
         {%- set system_message = system_message + " Functions follow." %}
     {%- elif documents %}
         {%- set system_message = system_message + " Texts follow." %}
     {%- elif thinking %}
         {%- set system_message = system_message + " Think between <think></think>." %}
     {%- endif %}
     {%- if 'citations' in controls and documents %}
         {%- set system_message = system_message + ' Cite with <|cite|>.' %}
     {%- endif %}
     {%- if 'hallucinations' in controls and documents %}
         {%- set system_message = system_message + ' List what is unsure.' %}
     {%- endif %}
     {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}
{%- if tools %}
     {{- '<|start_of_role|>available_tools<|end_of_role|>' }}
     {{- tools | tojson(indent=4) }}
     {{- '<|end_of_text|>\n' }}
{%- endif %}
{%- if documents %}
     {%- for document in documents %}
         {{- '<|start_of_role|>document {"document_id": "' + document['doc_id'] | string + '"}<|end_of_role|>\n' }}
         {{- document['text'] }}
         {{- '<|end_of_text|>\n' }}
     {%- endfor %}
{%- endif %}
{%- for message in loop_messages %}
     {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}
     {%- if message['content'] %}{{- message['content'] }}{%- endif %}
     {%- if message['tool_calls'] %}
         {%- for tool_call in message['tool_calls'] %}
             {{- '<|tool_call|>[' ~ tool_call['function']|tojson ~ ']' }}
         {%- endfor %}
     {%- endif %}
     {{- '<|end_of_text|>\n' }}
     {%- if loop.last and add_generation_prompt %}
         {{- '<|start_of_role|>assistant' }}
         {%- if controls %}
             {{- ' ' + controls | tojson()}}
         {%- endif %}
         {{- '<|end_of_role|>' }}
     {%- endif %}
{%- endfor %}"""

SHAPES["smollm3"] = r"""{# ───── defaults ───── #}
{%- if enable_thinking is not defined -%}
{%- set enable_thinking = true -%}
{%- endif -%}
{# ───── reasoning mode ───── #}
{%- if enable_thinking -%}
  {%- set reasoning_mode = "/think" -%}
{%- else -%}
  {%- set reasoning_mode = "/no_think" -%}
{%- endif -%}
{# ───── header (system message) ───── #}
{{- "<|im_start|>system\n" -}}
{%- if messages[0].role == "system" -%}
  {%- set system_message = messages[0].content -%}
  {%- if "/no_think" in system_message -%}
    {%- set reasoning_mode = "/no_think" -%}
  {%- elif "/think" in system_message -%}
    {%- set reasoning_mode = "/think" -%}
  {%- endif -%}
  {%- set custom_instructions = system_message.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{%- if "/system_override" in system_message -%}
  {{- custom_instructions.replace("/system_override", "").rstrip() -}}
  {{- "<|im_end|>\n" -}}
{%- else -%}
  {{- "## Metadata\n\n" -}}
  {{- "Knowledge ends: June 2025\n" -}}
  {%- set today = strftime_now("%d %B %Y") -%}
  {{- "Today: " ~ today ~ "\n" -}}
  {{- "Mode: " + reasoning_mode + "\n\n" -}}
  {{- "## Instructions\n\n" -}}
  {%- if custom_instructions -%}
    {{- custom_instructions + "\n\n" -}}
  {%- elif reasoning_mode == "/think" -%}
    {{- "Think first.\n\n" -}}
  {%- else -%}
    {{- "Be of use.\n\n" -}}
  {%- endif -%}
  {%- if xml_tools or python_tools or tools -%}
    {{- "### Functions\n\n" -}}
    {%- if xml_tools or tools -%}
      {%- if tools -%}
        {%- set xml_tools = tools -%}
      {%- endif -%}
      {%- set ns = namespace(xml_tool_string="Call these:\n\n<tools>\n") -%}
      {%- for tool in xml_tools[:] -%} {# the slice makes sure that it is a list #}
        {%- set ns.xml_tool_string = ns.xml_tool_string ~ (tool | string) ~ "\n" -%}
      {%- endfor -%}
      {%- set xml_tool_string = ns.xml_tool_string + "</tools>" -%}
      {{- xml_tool_string -}}
    {%- endif -%}
    {{- "\n\n" -}}
    {{- "<|im_end|>\n" -}}
  {%- else -%}
    {{- "<|im_end|>\n" -}}
  {%- endif -%}
{%- endif -%}
{# ───── main loop ───── #}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>" + message.role + "\n"  + content + "<|im_end|>\n" }}
    {%- elif message.role == "assistant" -%}
        {% generation %}
        {%- if reasoning_mode == "/think" -%}
            {{ "<|im_start|>assistant\n" + content.lstrip("\n") + "<|im_end|>\n" }}
        {%- else -%}
            {{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n" + content.lstrip("\n") + "<|im_end|>\n" }}
        {%- endif -%}
        {% endgeneration %}
    {%- elif message.role == "tool" -%}
    {{ "<|im_start|>" + "user\n"  + content + "<|im_end|>\n" }}
    {%- endif -%}
{%- endfor -%}
{# ───── generation prompt ───── #}
{%- if add_generation_prompt -%}
    {%- if reasoning_mode == "/think" -%}
        {{ "<|im_start|>assistant\n" }}
    {%- else -%}
        {{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n"  }}
    {%- endif -%}
{%- endif -%}"""

SHAPES["openchat"] = (
    "{{ bos_token }}{% for message in messages %}{{ 'GPT4 Correct ' + message['role'].title() + ': ' + message['content'] + '<|end_of_turn|>'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)

SHAPES["yi"] = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% endif %}"
    "{% if system_message is defined %}{{ system_message }}{% endif %}"
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'user' %}{{ '<|im_start|>user\\n' + content + '<|im_end|>\\n<|im_start|>assistant\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ content + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}"
)

SHAPES["internlm2"] = (
    "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SHAPES["falcon"] = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'].replace('\r\n', '\n').replace('\n\n', '\n') }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Falcon: ' + message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\n' + 'Falcon:' }}{% endif %}"
)

SHAPES["glm-4.5"] = r"""[gMASK]<sop>
{%- if tools -%}
<|system|>
# Functions

Between <tools></tools>:
<tools>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
</tools>

A call:
<tool_call>{function-name}
<arg_key>{key}</arg_key>
<arg_value>{value}</arg_value>
</tool_call>{%- endif -%}
{%- macro visible_text(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}
                {{- item.text }}
            {%- elif item is string -%}
                {{- item }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{- content }}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user_index=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {% set ns.last_user_index = loop.index0 -%}
    {%- endif %}
{%- endfor %}
{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>
{{ visible_text(m.content) }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not visible_text(m.content).endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- set reasoning_content = '' %}
{%- set content = visible_text(m.content) %}
{%- if m.reasoning_content is string %}
    {%- set reasoning_content = m.reasoning_content %}
{%- else %}
    {%- if '</think>' in content %}
        {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
{%- endif %}
{%- if loop.index0 > ns.last_user_index and reasoning_content -%}
{{ '\n<think>' + reasoning_content.strip() +  '</think>'}}
{%- else -%}
{{ '\n<think></think>' }}
{%- endif -%}
{%- if content.strip() -%}
{{ '\n' + content.strip() }}
{%- endif -%}
{% if m.tool_calls %}
{% for tc in m.tool_calls %}
{%- if tc.function %}
    {%- set tc = tc.function %}
{%- endif %}
{{ '\n<tool_call>' + tc.name }}
{% set _args = tc.arguments %}
{% for k, v in _args.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}
</tool_call>{% endfor %}
{% endif %}
{%- elif m.role == 'tool' -%}
{%- if m.content is string -%}
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
    {{- '<|observation|>' }}
{%- endif %}
{{- '\n<tool_response>\n' }}
{{- m.content }}
{{- '\n</tool_response>' }}
{%- else -%}
<|observation|>{% for tr in m.content %}

<tool_response>
{{ tr.output if tr.output is defined else tr }}
</tool_response>{% endfor -%}
{% endif -%}
{%- elif m.role == 'system' -%}
<|system|>
{{ visible_text(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}
{%- endif -%}"""

SHAPES["kimi-k2"] = r"""{%- macro render_content(msg) -%}
    {%- set c = msg.get('content') -%}
    {%- if c is string -%}
      {{ c }}
    {%- elif c is not none -%}
      {% for content in c -%}
        {% if content['type'] == 'image' or content['type'] == 'image_url' -%}
          <|media_start|>image<|media_content|><|media_pad|><|media_end|>
        {% else -%}
          {{ content['text'] }}
        {%- endif -%}
      {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}

{%- macro set_roles(message) -%}
  {%- set role_name =  message.get('name') or  message['role'] -%}
  {%- if message['role'] == 'user' -%}
    <|im_user|>{{role_name}}<|im_middle|>
  {%- elif message['role'] == 'assistant' -%}
    <|im_assistant|>{{role_name}}<|im_middle|>
  {%- else -%}
    <|im_system|>{{role_name}}<|im_middle|>
  {%- endif -%}
{%- endmacro -%}

{%- macro render_toolcalls(message) -%}
  <|tool_calls_section_begin|>
  {%- for tool_call in message['tool_calls'] -%}
    {%- set formatted_id = tool_call['id'] -%}
    <|tool_call_begin|>{{ formatted_id }}<|tool_call_argument_begin|>{% if tool_call['function']['arguments'] is string %}{{ tool_call['function']['arguments'] }}{% else %}{{ tool_call['function']['arguments'] | tojson }}{% endif %}<|tool_call_end|>
  {%- endfor -%}
  <|tool_calls_section_end|>
{%- endmacro -%}

{%- if tools -%}
  <|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}<|im_end|>
{%- endif -%}
{% for message in messages %}
  {%- if loop.first and messages[0]['role'] != 'system' -%}
    <|im_system|>system<|im_middle|>You are a model.<|im_end|>
  {%- endif -%}
  {{set_roles(message)}}
  {%- if message['role'] == 'assistant' and message.get('tool_calls') -%}
    {{render_content(message)}}{{render_toolcalls(message)}}
  {%- elif message['role'] == 'tool' -%}
    {%- set tool_call_id = message.tool_call_id -%}
    ## Return of {{ tool_call_id }}
{{render_content(message)}}
  {%- elif message['content'] is not none -%}
    {{render_content(message)}}
  {%- endif -%}
  <|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
  <|im_assistant|>assistant<|im_middle|>
{%- endif -%}
"""

SHAPES["nemotron"] = r"""{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- else %}{%- set system_message = "detailed thinking on" %}{%- endif %}
{%- if tools is not none and tools %}{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}{{- system_message + "\n\n" }}{{- "<TOOLS>[" }}{%- for t in tools %}{{- (t.function if t.function is defined else t) | tojson }}{{- ", " if not loop.last else "" }}{%- endfor %}{{- "]</TOOLS>" }}
{%- else %}{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}{{- system_message }}{%- endif %}{{- "<|eot_id|>" }}
{%- for message in messages %}
{%- if message['role'] == 'assistant' and '</think>' in (message['content'] or '') %}{%- set content = message['content'].split('</think>')[-1].lstrip() %}{%- else %}{%- set content = message['content'] or '' %}{%- endif %}
{%- if message['role'] == 'tool' %}
{%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|start_header_id|>user<|end_header_id|>\n\n<TOOL_RESPONSE>[' }}{%- endif %}{{- content }}{%- if loop.last or loop.nextitem.role != 'tool' %}{{- ']</TOOL_RESPONSE><|eot_id|>' }}{%- else %}{{- ', ' }}{%- endif %}
{%- elif message.tool_calls %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{{- '<TOOLCALL>[' }}{%- for call in message.tool_calls %}{{- '{"name": "' ~ call.function.name ~ '", "arguments": ' ~ (call.function.arguments if call.function.arguments is string else call.function.arguments|tojson) ~ '}' }}{{- ', ' if not loop.last }}{%- endfor %}{{- ']</TOOLCALL><|eot_id|>' }}
{%- else %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + content | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

SHAPES["functionary"] = r"""{# types of JSON schema in the manner of TypeScript, by one macro that calls itself #}
{%- macro typed(spec, level) -%}
{%- set pad = '  ' * level -%}
{%- if spec['$ref'] is defined %}any
{%- elif spec.anyOf is defined %}{% for s in spec.anyOf %}{{ typed(s, level) }}{% if not loop.last %} | {% endif %}{% endfor %}
{%- elif spec.enum is defined and spec.enum is iterable %}{{ spec.enum | map('tojson') | join(' | ') }}
{%- elif spec.type == 'object' %}{ {{- '\n' }}
{%- for key, value in (spec.properties or {}).items() %}
{%- if value.description is defined %}
{%- for line in value.description.splitlines() %}{{ pad }}  // {{ line|trim }}
{% endfor %}{% endif -%}
{{ pad }}  {{ key }}{{ '' if key in (spec.required or []) else '?' }}: {{ typed(value, level + 1) }},{{ ' // default: ' ~ value.default|tojson if value.default is defined }}
{% endfor %}{{ pad }}}
{%- elif spec.type == 'array' %}Array<{{ typed(spec['items'] or {'type': 'any'}, level) }}>
{%- elif spec.type in ['integer', 'float'] %}number
{%- elif spec.type is string %}{{ spec.type }}
{%- else %}{{ (spec.type or ['any']) | join(' | ') }}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- if tools -%}
<|start_header_id|>system<|end_header_id|>

namespace functions {

{% for tool in tools if tool.type == 'function' %}
// {{ tool.function.description|replace('\n', ' ') }}
type {{ tool.function.name }} = (_: {{ typed(tool.function.parameters, 0) }}) => any;

{% endfor %}
} // namespace functions<|eot_id|>
{%- endif %}
{%- for message in messages %}
    {%- if message.role in ('user', 'system') %}
        {{- '<|start_header_id|>%s<|end_header_id|>\n\n%s<|eot_id|>' % (message.role, message.content) }}
    {%- elif message.role == 'tool' %}
        {{- '<|start_header_id|>tool<|end_header_id|>\n\n%s<|eot_id|>' | format(message.content) }}
    {%- else %}
        {{- '<|start_header_id|>%s<|end_header_id|>\n\n' % message['role'] }}
        {%- if message['content'] is not none %}{{- '>>>all\n{}'.format(message['content']) }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '>>>{0[name]}\n{1}'.format(call.function, call.function.arguments|tojson if call.function.arguments is mapping else call.function.arguments) }}
        {%- endfor %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n>>>' }}{% endif %}"""

SHAPES["jamba"] = r"""{# blocks of a turn, then turns #}
{% set bom_str = bom_str or "<|bom|>" %}
{% set eom_str = eom_str or "<|eom|>" %}
{% set default_system_message = "" %}
{% set knobs = knobs or [] -%}
{%- set is_one_turn = messages|length == 1 -%}
{{- bos_token -}}
{%- set ns = namespace(message_count=0, is_last_checked_defined=False, last_user_index=-1) -%}
{%- if messages[0].role == "system" %}
    {%- set system_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = default_system_message %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- macro handle_documents(documents) %}
    {{- "\n\n<documents>" -}}
    {{- "\n# Texts" -}}
    {%- for doc in documents -%}
        {{- "\n\n## Text: " -}}
        {%- if 'title' in doc -%}{{- doc.title -}}{%- else -%}{{- loop.index -}}{%- endif -%}
        {%- for key, value in doc.items() %}
            {%- if key not in ['title', 'text'] -%}
                {%- if value is not none and value is defined -%}{{- "\n" ~ key|title ~ ": " ~ value|string -}}{%- endif -%}
            {%- endif -%}
        {%- endfor -%}
        {{- "\nText: " + doc.text|trim -}}
    {%- endfor -%}
    {{- "\n</documents>" -}}
{%- endmacro -%}
{%- macro handle_knobs(knobs) -%}
    {%- if knobs %}{{- "<|knobs|>" ~ knobs|map('upper')|join(',') -}}{%- endif -%}
{%- endmacro %}
{{- bom_str + "<|system|> " + system_message -}}
{%- if tools %}{{- "\n# Functions\n<tool_definitions>" + tools|map(attribute='function')|map('tojson')|join('\n') + "</tool_definitions>" -}}{%- endif %}
{%- if documents %}{{- handle_documents(documents) -}}{%- endif %}
{{- handle_knobs(knobs) + eom_str -}}
{%- for message in loop_messages -%}
    {%- set role = "<|" ~ message.role ~ "|> " -%}
    {%- if message.role == "assistant" and message.tool_calls -%}
        {{- bom_str + role + (message.content if message.content else "") + "<tool_calls>[" -}}
        {%- for call in message.tool_calls -%}
            {{- '\n{"name": ' + call.function.name|tojson + ', "arguments": ' -}}
            {{- call.function.arguments if call.function.arguments is string else call.function.arguments|tojson(sort_keys=true) -}}
            {{- "}" + ("," if not loop.last else "\n") -}}
        {%- endfor -%}
        {{- "]</tool_calls>" + eom_str -}}
    {%- elif message.role in ["user", "assistant", "tool"] -%}
        {{- bom_str + role + message.content|trim + eom_str -}}
    {%- else -%}
        {{- raise_exception("unknown role %r" % message.role) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- bom_str + "<|assistant|>" -}}{%- endif -%}"""

SHAPES["olmo2"] = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}"
    "{% else %}{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)

SHAPES["gpt-oss-builtin"] = r"""{%- macro render_builtin_tools(browser_tool, python_tool) -%}
    {%- if browser_tool %}
        {{- "## browser\n\n" }}
        {{- "// Searches.\n" }}
        {{- "namespace browser {\n\n" }}
        {{- "type search = (_: {\nquery: string,\ntopn?: number, // default: 10\n}) => any;\n\n" }}
        {{- "} // namespace browser\n\n" }}
    {%- endif -%}
    {%- if python_tool %}
        {{- "## python\n\n" }}
        {{- "Run Python.\n\n" }}
    {%- endif -%}
{%- endmacro -%}
{%- macro build_system_message() -%}
    {{- "You are a model.\n" }}
    {{- "Current date: " + strftime_now("%Y-%m-%d") + "\n\n" }}
    {{- "Reasoning: " + (reasoning_effort or "medium") + "\n\n" }}
    {%- if builtin_tools is defined and builtin_tools is not none %}
        {{- "# Tools\n\n" }}
        {%- set available_builtin_tools = namespace(browser=false, python=false) %}
        {%- for tool in builtin_tools %}
            {%- if tool == "browser" %}
                {%- set available_builtin_tools.browser = true %}
            {%- elif tool == "python" %}
                {%- set available_builtin_tools.python = true %}
            {%- endif %}
        {%- endfor %}
        {{- render_builtin_tools(available_builtin_tools.browser, available_builtin_tools.python) }}
    {%- endif -%}
    {{- "# Channels: analysis, commentary, final." }}
    {%- if tools -%}{{- "\nCalls to these go to 'commentary': 'functions'." }}{%- endif -%}
{%- endmacro -%}
{{- "<|start|>system<|message|>" }}{{- build_system_message() }}{{- "<|end|>" }}
{%- set last_tool_call = namespace(name=none) %}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if "content" in message and message.content is string and ("<|channel|>analysis<|message|>" in message.content or "<|channel|>final<|message|>" in message.content) %}
            {{- raise_exception("channel tags belong in 'thinking', not in 'content'") }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- set future_final_message = namespace(found=false) %}
            {%- for future_message in messages[loop.index0 + 1:] %}
                {%- if future_message.role == 'assistant' and "tool_calls" not in future_message %}
                    {%- set future_final_message.found = true %}
                {%- endif %}
            {%- endfor %}
            {%- set tool_call = message.tool_calls[0] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {%- if message.content and message.thinking %}
                {{- raise_exception("either content or thinking beside a call") }}
            {%- elif message.content and not future_final_message.found %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.content + "<|end|>" }}
            {%- elif message.thinking and not future_final_message.found %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant to=" }}
            {{- "functions." + tool_call.name + "<|channel|>commentary " }}
            {{- (tool_call.content_type if tool_call.content_type is defined else "json") + "<|message|>" }}
            {{- tool_call.arguments|tojson }}
            {{- "<|call|>" }}
            {%- set last_tool_call.name = tool_call.name %}
        {%- elif loop.last and not add_generation_prompt %}
            {%- if "thinking" in message %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
            {%- set last_tool_call.name = none %}
        {%- endif %}
    {%- elif message.role == 'tool' -%}
        {%- if last_tool_call.name is none %}
            {{- raise_exception("a result without a call") }}
        {%- endif %}
        {{- "<|start|>functions." + last_tool_call.name }}
        {{- " to=assistant<|channel|>commentary<|message|>" + message.content|tojson + "<|end|>" }}
    {%- elif message.role == 'user' -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{#- the next turn -#}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}"""

SHAPES["schema-tree"] = r"""{%- for tool in tools or [] %}
{{ tool.function.name }}
{%- for key, spec in tool.function.parameters.properties.items() recursive %}
{{ '  ' * loop.depth }}{{ loop.depth0 }}.{{ loop.index }}/{{ loop.length }} {{ key }}: {{ spec.type|join('|') if spec.type is not string else spec.type }}
{%- if spec.properties %}{{ loop(spec.properties.items()) }}{% endif %}
{%- if spec['items'] %}{{ loop([('[]', spec['items'])]) }}{% endif %}
{%- endfor %}
{%- else %}
nothing
{%- endfor %}"""
