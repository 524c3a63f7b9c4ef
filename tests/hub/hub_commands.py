"""Runs our scripts one after the other in one process, since each start costs seconds: hub_commands.py TASKS RESULTS

TASKS is a JSON list of {"argv": [script, argument, …], "faults": […], "environment": {…}, "write": {file: text}}; with
"printed_by": n in the place of "argv", the command is the one that task n printed last. RESULTS gets for each the exit
status, what was printed (file descriptors 1 and 2 together) and the faults met. Pauses between attempts are cut short,
so that a test does not wait for them.
"""

import json
import os
import runpy
import shlex
import sys
import tempfile
import time
import traceback
import urllib.request
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
real_sleep = time.sleep
time.sleep = lambda seconds: real_sleep(min(seconds, 0.02))


def talk_to_hub(method: str, content=None):
    url = f"{os.environ['HF_ENDPOINT']}/faults"
    data = None if content is None else json.dumps(content).encode()
    return json.load(urllib.request.urlopen(urllib.request.Request(url, data, method=method)))


def run(task: dict, before: list[dict]) -> dict:
    for name, text in task.get("write", {}).items():
        Path(name).write_text(text, encoding="utf-8")
    changed = task.get("environment", {})
    unchanged = {name: os.environ.get(name) for name in changed}
    replace_environment(changed)
    talk_to_hub("PUT", task.get("faults", []))
    if "printed_by" in task:
        python, option, *sys.argv = shlex.split(before[task["printed_by"]]["printed"].strip().splitlines()[-1])
        assert (python, option) == (sys.executable, "-m")
        start = runpy.run_module
    else:
        script, *arguments = task["argv"]
        sys.argv = [str(SCRIPTS / script), *arguments]
        start = runpy.run_path
    with tempfile.TemporaryFile() as printed:
        terminals = os.dup(1), os.dup(2)
        os.dup2(printed.fileno(), 1), os.dup2(printed.fileno(), 2)
        try:
            start(sys.argv[0], run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
        except Exception:
            traceback.print_exc()
            status = 1
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os.dup2(terminals[0], 1), os.dup2(terminals[1], 2)
        printed.seek(0)
        text = printed.read().decode()
    faults = talk_to_hub("GET")
    talk_to_hub("PUT", [])
    replace_environment(unchanged)
    return {"status": status, "printed": text, "faults": faults}


def replace_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def main(tasks: str, results: str) -> None:
    import ddpm_hf.hub.retry

    ddpm_hf.hub.retry.PATIENCE = 1.0
    answers = []
    for task in json.loads(Path(tasks).read_text()):
        answers.append(run(task, answers))
    Path(results).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:3])
