"""A running server, the program, and plain HTTP, for tests of the whole product."""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("MOTLEY_BUILD", ROOT / "build"))
MOTLEY = BUILD / "bin/motley"
PLUGINS = BUILD / "lib/motley"
READY_SECONDS_MAX = 60
ANSWER_SECONDS_MAX = 120
EXIT_SECONDS_MAX = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command_line(arguments, redirect=""):
    """The program with the shell's redirections, such as "<&-"; it is the process that is started."""
    words = [str(MOTLEY), *map(str, arguments)]
    return ["sh", "-c", f'exec "$@" {redirect}', "sh", *words] if redirect else words


def motley(*arguments, environment=None, stdin=subprocess.DEVNULL, seconds_max=ANSWER_SECONDS_MAX, redirect="",
           **options):
    """Runs the program to its end."""
    if "input" in options:
        stdin = None
    return subprocess.run(command_line(arguments, redirect), stdin=stdin, capture_output=True, text=True,
                          timeout=seconds_max, env={**os.environ, **(environment or {})}, **options)


def refuse(*arguments, says, **options):
    """Runs the program, which must refuse: exit 1, nothing on standard output, one line on standard error that holds
    what it `says` (a text, or several)."""
    done = motley(*arguments, **options)
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert re.fullmatch(r"motley: .+\n", done.stderr), done.stderr
    for text in [says] if isinstance(says, str) else says:
        assert text and text in done.stderr, (text, done.stderr)
    return done.stderr


def lanes_of(plan):
    """Of a plan as it is printed: it has lanes, or is one."""
    return plan.get("lanes", [plan])


def shards_of(lane):
    return [shard for stage in lane["stages"] for shard in stage["shards"]]


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    def error(self):
        """OpenAI's error object, checked for its shape."""
        error = self.json()["error"]
        assert isinstance(error["message"], str) and error["message"]
        assert "type" in error and "code" in error
        return error


class Server:
    """`motley serve` on a free port; ready when the constructor returns. Ends with the block it is used in."""

    def __init__(self, model, log, *arguments, environment=None, port=None, redirect=""):
        self.port = port or free_port()
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                command_line(["serve", model, "--port", self.port, *arguments], redirect),
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})})
        self.wait_ready()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def wait_ready(self):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{Path(self.log).read_text()}")
            try:
                return self.get("/health").status == 200
            except OSError:
                return False
        try:
            wait_until(ready, READY_SECONDS_MAX, "the server is not ready")
        except BaseException:
            self.__exit__()
            raise

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS_MAX)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def get(self, path, headers=None):
        return self.request("GET", path, None, headers)

    def post(self, path, body, headers=None):
        return self.request("POST", path, body, headers)

    def complete(self, **fields):
        """The body of a completion that must succeed. Greedy unless told."""
        answer = self.post("/v1/completions", {"model": self.model_name(), "temperature": 0, **fields})
        assert answer.status == 200, answer.body
        return answer.json()

    def model_name(self):
        if not hasattr(self, "_name"):
            self._name = self.get("/v1/models").json()["data"][0]["id"]
        return self._name

    def socket(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_SECONDS_MAX)

    def metrics(self):
        """name -> sum over its label sets; of a histogram its _sum, _count."""
        values = {}
        for line in self.get("/metrics").body.decode().splitlines():
            match = re.fullmatch(r"([A-Za-z_:][\w:]*)(?:\{.*\})? (\S+)", line)
            if match:
                values[match[1]] = values.get(match[1], 0.0) + float(match[2])
        return values

    def wait_idle(self):
        wait_until(lambda: self.metrics()["vllm:num_requests_running"] == 0, 30, "requests are still running")

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self, field):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s*(\d+) kB", status, re.M)[1]) * 1024

    def workers(self):
        """The pids of the server's children, zombies included, in the order of their start."""
        started = {}
        for file in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in of_process(file).split():
                fields = of_process(f"/proc/{pid}/stat").rpartition(")")[2].split()  # begin after the name in brackets
                if fields:  # pids do not tell: they begin anew at their maximum
                    started[int(pid)] = int(fields[19])
        return sorted(started, key=started.get)

    def signal(self, number):
        self.process.send_signal(number)

    def wait_exit(self, seconds_max=EXIT_SECONDS_MAX):
        return self.process.wait(timeout=seconds_max)

    def stop(self):
        self.signal(signal.SIGTERM)
        return self.wait_exit()


def of_process(path):
    """What a file below /proc says; "" when the process or the thread has ended."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_until(condition, seconds_max, complaint):
    """Polls until the condition holds; fails after the deadline."""
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline, f"{complaint} after {seconds_max} s"
        time.sleep(0.02)


def read_http(connection):
    """One HTTP answer from a raw socket."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return Answer(answer.status, answer.headers, answer.read())


class Stream:
    """A streaming completion over a raw connection: events one by one, and a client that can go away."""

    def __init__(self, server, path="/v1/completions", **fields):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_SECONDS_MAX)
        body = {"model": server.model_name(), "temperature": 0, "stream": True, **fields}
        self.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        assert self.answer.headers["Content-Type"].startswith("text/event-stream")

    def __iter__(self):
        for line in self.answer:
            line = line.decode().rstrip("\r\n")
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                yield json.loads(line[6:])

    def leave(self):
        sock = self.connection.sock or self.answer.fp.raw._sock
        sock.shutdown(socket.SHUT_RDWR)
        self.connection.close()
        self.answer.close()
