"""Judges the pauses that test_loss.py wrote to MOTLEY_LOSS_PAUSES: loss_pauses.py FILE

A stream may pause for as long as computing again what was lost takes by the new plan's prediction, and for 0.8 s more
after a kill; after a hang, by the step's deadline more (1 s at least). Two losses of a run allow that twice.
"""
import json
import math
import sys

ALLOWED_S = {"SIGKILL": 0.8, "SIGSTOP": 1.8}
ALLOWED_SHORT_S = {"SIGKILL": 1.5, "SIGSTOP": 3.0}  # the whole pause of a short stream


def quantile(values, share):
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def main(file):
    all_runs = [json.loads(line) for line in open(file)]
    runs = [run for run in all_runs if not run.get("short")]
    good = True
    for signal, allowed_s in ALLOWED_S.items():
        those = [run for run in runs if run["signal"] == signal]
        pauses = [pause for run in those for pause in run["pauses_s"]]
        beyond = [(pause - run["again_s"]) / run["losses"] for run in those for pause in run["pauses_s"]]
        good &= bool(those) and quantile(beyond, .99) <= allowed_s
        for what, values in ("pauses", pauses), ("less what is computed again, for each loss", beyond):
            print(f"{signal}, {len(those)} runs, {what}: p50 {quantile(values, .5):.2f} "
                  f"p99 {quantile(values, .99):.2f} max {max(values):.2f} s")
        for run in sorted(those, key=lambda run: run["again_s"] - max(run["pauses_s"]))[:5]:
            print(f"  seed {run['seed']} {run['setup']}: max {max(run['pauses_s']):.2f} s, {run['again_s']:.2f} s of "
                  f"them predicted, {run['losses']} losses")
    for signal, allowed_s in ALLOWED_SHORT_S.items():
        those = [run for run in all_runs if run.get("short") and run["signal"] == signal]
        pauses = [pause for run in those for pause in run["pauses_s"]]
        if pauses:
            good &= max(pauses) <= allowed_s
            print(f"{signal}, 8 short streams: p50 {quantile(pauses, .5):.2f} max {max(pauses):.2f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
