"""The parts of the check, each a module with `measure`, and the process that one of them runs in.

A part runs in a process of its own: the memory it took is free when it ends, and what ends it ends nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from tajax.types import JsonObject

Known = Mapping[str, Any]
"""What is kept of parts that ran before, by name."""

Start = Callable[[str, str, Known, float], Iterable[JsonObject]]
"""`(part, sizes, known, seconds) -> rows`, as they are measured, in so much time; raises what the part does."""


class Part(NamedTuple):
    """A part of the check.

    Attributes:
        title: What it shows.
        module: With `measure(sizes, known) -> rows`; imported by the process that runs it.
        on_cpu: Whether JAX keeps to the CPU there, because somebody else wants the accelerator.
    """

    title: str
    module: str
    on_cpu: bool = False


PARTS: Mapping[str, Part] = {
    "parity": Part("Features and gradients, beside a CPU's", "parity"),
    "steps": Part("Training steps", "training_steps"),
    "pytorch": Part("The same steps in PyTorch", "pytorch_steps", on_cpu=True),
    "evaluation": Part("Evaluation", "evaluations"),
    "resume": Part("Killed and resumed", "resume"),
    "devices": Part("On one device and on all", "all_devices"),
    "merging": Part("Merging eight vectors", "merges"),
}
"""In the order in which they run."""


def measure(name: str, sizes: str, known: Known) -> Iterator[JsonObject]:
    """The rows of a part, measured in this process."""
    return importlib.import_module(f"experiments.accelerator.{PARTS[name].module}").measure(sizes, known)


def in_own_process(name: str, sizes: str, known: Known, seconds: float) -> Iterator[JsonObject]:
    """The rows of a part as a process of its own measures them; what else that prints goes to the screen.

    Raises:
        RuntimeError: it failed, and said why; or it ended otherwise, or was ended when its time was over.
    """
    command = [sys.executable, "-m", "experiments.accelerator.parts", name, "--sizes", sizes]
    environment = os.environ | _platforms(PARTS[name])
    error = ""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env=environment, start_new_session=True
    ) as running:
        assert running.stdin is not None and running.stdout is not None
        timer = threading.Timer(seconds, _end, (running,))
        timer.start()
        try:
            with running.stdin as asked:
                json.dump(known, asked)
            for line in running.stdout:
                said = json.loads(line) if line.startswith("{") else {}
                error = said.get("error", error)
                if "row" in said:
                    yield said["row"]
                elif not error:
                    print(line, end="", flush=True)
            code, late = running.wait(), not timer.is_alive()
        finally:
            timer.cancel()
            _end(running)  # if whoever asks for rows asks for no more
    if late:
        raise RuntimeError(f"ended after {seconds:.0f} s, when its time was over")
    if error or code:
        raise RuntimeError(error or f"its process ended with code {code}; what it said stands above")


def _end(running: subprocess.Popen) -> None:
    """Ends a process with those that it started, which would keep the accelerator."""
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)


def _platforms(part: Part) -> dict[str, str]:
    """What the process is told of devices: those of this one, and the CPU beside them."""
    if part.on_cpu:
        return {"JAX_PLATFORMS": "cpu"}
    asked = os.environ.get("JAX_PLATFORMS", "")
    return {"JAX_PLATFORMS": f"{asked},cpu"} if asked and "cpu" not in asked.split(",") else {}


def device() -> tuple[str, int]:
    """The kind and number of this machine's devices, asked in a process of its own, which leaves them free."""
    code = "import jax, json; d = jax.local_devices(); print(json.dumps([d[0].device_kind, len(d)]))"
    ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise RuntimeError("JAX finds no device: what it said stands above")
    kind, count = json.loads(ended.stdout.splitlines()[-1])
    return kind, count


def main() -> None:
    parser = argparse.ArgumentParser(description="One part, for experiments.accelerator.check; known parts on stdin.")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--sizes", required=True)
    options = parser.parse_args()
    known = json.load(sys.stdin)
    try:
        for row in measure(options.part, options.sizes, known):
            print(json.dumps({"row": row}, allow_nan=False), flush=True)
    except Exception as error:  # whatever it is, the command records it and goes on
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        raise


if __name__ == "__main__":
    main()
