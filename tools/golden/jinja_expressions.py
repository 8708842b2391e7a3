# SPDX-License-Identifier: Apache-2.0
"""Small expressions and statements for jinja.py; the variables are CONTEXTS["values"]."""

EXPRESSIONS = r"""
1 + 2 * 3
(1 + 2) * 3
7 / 2
6 / 2
7 // 2
-7 // 2
7 // -2
-7 % 3
7 % -3
7.5 // 2
-7.5 % 2
2 ** 10
2 ** 3 ** 2
-2 ** 2
2 ** -1
2 ** 0.5
1 / 0
1 // 0
1 % 0
1.0 / 0
0 ** -1
1e3
1.5e-7
1e16
123456789012345680.0
0.1 + 0.2
1e15
100.0
1_000
0x1F + 0o17 + 0b11
007
9223372036854775807
1 < 2 < 3
1 < 2 > 5
3 > 2 == true
1 == 1.0
true == 1
1 in [true]
'a' < 'b'
'a' < 1
[1, 2] < [1, 3]
none == none
none < 1
1 != 2
not true
not not 1
not 1 == 2
true and 'x'
0 or 'y'
'' or none
1 and 0 or 2
'a' in 'cat'
'x' not in 'cat'
1 in 'cat'
'a' in {'a': 1}
2 in [1, 2]
2 not in (1, 2)
'a' in none
'a' in missing
missing in [1]
1 if true else 2
1 if false else 2
'[' ~ (1 if false) ~ ']'
'a' if x is defined else 'b'
'a' ~ 1 ~ none ~ true ~ 1.5
'a' + 'b'
'a' + 1
1 + 'a'
'ab' * 3
3 * 'ab'
'ab' * -1
[1] * 2
[1, 2] + [3]
(1, 2) + (3,)
[1] + (2,)
'a' - 'b'
-'a'
+true
-true
- 5
+ 5.5
missing
missing.x
missing['x']
missing + 1
missing ~ 'x'
missing()
missing == missing
missing == none
missing|length
missing|default('d')
missing|upper
missing|list
missing|tojson
missing|int
missing is none
missing is iterable
missing is sequence
missing is string
missing < 1
[missing]
d.missing
d.missing.x
d['missing']['x']
d.a
d['a']
d.items
d.items()
d.keys()
d.values()
d.get('a')
d.get('zz')
d.get('zz', 5)
d.nested.list[1]
d.nested['list'][-1]
d.nested.list[99]
d.nested.list['x']
d|length
d|list
d|items|list
d.items()|list
d.items()[0]
d|string
d.copy()
d.pop('a')
d.update({})
d.setdefault('a', 1)
l.append(1)
l.append
l.pop()
l.sort()
l.append is defined
l.index(2)
l.index(99)
l.count(2)
l[0]
l[-1]
l[1:]
l[:-1]
l[::-1]
l[::2]
l[5:1:-1]
l[10:]
l[0:99]
l[:2] + l[2:]
l[::0]
l[1.5]
l['a':]
l[true]
l.0
(4, 5)[0]
(4, 5)
(1,)
()
(1, 2)[1:]
s[0]
s[-1]
s[1:3]
s[::-1]
s[99]
s[2:]
s[:-2]
s[-3:-1]
u[0]
u[1:3]
u|length
u[::-1]
u|upper
u|capitalize
u|title
u.lower()
u.title()
s.upper()
s.strip()
pad.strip()
pad.lstrip()
pad.rstrip()
pad|trim
'xxaxx'.strip('x')
'xyaxy'.strip('xy')
'xxaxx'|trim('x')
'  a '.strip('')
'a,b,c'.split(',')
'a,b,c'.split(',', 1)
'a,b,c'.rsplit(',', 1)
'a,b,c'.split(',')[-1]
' a  b c '.split()
' a  b c '.split(none, 1)
' a  b c '.rsplit(none, 1)
' a  b c '.rsplit()
''.split()
''.split(',')
'abc'.split('')
'a</think>b</think>c'.split('</think>')
'a</think>b</think>c'.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n')
'a\nb\r\nc\n'.splitlines()
'a\nb\n'.splitlines(true)
'hello world foo'.title()
"they're bill's"|title
"they're bill's".title()
'foo-bar (baz) [qux]'|title
'HELLO'.capitalize()
'hELLO'|capitalize
'Hello'.swapcase()
'hello'.startswith('he')
'hello'.startswith(('x', 'he'))
'hello'.startswith('lo', 3)
'hello'.endswith('lo')
'hello'.endswith(1)
'hello'.find('l')
'hello'.rfind('l')
'hello'.find('z')
'hello'.index('z')
'hello'.count('l')
'hello'.replace('l', 'L')
'hello'.replace('l', 'L', 1)
'abc'.replace('', '-')
'hello'|replace('l', 'L')
'hello'|replace('l', 'L', 1)
12321|replace(1, 'x')
'123'.isdigit()
'12a'.isdigit()
''.isdigit()
'abc'.isalpha()
'ab1'.isalnum()
'  '.isspace()
'ABC'.isupper()
'aBC'.islower()
'abc'.islower()
'prefix-x'.removeprefix('prefix-')
'x.txt'.removesuffix('.txt')
'a'.center(5) ~ '|'
'ab'.center(5, '*')
'a'.ljust(3, '.')
'a'.rjust(3, '.')
'42'.zfill(5)
'-42'.zfill(5)
'a=b=c'.partition('=')
'a=b=c'.rpartition('=')
'abc'.partition('=')
'-'.join(['a', 'b'])
'-'.join([1, 2])
'-'.join('abc')
''.join([])
'x'.nothing
'x'.nothing()
'{} {}'.format(1, 'b')
'{0} {1} {0}'.format('a', 'b')
'{name}!'.format(name='n')
'{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c')
'{:05d} {:.2f} {:x} {:,}'.format(42, 3.14159, 255, 1234567)
'{:+d} {:e} {:.3g} {:%}'.format(5, 12345.678, 0.00012345, 0.25)
'{!r}'.format('a')
'{d[a]}'.format(d=d)
'{{}}'.format()
'{'.format()
'{} {}'.format(1)
'{:*^9}'.format('mid')
'%s and %s' % ('a', 'b')
'%s' % 'a'
'%d' % 3.7
'%5d|%-5d|%05d' % (1, 2, 3)
'%.2f' % 2.675
'%x %X %o' % (255, 255, 8)
'%5s|%-5s|' % ('a', 'b')
'%(a)s' % {'a': 5}
'%s %s' % ('a',)
'%s' % ('a', 'b')
'%%'  % ()
'%d' % 'a'
'%r' % 'a'
'%e' % 12345.678
'%g' % 0.00001
'%c%c' % (65, 'b')
'%s'|format('x')
'%s-%s'|format(1, 2)
'%(k)s'|format(k='v')
l|join
l|join(', ')
l|join(',')|upper
[{'n': 'a'}, {'n': 'b'}]|join(',', attribute='n')
d|join('-')
'abc'|join('.')
l|first
l|last
[]|first
[]|last
''|first
'abc'|first
'abc'|last
d|first
l|length
l|count
5|length
none|length
l|sum
[1.5, 2]|sum
[]|sum
['a']|sum
[[1], [2]]|sum(start=[])
people|sum(attribute='age')
l|min
l|max
[]|min
['b', 'A', 'c']|min
['b', 'A', 'c']|min(case_sensitive=true)
people|max(attribute='age')
l|sort
[3, 1, 2]|sort
[3, 1, 2]|sort(reverse=true)
['b', 'A', 'c']|sort
['b', 'A', 'c']|sort(case_sensitive=true)
[1, 'a']|sort
people|sort(attribute='age')|map(attribute='name')|list
people|sort(attribute='team,name')|map(attribute='name')|join(' ')
people|sort(attribute='team', reverse=true)|map(attribute='name')|join(' ')
[1, 2, 1, 3]|unique|list
['a', 'A', 'b']|unique|list
people|unique(attribute='team')|map(attribute='name')|list
[[1], [1]]|unique|list
l|reverse|list
'abc'|reverse
l|reverse
5|reverse
people|map(attribute='name')|list
people|map(attribute='missing')|list
people|map(attribute='missing', default='?')|list
['a', 'b']|map('upper')|list
[1, -2]|map('abs')|list
['a-b', 'c-d']|map('replace', '-', '+')|list
['a']|map('nothing')|list
people|map()|list
[1, 0, 2, none]|select|list
[1, 0, 2, none]|reject|list
l|select('odd')|list
l|select('gt', 2)|list
l|reject('even')|list
l|select('in', [1, 9])|list
people|selectattr('age')|map(attribute='name')|list
people|selectattr('age', 'gt', 30)|map(attribute='name')|list
people|selectattr('team', 'equalto', 'red')|list|length
people|selectattr('team', '==', 'red')|map(attribute='name')|join
people|rejectattr('team', 'eq', 'red')|map(attribute='name')|join(',')
people|selectattr('nick', 'defined')|map(attribute='name')|list
people|selectattr('name', 'undefined')|list
people|selectattr()|list
l|select('nothing')|list
people|groupby('team')
people|groupby('team')|map(attribute='grouper')|list
people|groupby('team')|map('first')|list
[1, 2, 3, 4, 5]|batch(2)|list
[1, 2, 3, 4, 5]|batch(2, 0)|list
[1, 2, 3, 4, 5]|slice(2)|list
[1, 2, 3, 4, 5]|slice(2, 'x')|list
d|dictsort
{'b': 1, 'A': 2}|dictsort
{'b': 1, 'A': 2}|dictsort(true)
{'b': 1, 'a': 2}|dictsort(by='value')
{'b': 1, 'a': 2}|dictsort(reverse=true)
{'b': 1, 1: 2}|dictsort
'abc'|list
5|list
range(3)
range(3)|list
range(1, 10, 3)|list
range(5, 0, -2)|list
range(0)|list
range(3)[1]
range(10)[2:5]
range(2, 8, 2)
range(3)|length
range(1, 2, 0)
range('a')
range(3) == range(0, 3)
3 in range(5)
'5'|int
'5.9'|int
' 7 '|int
'x'|int
'x'|int(3)
'x'|int(default=-1)
'0x1f'|int(base=16)
'ff'|int(0, 16)
'1_0'|int
none|int
3.9|int
-3.9|int
true|int
'1.5'|float
'1e3'|float
'x'|float
'x'|float(2.5)
'nan'|float
'-inf'|float
3|float
-5|abs
-5.5|abs
'a'|abs
2.5|round
3.5|round
2.567|round(2)
2.5|round(method='ceil')
2.5|round(0, 'floor')
2.567|round(1, 'ceil')
1234|round(-2)
5|round
2.675|round(2)
2.5|round(method='x')
1|string ~ 'x'
[1, 'a']|string
'<a href="x">&\'</a>'|e
'<b>'|escape
'<b>'|safe
'a b&c/d'|urlencode
'one two  three'|wordcount
'a\nb\n\nc'|indent
'a\nb\n\nc'|indent(2)
'a\nb'|indent(2, true)
'a\n\nb'|indent(2, first=true, blank=true)
'a\nb'|indent('> ')
'a\nb\n'|indent(2) ~ '|'
'abcdefghijklmnop'|truncate(8)
'foo bar baz qux'|truncate(9, leeway=0)
'foo bar baz qux'|truncate(9, true, leeway=0)
'foo'|center(9) ~ '|'
''|default('d')
''|default('d', true)
none|default('d')
none|d('d', true)
0|default(5, boolean=true)
d|tojson
d|tojson(indent=2)
l|tojson
[1, [2, {}], []]|tojson(indent=4)
'é"\\\n\t\x01'|tojson
'é😀'|tojson(ensure_ascii=true)
{'b': 1, 'a': [1.0, none, true]}|tojson
{'b': 1, 'a': 2}|tojson(sort_keys=true)
{'b': 1, 'a': 2}|tojson(separators=(',', ':'))
{1: 2, none: 3, true: 4, 1.5: 5}|tojson
{(1, 2): 3}|tojson
(1, 2)|tojson
range(3)|tojson
'</script>'|tojson
1e400|tojson
people|tojson(indent=1)
d.keys()|tojson
x is defined
missing is defined
missing is not defined
x is undefined
none is none
x is not none
1 is number
true is number
1 is integer
true is integer
1.0 is integer
1.0 is float
true is boolean
'a' is string
1 is string
d is mapping
l is mapping
l is iterable
5 is iterable
'a' is iterable
l is sequence
d is sequence
'a' is sequence
5 is sequence
d.items() is sequence
d.items() is iterable
range is callable
5 is callable
3 is odd
4 is odd
4 is even
'a' is odd
9 is divisibleby 3
9 is divisibleby(2)
true is true
1 is true
false is false
0 is false
3 is eq 3
3 is equalto 4
3 is ne 4
3 is lt 4
3 is le 3
3 is gt 4
3 is ge 3
3 is lessthan 4
3 is greaterthan 2
3 is in [1, 3]
3 is not in [1, 2]
'abc' is lower
'ABC' is upper
none is sameas none
l is sameas l
[1] is sameas [1]
'upper' is filter
'nothing' is filter
'odd' is test
x is nothing
x is not none and x > 1
x is defined and not missing is defined
1 is number is string
'a' 'b' "c"
'\u00e9\x41\101\n'|tojson
'\q'
'a\'b'
"a'b"
["a'b", 'a"b', 'a\'"b', '\n\t\\', 'é', '\x00\u200b']
[none, true, 1.0, 'x', (1,), {'k': [1]}]
{'a': 1, 'b': {'c': none}}
{1: 'a', 1.0: 'b', true: 'c'}
{[1]: 2}
{'a': 1,}
[1, 2,]
{}
[]
dict(a=1, b='x')
dict(d, z=1)
dict([('a', 1)])
dict([1])
namespace(a=1).a
namespace(a=1).b
namespace(a=1)
namespace(d).a
strftime_now('%Y-%m-%d')
strftime_now('%d %b %Y')
strftime_now('%B %d, %Y %H:%M')
raise_exception('no')
cycler('a', 'b').next()
joiner('x')()
5()
x.y.z
x.__class__
x['__class__']
''.__class__.__mro__
d.__init__
d|attr('items')
d|attr('a')
d|nothing
'a'|upper()|lower
('a'|upper).lower()
'a'|upper + 'b'|upper
'a' ~ 'b'|upper
-1|abs
(-1)|abs
l|map('string')|map('length')|sum
(l|map('string'))[0]
l|map('string')|length
l|select('odd') is iterable
true if l|select('gt', 100) else false
[1, 2][0]
{'a': {'b': 'c'}}.a.b
'abc'[1]
'abc'[1:][0]
(1, 2, 3)|last
1.
1.e5
.5
a b
1 +
[1, 2
{'a'}
(1 + 2
1 = 2
foo(a b)
'unclosed
d.
d.'a'
x | 
x is
f(*l)
range(*[1, 4])|list
dict(**d)|tojson
range(**{'stop': 3})
dict(a=1, a=2)
'%s' % l
'%s' % none
l ~ d.nested
1 ~ [none]
'a' * 100000000000
range(1000000000)
true + true
true ~ false
1 < true
1.5 == '1.5'
'1' == 1
[1, [2]] == [1, [2]]
{'a': 1} == {'a': 1.0}
(1, 2) == [1, 2]
d == d
d != {}
nested.a.b.c
nested['a']['b']['c'][0]
nested.a.b.c|map('upper')|join('/')
""".strip().split("\n")

