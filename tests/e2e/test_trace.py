"""--trace FILE: the file that ui.perfetto.dev opens."""
import json
import os
import re
import signal
import subprocess
from xml.etree import ElementTree

import pytest

from support import EXIT_SECONDS_MAX, ROOT, command_line, motley, refuse

FRANCE = "The capital of France is"


def read(file):
    """Names of the tracks -> their spans; the whole file is JSON, one event on a line."""
    text = file.read_text()
    trace = json.loads(text)
    assert trace["otherData"]["dropped_events"] == 0
    assert trace["otherData"]["clock"] == "CLOCK_MONOTONIC"
    events = trace["traceEvents"]
    assert sum(line.startswith('{"ph"') for line in text.splitlines()) == len(events)
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    tracks = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            tracks[names[event["pid"], event["tid"]]].append(event)
    return tracks


def steps_of(tracks):
    return {span["args"]["step"] for name, spans in tracks.items() if name.startswith("steps ") for span in spans}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_trace_has_both_parts_of_a_pair(model, tmp_path):
    first, second = sorted(os.sched_getaffinity(0))[:2]
    parts = [f"CPU:0/cores={first}", f"CPU:0/cores={second}"]
    file = tmp_path / "trace.json"
    done = motley("complete", model, "--prompt", FRANCE, "--max-tokens", 4, "--ignore-eos", "--devices",
                  ",".join(parts), "--tensor-parallel-size", 2, "--trace", file)
    assert done.returncode == 0, done.stderr
    tracks = read(file)
    steps = steps_of(tracks)
    assert len(steps) >= 4
    for part in parts:
        programs, meetings = tracks[f"{part}: programs, copies"], tracks[f"{part}: meetings"]
        assert {span["args"]["step"] for span in programs} == steps
        assert {span["args"]["step"] for span in meetings} == steps
        assert {"attention part", "ffn part"} <= {span["name"] for span in programs}
        assert {span["name"] for span in meetings} >= {"reduce"}
        assert all(span["dur"] >= 0 and span["args"]["rows"] >= 1 for span in programs)
    picture = tmp_path / "picture.svg"
    told = subprocess.run([ROOT / "tools/trace_picture", file, picture, "--ms", "20"], capture_output=True, text=True,
                          check=True).stdout.splitlines()
    assert sorted(line.split(": busy ")[0] for line in told[:2]) == parts  # in the order of the plan
    both = float(re.search(r"both at once (\d+) %", told[2])[1])
    assert 30 <= both <= 100, told  # they meet in every layer: what one has to do takes the other as long
    boxes = [box for box in ElementTree.parse(picture).iter() if box.tag.endswith("rect") and len(box)]
    assert len(boxes) > 4


def test_trace_that_cannot_be_written_is_refused(model, tmp_path):
    refuse("complete", model, "--prompt", FRANCE, "--trace", tmp_path / "none" / "trace.json",
           says=["none/trace.json", "cannot be written"])


def test_trace_is_whole_after_sigterm(model, tmp_path, start):
    file = tmp_path / "complete.json"
    running = subprocess.Popen(command_line(["complete", model, "--prompt", FRANCE, "--max-tokens", 1000,
                                             "--ignore-eos", "--trace", file]), stdout=subprocess.PIPE)
    assert running.stdout.read(1)  # it has generated something
    running.terminate()
    assert running.wait(EXIT_SECONDS_MAX) == -signal.SIGTERM
    running.stdout.close()
    assert steps_of(read(file))

    file = tmp_path / "serve.json"
    server = start("--trace", file)
    server.complete(prompt=FRANCE, max_tokens=4, ignore_eos=True)
    assert server.stop() == 0
    tracks = read(file)
    assert len(steps_of(tracks)) >= 4
    assert tracks["CPU:0: programs, copies"]
