# SPDX-License-Identifier: Apache-2.0
"""More of the language for jinja.py, feature by feature; the variables are CONTEXTS["values"]."""

EXPRESSIONS = r"""
1000|filesizeformat
1|filesizeformat
0|filesizeformat
13000|filesizeformat
4100000|filesizeformat
5000000000000|filesizeformat
1024|filesizeformat(true)
1000000|filesizeformat(binary=true)
1.5|filesizeformat
'2000'|filesizeformat
999.9|filesizeformat
'Hello World'.istitle()
'hello'.istitle()
'abc'.isprintable()
'abc1'.isidentifier()
'1abc'.isidentifier()
'{a}'.format_map({'a': 1})
'{a}'.format_map(d)
d.items()|list|first
d.keys()|list
d.values()|list|length
d.items()|length
(d.items()|list)[0][1]
'abc'|list|reverse|join
[1,2,3]|map('multiply', 2)|list
'a,b'.split(sep=',')
'a b c'.split(' ', maxsplit=1)
'a b c'.split(maxsplit=1)
'x'.join(['a', 1|string])
'x'.replace('x', 'y', -1)
'abc'.replace('b', '')
"%s"|format(none)
"%d items"|format(3)
"%05.1f|%+d|% d"|format(3.14159, 5, 7)
"%-10s|%10s|"|format('a','b')
"%*d"|format(5, 3)
"{:>{w}}".format('a', w=5)
"{0[a]} {0[nested][list][0]}".format(d)
"{:.3}".format('abcdef')
"{:.3}".format(3.14159)
"{:,}".format(1234567.891)
"{:_}".format(1234567)
"{:#x}".format(255)
"{:08.3f}".format(3.14159)
"{:e}".format(0)
"{:g}".format(1e10)
"{:n}".format(1234)
"{:c}".format(65)
"{:b}".format(10)
"{:^+10d}".format(5)
"{:=+10d}".format(5)
"{!s:>5}".format(1)
"{:%}".format(0.5)
"{:.0%}".format(0.5)
"{}".format(none)
"{}".format([1,'a'])
"{}".format(true)
"{:d}".format(true)
"{:>5}".format(none)
1e100
1e22
1e21
123456789.123
0.0001
0.00001
-0.0
1.0e5
5e-324
1.7976931348623157e308
2.5e-5
100000000000000000.0
1/3
2/3*3
10**18
7.0 // 2
-7 // 2.0
7 % -3.5
(-8) ** 2
1 == 1.0 == true
1 < 2 < 3 < 2
'a' < 'b' < 'c'
1 in [1,2] == true
not 1 in [2]
1 not in [2]
not true == false
(2 ** 3) ** 2
'a' ~ 1 + 2
1 ~ 2 * 3
'a' ~ 'b' ~ 'c' | upper
'abc'[::2]
'abc'[-1:]
'abc'[:-1]
'abcdef'[1:5:2]
'abcdef'[5:1:-1]
l[-2:]
l[:1] + l[1:]
(1,2,3)[1:]
(1,2,3)[::-1]
range(10)[::3]|list
range(10)[-1]
l[none:2]
l[:none]
people|map(attribute='nick', default='none')|list
people|selectattr('nick')|list|length
people|selectattr('age', '>=', 30)|map(attribute='name')|list
people|selectattr('age', 'ge', 30)|map(attribute='name')|join(', ')
people|selectattr('name', 'in', ['Ann', 'Bob'])|map(attribute='name')|list
people|rejectattr('nick', 'defined')|map(attribute='name')|list
people|map('attr', 'name')|list
people|map('items')|list|length
people|groupby('team')|list|length
people|groupby('nick', default='?')|map('first')|list
people|groupby('team', case_sensitive=true)|map(attribute='grouper')|list
people|map(attribute='age')|max
people|map(attribute='age')|sort|list
people|map(attribute='age')|sort(reverse=true)|first
people|sort(attribute='name', reverse=true)|map(attribute='name')|list
people|first|dictsort
people|first|items|list
people|last
(people|first).name
people[0]['name']|lower
people|length > 2 and people[0].name == 'Ann'
people|tojson(indent=2)
people|tojson(indent='--')
people|tojson(indent=0)
people|tojson(indent=2, separators=(',', ': '))
people|tojson(separators=(',', ':'), sort_keys=true)
people|tojson(True)
u|tojson
u|tojson(ensure_ascii=true)
u|tojson(true)
'</s>\u2028\x7f'|tojson
{'a': none, 'b': true}|tojson
{'b': {'z': 1, 'a': 2}, 'a': []}|tojson(sort_keys=true, indent=1)
{1: 1, 'a': 2}|tojson(sort_keys=true)
[1e16, 1e-7, 1.0, -0.0, 123456789012345.0]|tojson
[missing]|tojson
range|tojson
d.items()|tojson
d.items()|list|tojson
l|map('string')|tojson
namespace(a=1)|tojson
x|int ~ 'a'
'12abc'|int
'12.7'|int
'-12'|int
'1e3'|int
'  3  '|float
'0b11'|int(base=2)
'0o17'|int(base=8)
'z'|int(base=36)
none|int(5)
[]|int
true|float
'inf'|float
5|float
5.7|round|int
5.5|round
6.5|round
-5.5|round
5.55|round(1)
1234.567|round(-2)
2.5|round(1, 'floor')
x|abs
'abc'|center(10)
'abc'|center
'foo bar'|title
'FOO bar-baz'|title
"it's"|capitalize
'foo bar baz'|truncate(5)
'foo bar baz'|truncate(5, true)
'foo bar baz'|truncate(7, false, '…', 0)
'a b'|wordcount
'  a  '|trim|length
'..a..'|trim('.')
'xyx'|trim('x')|upper
''|default('x', true)
none|default('x')
missing|default
missing|default('a')|upper
d.zz|default('q')
d.nested.list|join('-')
l|batch(2)|map('list')|list
l|slice(2)|map('list')|list
l|join(', ', attribute=none)
['a', 'B', 'c']|sort
['a', 'B', 'c']|sort(case_sensitive=true)
['a', 'B', 'A']|unique|join
['a', 'B', 'A']|unique(true)|join
l|sum(start=10)
''|list
d|join(',')
d is iterable
'x' is sequence
x is divisibleby(3)
x is divisibleby 2
x is eq(3)
x is not eq 3
x is in [1,2,3]
x is in l
'k' is in {'k': 1}
x is sameas 3
true is sameas true
1 is sameas true
x is integer and x is not float
x is number
missing is defined or x is defined
d.a is defined and d.zz is not defined
d.zz is undefined
d.items is callable
x is odd
x is even
'tojson' is filter
'nope' is filter
'divisibleby' is test
loop is defined
caller is defined
varargs is defined
d.pop
l.extend is defined
d.update is defined
d['items']
d['a'].upper()
{'items': 5}.items
{'items': 5}['items']
{'get': 1}.get
{'keys': [1]}['keys']
{'a b': 1}['a b']
{'x': {'y': [10, 20]}}.x.y[1]
{'x': {'y': [10, 20]}}.x.y.1
{'x': 1}.x + 1
{**d}
[*l]
(1 if x else 2) + 3
1 if x == 3 else 2 if x == 4 else 5
'a' if missing else ('b' if x else 'c')
x if x is defined and x > 2
'yes' if 'a' in d else 'no'
'yes' if d.get('zz') is none else 'no'
d.get('zz', {}).get('b', 'deep')
d.get('nested', {}).get('list', [])|length
(d.items()|list|length) == 3
d == {'a': 1, 'b': 'two', 'nested': {'list': [1, 2]}}
[1, 2] == (1, 2)
[1,2,3] == l
l != [1,2,3]
l > [1,2]
'a' == 'a' != 'b'
none == false
0 == false
'' == false
missing or 'x'
missing and 'x'
not missing
x and y or z
(x, y, z)
[x, y, z]|select|list
dict(a=1).a
dict([['k', 'v']], z=2)
dict(d, q=1)|length
namespace(**d).a
namespace(d, z=5).z
namespace(_a=1)
cycler is defined
joiner is defined
cycler('a','b','c').current
strftime_now('%A %d %B %Y, %H:%M:%S %p %j %U %y %%')
strftime_now("%-d %B %Y")
strftime_now('')
raise_exception()
raise_exception('a', 'b')
'\x41\u00e9\n\t'
'tab	inside'
"double 'single'"
'single "double"'
'back\\slash'
"a" "b"
'a' 'b' ~ 'c'
1_000 + 1
0xFF
0b101
1.5e3
1E5
1.0
5.
- 5 | abs
-(5)
+5
not x
not(x)
(not x) == false
x is not defined
x is none or x > 2
[[1,2],[3,4]]|map('first')|list
[[1,2],[3,4]]|map('last')|list
[[1,2],[3,4]]|map('sum')|list
[[1,2],[3,4]]|sum(start=[])
[3,1,2]|sort|reverse|list
'b,a'|replace(',', ';')
'aaa'|replace('a', 'b', 2)
'a.b.c'.split('.')|last
'abc'.find('c')
'abc'.index('b')
'a-b_c'.replace('-', '_').split('_')|join(' ')
'Hello'.lower().startswith('he')
'Hello'.endswith(('lo', 'x'))
' x '.strip() == 'x'
'\n\nx\n'.strip('\n')
'x' * 3
'-' * 10 ~ '>'
['a'] * 3
'abc'.upper().lower().title()
'abc' in 'xabcx'
'a' in ['a']
'a' in ('a', 'b')
'z' not in d
3 in l and 4 not in l
u.upper()
u|lower|length
'ǆ'.title()
'ß'.casefold()
'İ'.lower()
'٣'.isdigit()
'²'.isdigit()
'²'.isdecimal()
'½'.isnumeric()
'ab\u00a0c'.split()
'\u3000x\u2003'.strip()
'日本語'.center(7, '*')
'日本語'[1]
'e\u0301'|length
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|tojson
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|string
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|map('string')|list
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|select('string')|list
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|select('number')|list
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|select('mapping')|list
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|select('none')|list
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|select('sequence')|list
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|reject('none')|list|length
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|select('integer')|list
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|select('boolean')|list
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|select('float')|list
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|select('iterable')|list
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|map('default', 'x')|list
[1, 'a', none, 2.5, true, [1], {'k': 'v'}]|map('tojson')|join(' ')
'The quick brown fox jumps over the lazy dog and runs-away from the extraordinarily-long-hyphenated-word while thinking about supercalifragilisticexpialidocious things.\nSecond line here.\n\nThird   spaced  line'|wordwrap(20)
'The quick brown fox jumps over the lazy dog and runs-away from the extraordinarily-long-hyphenated-word while thinking about supercalifragilisticexpialidocious things.\nSecond line here.\n\nThird   spaced  line'|wordwrap(20, false)
'The quick brown fox jumps over the lazy dog and runs-away from the extraordinarily-long-hyphenated-word while thinking about supercalifragilisticexpialidocious things.\nSecond line here.\n\nThird   spaced  line'|wordwrap(30, true, '|')
'The quick brown fox jumps over the lazy dog and runs-away from the extraordinarily-long-hyphenated-word while thinking about supercalifragilisticexpialidocious things.\nSecond line here.\n\nThird   spaced  line'|wordwrap(width=25, break_on_hyphens=false)
'The quick brown fox jumps over the lazy dog and runs-away from the extraordinarily-long-hyphenated-word while thinking about supercalifragilisticexpialidocious things.\nSecond line here.\n\nThird   spaced  line'|wordwrap
'abcdefghij'|wordwrap(3)
'  lead space here'|wordwrap(8)
'a b c'|wordwrap(1)
''|wordwrap
'ab xxxxx'|wordwrap(3)
'a--b c--d -- e-f-g hi-jk'|wordwrap(4)
'x' * 9|wordwrap(4)
'aa-bb-cc-dd'|wordwrap(5)
'----------'|wordwrap(3)
'-a-b-c-ddd-eee'|wordwrap(4)
'a\n\n  b  \nc'|wordwrap(5) ~ '|'
'ünï-cödé wörds länger'|wordwrap(7)
'a'|wordwrap(0)
'one\u00a0two three'|wordwrap(6)
'3-4 ab-3 a3-bc'|wordwrap(3)
'foo(bar)--baz, "qux"--x'|wordwrap(6)
""".strip().split("\n")

