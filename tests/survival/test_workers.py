"""Processes that make batches: the same bits as without them, and gone with the process they work for."""

import os
import signal
import subprocess
import sys
import textwrap
import time

from tests.survival.conftest import assert_same

PROGRAM = """
    import multiprocessing, os, signal, sys, threading
    import numpy as np
    from tajax import data
    from tajax.data.sources import ArraySource
    from tajax.types import Preprocessing

    if __name__ == "__main__":
        task = data.open_task(sys.argv[1])
        options = dict(batch_size=8, augment=True, seed=1, epochs=None, workers=2)
        stream = iter(data.load(task, "train", preprocessing=Preprocessing(8, (0.5,) * 3, (0.5,) * 3), **options))
        ended = threading.Event()

        def press_ctrl_c():
            while not ended.wait(0.02):
                for process in multiprocessing.active_children():
                    os.kill(process.pid, signal.SIGINT)  # as a terminal does at Ctrl-C

        pressing = threading.Thread(target=press_ctrl_c)  # from before the workers have imported anything
        pressing.start()
        for _ in range(30):
            next(stream)
        ended.set()
        pressing.join()
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_workers_outlive_ctrl_c_and_not_their_parent(world, tmp_path):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(tmp_path / "program.py"), str(world / "pets.npz")]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, env=environment)
    assert done.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, workers))


def test_same_seed_gives_the_same_bits_twice_and_with_any_number_of_workers(start, command, tmp_path):
    """Augmented images, so that there is something to share out; one task, to start the workers once."""
    for name, workers in {"first": 0, "again": 0, "one": 1, "two": 2}.items():
        fields = {"workflow": "single_task", "tasks": command.one_task, "data_workers": workers}
        code, messages = start(command("attn", tmp_path / name, **fields)).end()
        assert code == 0, messages
        assert_same(tmp_path / name, tmp_path / "first")