STATEMENTS = [
    "{% set a = 1 %}{{ a }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set (a, b), c = (1, 2), 3 %}{{ a }}{{ b }}{{ c }}",
    "{% set a, b = [1] %}{{ a }}",
    "{% set a, b = 1, 2, 3 %}{{ a }}",
    "{% set a %}x{{ 1 }}y{% endset %}[{{ a }}]",
    "{% set a | upper | replace('X', 'z') %}x{{ 1 }}y{% endset %}[{{ a }}]",
    "{% set ns = namespace(n=0) %}{% for i in l %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
    "{% set ns = namespace() %}{% set ns.found = false %}{{ ns.found }}",
    "{% set d.x = 1 %}",
    "{% set missing.x = 1 %}",
    "{% set n = 0 %}{% for i in l %}{% set n = n + 1 %}{{ n }}{% endfor %}{{ n }}",
    "{% if x %}a{% elif y %}b{% else %}c{% endif %}",
    "{% if missing %}a{% elif x == 3 %}b{% else %}c{% endif %}",
    "{% if not missing %}a{% endif %}",
    "{% if 1, 2 %}a{% endif %}",
    "{% if x if y else z %}a{% endif %}",
    "{% for i in l %}{{ i }},{% endfor %}",
    "{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }} {% endfor %}",
    "{% for i in l %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% endfor %}",
    "{% for i in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for i in l %}{{ loop.previtem + 1 }}{% endfor %}",
    "{% for i in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for i in [1, 1, 2] %}{{ loop.changed(i) }}{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}",
    "{% for i in l if i > 1 %}{{ i }}{{ loop.index }}{{ loop.length }} {% endfor %}",
    "{% for i in l if i > 100 %}{{ i }}{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d|items %}{{ k }};{% endfor %}",
    "{% for k, v in d|dictsort %}{{ k }};{% endfor %}",
    "{% for k in d %}{{ k }};{% endfor %}",
    "{% for c in s %}{{ c }}.{% endfor %}",
    "{% for i in 5 %}{% endfor %}",
    "{% for i in none %}{% endfor %}",
    "{% for i in missing %}x{% else %}empty{% endfor %}",
    "{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }};{% endfor %}",
    "{% for a, b in [[1, 2, 3]] %}{{ a }}{% endfor %}",
    "{% for (a, b), c in [[[1, 2], 3]] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for i in 1, 2, 3 %}{{ i }}{% endfor %}",
    "{% for i in l %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in l %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in l %}{% for j in l %}{% if j > i %}{% break %}{% endif %}{{ j }}{% endfor %};{% endfor %}",
    "{% for i in l %}{% set outer = loop %}{% for j in [1, 2] %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}",
    "{% break %}",
    "{% for i in l %}{% macro m() %}{% break %}{% endmacro %}{{ m() }}{% endfor %}",
    "{{ loop }}",
    "{% for i in l %}{{ loop }}{% endfor %}",
    "{% for people in people %}{{ people.name }}{% endfor %}{{ people|length }}",
    "{% for i in l %}{% set q = i %}{% endfor %}[{{ q }}]",
    "{% if true %}{% set q = 5 %}{% endif %}{{ q }}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}[{{ a }}]",
    "{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}",
    "{% macro m(a, b=2) %}{{ a }}-{{ b }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=5, a=4) }}{{ m() }}",
    "{% macro m(a, b=a) %}{{ a }}-{{ b }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, z=3) }}",
    "{% macro m(a) %}[{{ caller() }}{{ a }}]{% endmacro %}{% call m(1) %}in{{ x }}{% endcall %}",
    "{% macro m() %}[{{ caller(1, 2) }}]{% endmacro %}{% call(a, b) m() %}{{ a }}+{{ b }}{% endcall %}",
    "{% macro m() %}x{% endmacro %}{% call m() %}in{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ q }}{% endmacro %}{% set q = 7 %}{{ m() }}",
    "{% macro m() %}{% set q = 8 %}{% endmacro %}{% set q = 7 %}{{ m() }}{{ q }}",
    "{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro m() %} a {% endmacro %}{{ m()|trim }}{{ m()|upper }}{{ m() ~ 'x' }}{{ m() + 'y' }}",
    "{% macro m(a, b) %}{% endmacro %}{{ m.name }}{{ m.arguments }}{{ m }}",
    "{% macro m(a, a2=1, b) %}{% endmacro %}",
    "{{ m(1) }}{% macro m(a) %}{{ a }}{% endmacro %}",
    "{% filter upper %}a{{ x }}b{% endfilter %}",
    "{% filter replace('a', 'b')|upper %}aXa{% endfilter %}",
    "{% generation %}a{{ x }}{% endgeneration %}b",
    "{% raw %}{{ x }}{% if %}{% endraw %}|",
    "a {%- raw -%} {{ x }} {%- endraw -%} b",
    "a{# comment #}b",
    "a {#- comment -#} b",
    "a\n  {# comment #}\nb",
    "a\n{% if true %}\nb\n{% endif %}\nc\n",
    "a\n  {% if true %}\n  b\n  {% endif %}\n  c\n\n",
    "a\n  {%+ if true %}\n  b\n  {% endif +%}\n  c",
    "a \n {%- if true -%} \n b \n {%- endif -%} \n c",
    "a  {{- x -}}  b",
    "a\n{{ x }}\nb",
    "  {% if true %}a{% endif %}  \n",
    "x  {% if true %}a{% endif %}",
    "{% if true %}\n\na{% endif %}",
    "\n\n{{ x }}\n\n",
    "a\r\nb\rc{{ '\r\n' }}",
    "{{ {'a': {'b': 1}} }}",
    "{{ {'a': {'b': 1}}['a'] }}",
    "{{- x }}",
    "{{ x -}}\n  y",
    "{% set a = [1, 2] -%}\n  {{ a }}",
    "{{ '{{' }}{{ '}}' }}{{ '%}' }}",
    "{ {x} } %} }} #}",
    "{% if %}a{% endif %}",
    "{% if x %}a",
    "{% endif %}",
    "{% for %}{% endfor %}",
    "{% for i l %}{% endfor %}",
    "{% nothing %}",
    "{% set %}",
    "{% set 1 = 2 %}",
    "{% set true = 2 %}",
    "{{ x",
    "{% if x",
    "{# x",
    "{% raw %}x",
    "{{ }}",
    "{{ x }} }}",
    "{{ 'a' }",
    "{% if x %}{% else %}{% else %}{% endif %}",
    "{% for i in range(3) %}{{ i }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% set ns = namespace(items=[]) %}{% for p in people %}{% set ns.items = ns.items + [p.name] %}{% endfor %}{{ ns.items|join('+') }}",
    "{% set g = l|select('odd') %}{{ g|list }}{{ g|list }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}",
    "{% set j = joiner(', ') %}{% for i in l %}{{ j() }}{{ i }}{% endfor %}",
    "{% for g in people|groupby('team') %}{{ g.grouper }}:{{ g.list|length }} {% endfor %}",
    "{% for team, members in people|groupby('team') %}{{ team }}{% for m in members %} {{ m.name }}{% endfor %};{% endfor %}",
    "{% for row in l|batch(2) %}{{ row|join }};{% endfor %}",
    "{% set messages = people[1:] %}{% for m in messages %}{{ m.name }}{% endfor %}",
    "{% if people[0].team == 'red' and people|length > 1 and not people[-1].nick %}y{% endif %}",
    "{% set a = 1 %}{% set b %}{% set a = 2 %}{{ a }}{% endset %}{{ a }}{{ b }}",
    "{%set a=1%}{{a}}{%if a==1%}y{%endif%}",
    "{% set x = x + 1 %}{{ x }}",
    "{% for i in l %}{{ i }}{% endfor %}{{ i }}",
    "{% macro m(loop) %}{{ loop }}{% endmacro %}{{ m(3) }}",
    "{% for i in l %}{% set ns2 = namespace(v=i) %}{{ ns2.v }}{% endfor %}",
    "{% set ns = namespace(x=1) %}{% set ns.x, y = 5, 6 %}{{ ns.x }}{{ y }}",
]