STATEMENTS = [
    '{% for i in [1] recursive %}{{ loop([]) }}x{% endfor %}',
    '{% for i in l %}{{ loop(l) }}{% endfor %}',
    '{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}',
    '{% for i in l recursive %}{{ loop }}{% endfor %}',
    '{% print x, y %}',
    "{% print 'a' ~ x %}",
    '{% set n = 0 %}{% for i in l %}{{ n }}{% set n = n + 1 %}{{ n }}{% endfor %}{{ n }}',
    '{% for i in l %}{{ q }}{% set q = i %}{% endfor %}',
    '{% for i in l %}{% if i == 1 %}{% set q = i %}{% endif %}{{ q }}{% endfor %}',
    '{% if x %}{% set q = 1 %}{% else %}{% set q = 2 %}{% endif %}{{ q }}',
    '{% set q = 0 %}{% if x %}{% if y %}{% else %}{% set q = 2 %}{% endif %}{% endif %}{{ q }}',
    '{% set x %}{% for i in l %}{{ i }}{% endfor %}{% endset %}{{ x|length }}',
    '{% macro a(x) %}{{ b(x) }}{% endmacro %}{% macro b(x) %}<{{ x }}>{% endmacro %}{{ a(5) }}',
    "{% macro a(x, y='d', z=none) %}{{ x }}{{ y }}{{ z }}{% endmacro %}{{ a(1, z=2) }}{{ a(y=1) }}{{ a(1,2,3) }}",
    "{% macro a() %}{{ varargs|join('-') }}|{{ kwargs|dictsort }}{% endmacro %}{{ a(1,2,k='v') }}",
    "{% macro a() %}{{ kwargs.k }}{{ varargs[0] }}{% endmacro %}{{ a(*[7], **{'k': 8}) }}",
    '{% macro a(x) %}{{ caller(x, x+1) }}{% endmacro %}{% call(p, q) a(4) %}{{ p }}/{{ q }}{% endcall %}',
    '{% macro a() %}{% if caller %}{{ caller() }}{% else %}none{% endif %}{% endmacro %}{{ a() }}{% call a() %}c{% endcall %}',
    '{% macro a() %}[{{ caller() }}]{% endmacro %}{% call a() %}{% call a() %}in{% endcall %}{% endcall %}',
    '{% macro list(items) %}{% for i in items %}{{ caller(i) }}{% if not loop.last %},{% endif %}{% endfor %}{% endmacro %}{% call(i) list(l) %}<{{ i }}>{% endcall %}',
    '{% macro a(x) %}{% set ns = namespace(v=0) %}{% for i in x %}{% set ns.v = ns.v + i %}{% endfor %}{{ ns.v }}{% endmacro %}{{ a(l)|int + 1 }}',
    '{% macro a(x) -%}\n  {{ x }}\n{%- endmacro %}[{{ a(1) }}]',
    '{% macro caller_test(caller=none) %}{{ caller }}{% endmacro %}{{ caller_test() }}',
    '{% for i in l %}{% for j in l %}{{ loop.index }}{% if loop.last %};{% endif %}{% endfor %}{{ loop.index }} {% endfor %}',
    '{% for i in l %}{% if loop.first %}F{% elif loop.last %}L{% else %}M{% endif %}{% endfor %}',
    "{% for i in l %}{{ loop.cycle('odd', 'even') }}{{ loop.changed(i > 1) }}{{ loop.changed(i, 1) }} {% endfor %}",
    "{% for i in l %}{{ loop.nextitem|default('end') }}{{ loop.previtem|default('start') }} {% endfor %}",
    '{% for i in l if i is odd %}{{ i }}{{ loop.nextitem }}{% endfor %}',
    '{% for i in l|reverse %}{{ i }}{% endfor %}',
    "{% for i in l|select('odd') %}{{ loop.length }}{{ loop.revindex }}{% endfor %}",
    '{% for k, v in d.items()|sort %}{{ k }}{% endfor %}',
    '{% for k, v in d|dictsort(reverse=true) %}{{ k }}{% endfor %}',
    '{% for (k, v) in d.items() if v is string %}{{ k }}{{ loop.length }}{% endfor %}',
    '{% for i, (a, b) in [(1, (2, 3))] %}{{ i }}{{ a }}{{ b }}{% endfor %}',
    '{% for a in [[1,2]] %}{% set b, c = a %}{{ b }}{{ c }}{% endfor %}',
    '{% for i in range(5) if i % 2 %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% else %}e{% endfor %}',
    '{% for i in l %}{% break %}{% else %}e{% endfor %}',
    '{% for i in range(3) %}{% for j in range(3) %}{% if j == 1 %}{% continue %}{% endif %}{{ i }}{{ j }} {% endfor %}{% endfor %}',
    "{% set ns = namespace(a=1, b=[]) %}{% set ns.a = ns.a + 1 %}{% set ns.b = ns.b + ['x'] %}{{ ns.a }}{{ ns.b }}{{ ns.c }}",
    "{% set ns = namespace({'a': 1}) %}{{ ns.a }}{{ ns['a'] }}{{ ns.b is defined }}",
    '{% set ns = namespace() %}{% set ns._x = 1 %}',
    '{% set ns = namespace(a=1) %}{% set ns.a %}block{% endset %}{{ ns.a }}',
    '{% set ns = namespace(a=1) %}{% if true %}{% set ns.a = 2 %}{% endif %}{{ ns.a }}',
    '{% set a = 1, 2 %}{{ a }}{% set a = (1,) %}{{ a }}{% set a = () %}{{ a }}',
    "{% set a = {'k': [1, {'z': 2}]} %}{{ a.k[1].z }}{{ a['k'][0] }}",
    "{% set a = 'x' if y else 'z' %}{{ a }}",
    '{% set a | trim %}  q  {% endset %}[{{ a }}]',
    "{% set a | replace('q', 'r') | upper %}  q  {% endset %}[{{ a }}]",
    '{% filter trim %}  q  {% endfilter %}|',
    '{% filter indent(2) %}a\nb{% endfilter %}',
    "{% filter upper | replace('A', 'b') %}aX{% endfilter %}",
    '{% with %}{% set z = 9 %}{{ z }}{% endwith %}{{ z }}',
    '{% with a = x, b = x + 1 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}',
    '{% with a, b = 1, 2 %}{{ a }}{% endwith %}',
    '{% generation %}{% set q = 5 %}{{ q }}{% endgeneration %}{{ q }}',
    '{% for i in l %}{% generation %}{{ loop.index }}{{ i }}{% endgeneration %}{% endfor %}',
    '{%- generation -%}  a  {%- endgeneration -%}  b',
    '{% generation %}\n a\n{% endgeneration %}\n b',
    '{% if x is defined and x %}a{% endif %}{% if not (x and y) %}b{% endif %}',
    '{% if x == 3 and (y or not z) %}ok{% endif %}',
    '{% if x > 1 %}\n  a\n{% else %}\n  b\n{% endif %}\nc',
    '  {% if x %}\n    a\n  {% endif %}\n  b',
    'a  {%- if x %}  b  {%- endif %}  c',
    'a  {% if x -%}  b  {% endif -%}  c',
    'a\n\n  {%- if x %}\n\nb{% endif %}',
    '{{ x }}\n\n',
    '{{ x }}\n',
    '\n{{ x }}',
    '{#- c -#}  a',
    'a {# c #} b',
    '{# {{ x }} {% if %} #}a',
    '{#\nmulti\n#}\na',
    '{# a -#}\n\n b',
    '  {# c #}\nb',
    'x {#- c #}\nb',
    '{#+ c #}\nb',
    '  {#+ c +#}\nb',
    '{% raw %}{{ x }}{% endraw %}',
    '{% raw -%}  {{ x }}  {%- endraw %}  z',
    '{%- raw %}\n a {% endraw -%}\n b',
    '{% raw %}\n{{ a }}\n{% endraw %}\nb',
    "{{ '{% raw %}' }}",
    '{{ "{{ x }}" }}',
    "{{ '%}' ~ '}}' }}",
    "{% set a = '%}' %}{{ a }}",
    '{%if x%}a{%endif%}',
    '{%- for i in l -%} {{ i }} {%- endfor -%}',
    '{{-x-}}',
    '{{ -x }}',
    '{{- -x -}}',
    '{{ x }}{{ y }} {{ z }}',
    '{{ none }}{{ true }}{{ false }}{{ None }}{{ True }}',
    '{% if x %}{# c #}{% endif %}',
    '\t{% if x %}\n\ta\n\t{% endif %}\n',
    '\xa0{% if x %}a{% endif %}',
    '{% for m in people %}\n{{ m.name }}\n{% endfor %}',
    '{% for m in people -%}\n{{ m.name }}\n{%- endfor %}',
    '{% for m in people %}\n  {%- if loop.first %}\nfirst\n  {%- endif %}\n{{ m.name }}\n{%- endfor %}',
    '{% do l.append(1) %}',
    '{% set loop = 5 %}{{ loop }}',
    '{% for loop in l %}{{ loop }}{% endfor %}',
    '{% set range = 1 %}{{ range }}',
    '{% macro range(a) %}{{ a }}{% endmacro %}{{ range(3) }}',
    '{% macro m(a) %}{{ a }}{% endmacro %}{% set f = m %}{{ f(1) }}{{ m|string is string }}',
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ [1,2]|map('string')|map('upper')|join }}{{ m(1)|length }}",
    "{% set f = 'abc'.upper %}{{ f() }}",
    "{% set g = d.get %}{{ g('a') }}",
    "{{ 'a' if x }}|{{ 'a' if y }}|{{ ('a' if y) is defined }}",
    "{{ ('a' if y) ~ 'b' }}",
    "{{ ('a' if y) + 'b' }}",
    "{% set a = 'x' if y %}{{ a is defined }}",
    "{% if ('a' if y) %}1{% else %}2{% endif %}",
    '{{ x\n + \n 1 }}',
    '{%\n if x\n %}a{%\n endif\n %}',
    '{% for x in x %}{% endfor %}',
    '{% for i in l %}{% set i = i * 2 %}{{ i }}{% endfor %}',
    '{% set l = l + [4] %}{{ l }}',
    '{% for i in l %}{% set l = [] %}{{ i }}{{ l }}{% endfor %}{{ l }}',
    '{% macro m() %}{{ x }}{% set x = 1 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}',
    '{% macro m(x=x) %}{{ x }}{% endmacro %}{{ m() }}',
    "{% macro m(a, b=a ~ 'z') %}{{ b }}{% endmacro %}{{ m('q') }}",
    '{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}',
    '{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}',
    '{% if x %}{% macro m() %}q{% endmacro %}{% endif %}{{ m() }}',
    '{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{% endfor %}{{ m is defined }}',
    '{{ loop.index }}',
    "{{ people|selectattr('age')|selectattr('team', 'eq', 'red')|map(attribute='name')|join }}",
    "{% for p in people|groupby('team') %}{{ p.grouper }}{{ p[0] }}{{ p.list|length }}{% endfor %}",
    "{% for a, b in people|groupby('age') %}{{ a }}{% endfor %}",
    "{% set it = l|map('string') %}{% for i in it %}{{ i }}{% endfor %}{% for i in it %}{{ i }}{% endfor %}",
    "{% set it = l|map('string')|list %}{{ it[0] }}{{ it|length }}",
    "{{ l|map('string') is iterable }}{{ l|map('string') is sequence }}",
    "{{ dict(l|map('string')|batch(2)) }}",
    '{{ x }}{% if false %}{{ 1|nope }}{% endif %}',
    '{% if x %}{{ undefined_fn() }}{% endif %}',
    "{{ 'a'.b.c }}",
    '{{ none.x }}',
    '{{ x.y }}',
    "{{ l.x is defined }}{{ l['x'] is defined }}",
    "{{ none['a'] }}",
    '{{ (none).a is defined }}',
    "{{ l|length + '1' }}",
    "{{ 'a' + none }}",
    '{{ d + d }}',
    "{{ l + 'a' }}",
    '{{ l - l }}',
    "{{ 'a' % 'b' }}",
    "{{ '%s' % d }}",
    "{{ '%s %s' % ['a', 'b'] }}",
    "{{ '%s' % (l,) }}",
    '{% for i in d %}{{ i }}{{ d[i] }}{% endfor %}',
    '{% for i in x %}{% endfor %}',
    "{% for i in 'abc' %}{{ i }}{% endfor %}",
    '{% for i in (1,2) %}{{ i }}{% endfor %}',
    '{% for i in missing %}{% endfor %}x',
    '{% for i in d.zz %}{% endfor %}x',
    '{% for i in d.zz or [] %}{% endfor %}x',
    '{% for i in none or [] %}{% endfor %}x',
    '{% set a=[] %}{% set _ = a.append(1) %}{{ a }}',
    "{% set c = cycler('a','b') %}{{ c.next() }}{{ c.reset() }}{{ c.next() }}",
    '{% set j = joiner() %}{{ j() }}a{{ j() }}b{{ j() }}c',
    "{% set j = joiner('|') %}{% for i in l %}{{ j() }}{{ i }}{% endfor %}",
    '{% macro m(a) %}{% if a > 0 %}{{ m(a - 1) }}{% endif %}{{ a }}{% endmacro %}{{ m(3) }}',
    '{% macro m(s) %}{% for k, v in s.items() %}{{ k }}{% if v is mapping %}({{ m(v) }}){% endif %}{% endfor %}{% endmacro %}{{ m(d) }}',
    '{% macro m(a,) %}{{ a }}{% endmacro %}{{ m(1) }}',
    '{{ dict(a=1,) }}',
    '{{ [1,2,].__len__ }}',
    '{% set a, b = l %}',
    '{% set a, b, c = l %}{{ a }}{{ b }}{{ c }}',
    '{% set (a), b = 1, 2 %}{{ a }}{{ b }}',
    '{% set a.b = 1 %}',
    "{% set a['b'] = 1 %}",
    '{% set l[0] = 1 %}',
    '{% set a + b = 1 %}',
    '{% else %}',
    '{% elif x %}',
    '{% if x %}{% elif %}{% endif %}',
    '{% for i in l %}{% endif %}',
    '{% if x %}{% endfor %}',
    '{% macro %}{% endmacro %}',
    '{% macro m %}{% endmacro %}',
    '{% macro m() %}{% endmacro m %}',
    '{% call %}{% endcall %}',
    '{% call m %}{% endcall %}',
    '{% filter %}{% endfilter %}',
    '{% set a %}',
    '{% with a %}{% endwith %}',
    "{{ 'a",
    '{{ a.b( }}',
    '{{ a[ }}',
    '{{ a[1 }}',
    '{{ {1:2 }}',
    '{{ (1 }}',
    '{{ a | }}',
    '{{ a |b c }}',
    '{{ a is }}',
    '{{ a is not }}',
    '{{ 1 2 }}',
    '{{ if }}',
    '{{ not }}',
    '{{ a not b }}',
    '{{ in }}',
    '{{ a..b }}',
    '{{ a.1.2 }}',
    '{{ @ }}',
    '{{ a$b }}',
    '{{ a & b }}',
    '{{ !a }}',
    '{{ a ? b : c }}',
    '{{ a := 1 }}',
    '{{ lambda }}',
    '{{ x if x else }}',
    '{% if x if y %}{% endif %}',
    '{% for i in l if %}{% endfor %}',
    '{{ x is defined is defined }}',
    '{{ (x is defined) is true }}',
    '{{ x is string or x is number }}',
    '{{ x is not string and x }}',
    '{{ not x is string }}',
    '{{ x is eq 3 and y is eq 0 }}',
    '{{ x is gt 2 if true }}',
    '{{ [x is odd, y is even] }}',
    '{{ x in l is true }}',
    "{{ 'a' in 'abc' and 'd' not in 'abc' }}",
    '{{ 1 + 1 in [2] }}',
    "{{ 'a' ~ 'b' in ['ab'] }}",
    "{{ x|string in '123' }}",
    '{{ -x|abs }}',
    '{{ 2 * -3 }}',
    '{{ 2 - -3 }}',
    '{{ 10 - 2 - 3 }}',
    '{{ 2 ** -1 }}',
    '{{ 100 / 10 / 2 }}',
    '{{ 7 // 2 * 2 + 7 % 2 }}',
    "{% for i in [{'n': 'a', 'c': [{'n': 'b', 'c': []}, {'n': 'c', 'c': [{'n': 'd', 'c': []}]}]}, {'n': 'e', 'c': []}] recursive %}{{ i.n }}{% if i.c %}({{ loop(i.c) }}){% endif %}{% endfor %}",
    "{% for i in [{'n': 'a', 'c': [{'n': 'b', 'c': []}, {'n': 'c', 'c': [{'n': 'd', 'c': []}]}]}, {'n': 'e', 'c': []}] recursive %}{{ loop.depth }}{{ loop.depth0 }}{{ loop.index }}{{ loop.length }}{{ i.n }}[{{ loop(i.c) }}]{% endfor %}",
    "{% for i in [{'n': 'a', 'c': [{'n': 'b', 'c': []}, {'n': 'c', 'c': [{'n': 'd', 'c': []}]}]}, {'n': 'e', 'c': []}] if i.n != 'c' recursive %}{{ i.n }}{{ loop(i.c) }}{% else %}-{% endfor %}",
    "{% for i in [{'n': 'a', 'c': [{'n': 'b', 'c': []}, {'n': 'c', 'c': [{'n': 'd', 'c': []}]}]}, {'n': 'e', 'c': []}] recursive %}{{ i.n }}{% for j in [1] %}{{ loop.depth }}{% endfor %}{{ loop(i.c)|upper }}{% endfor %}",
    "{% for i in [{'n': 'a', 'c': [{'n': 'b', 'c': []}, {'n': 'c', 'c': [{'n': 'd', 'c': []}]}]}, {'n': 'e', 'c': []}] recursive %}{% set l2 = loop %}{% for j in i.c %}{{ l2([j]) }}{% endfor %}{{ i.n }}{% endfor %}",
    "{% set q = 1 %}{% for i in [{'n': 'a', 'c': [{'n': 'b', 'c': []}, {'n': 'c', 'c': [{'n': 'd', 'c': []}]}]}, {'n': 'e', 'c': []}] recursive %}{% set q = q + 1 %}{{ q }}{{ loop(i.c) }}{% endfor %}{{ q }}",
    "{% for i in [{'n': 'a', 'c': [{'n': 'b', 'c': []}, {'n': 'c', 'c': [{'n': 'd', 'c': []}]}]}, {'n': 'e', 'c': []}] recursive %}{% if i.n == 'b' %}{% continue %}{% endif %}{{ i.n }}{{ loop(i.c) }}{% endfor %}",
    '{% for i in l %}{% generation %}{% break %}{% endgeneration %}{% endfor %}',
    '{% for i in l %}{% continue %}{% else %}e{% endfor %}',
    '{% for i in l %}{% if i == 1 %}{% continue %}{% endif %}{% else %}e{% endfor %}',
    '{% for a in [1, 2] %}{% for b in [] %}{% else %}{% break %}{% endfor %}{{ a }}{% endfor %}',
    '{% for a in [1] recursive %}{{ loop([1]) if loop.depth < 5 }}{{ loop.depth }}{% endfor %}',
    '{% macro m(a=b, b=1) %}{{ a }}{{ b }}{% endmacro %}{{ m(b=5) }}{{ m() }}',
    "{% macro m(caller=none) %}{{ caller() if caller else '-' }}{% endmacro %}{{ m() }}{% call m() %}x{% endcall %}",
    '{% macro m(caller) %}{{ caller() }}{% endmacro %}{% call m() %}x{% endcall %}',
    '{% print %}',
    '{% print x y %}',
]
