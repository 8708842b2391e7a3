"""The types that the package declares, as a checker of types reads them."""
import subprocess
import sys

PROGRAM = '''
from motley import LLM, Logprob, RequestOutput, SamplingParams, Tokenizer

llm = LLM("model", devices=["CPU:0"], seed=1)
params = SamplingParams(temperature=0.5, stop=["a"]).clone()
answers: list[RequestOutput] = llm.generate(["a", "b"], [params] * 2, True, None, [0, 0])
answers = llm.generate("a", params, use_tqdm=False, lora_request=None, priority=None) + llm.generate([1, 2])
answers = llm.generate({"prompt": "a"}) + llm.generate([{"prompt_token_ids": [1]}]) + llm.generate([[1, 2], [3]])
answers = llm.chat([{"role": "user", "content": "a"}], params, True, None, None, "auto", True, False,
                   [{"type": "function"}], {"enable_thinking": False})
answers = llm.chat([[{"role": "user", "content": "a"}]], llm.get_default_sampling_params())
text: str = answers[0].outputs[0].text
logprobs: list[dict[int, Logprob]] | None = answers[0].outputs[0].logprobs
pieces: list[str] = [piece.outputs[0].text for piece in llm.stream("a", params)]
tokenizer: Tokenizer = llm.get_tokenizer()
ids: list[int] = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)
whole: str = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
name: str = llm.info.name
'''
WRONG = ['llm.generate(5)', 'llm.generate("a", 5)', 'llm.generate("a", lora_request="b")', 'llm.chat("a", params)',
         'llm.chat([{"role": "user"}], tool=[])', 'answers[0].text', 'SamplingParams(n="one")', 'llm.info.nome']


def check(path):
    return subprocess.run([sys.executable, "-m", "mypy", "--strict", "--cache-dir", path.parent / "cache", path],
                          capture_output=True, text=True, timeout=300)


def test_calls_fit_the_declared_types(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = check(program)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wrong_calls_do_not_fit(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + "\n".join(WRONG) + "\n")
    done = check(program)
    first = PROGRAM.count("\n") + 1
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    assert lines == set(range(first, first + len(WRONG))), done.stdout


def test_the_stub_is_what_the_module_has(tmp_path):
    allowed = tmp_path / "allowed"
    # Of a class itself, not of its members: nanobind's metaclass, and the constructor of what cannot be made here.
    allowed.write_text("motley\\._motley\\.[A-Za-z]+\nmotley\\._motley\\.[A-Za-z]+\\.__init__\n")
    done = subprocess.run([sys.executable, "-m", "mypy.stubtest", "motley", "--allowlist", allowed], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
