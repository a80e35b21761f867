"""Starts real processes that die on demand, without paying for the imports of each: it forks.

One JSON object a line on stdin: the command line, variables, the file for what it prints, and how it dies. Answers with
the process's number, and with its exit status when it has ended. Run by conftest.py.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_record(count, torn=False):
    """After so many records, or in the middle of the last of them."""
    from tajax import results

    append, write, done = results.append, os.write, []

    def half(descriptor, content):
        write(descriptor, content[: len(content) // 2])
        kill_me()

    def append_and_die(path, record):
        done.append(record["stage"])
        if torn and len(done) == count:
            results.os.write = half
        append(path, record)
        if len(done) == count:
            kill_me()

    results.append = append_and_die


def die_at_rename(name, after=False):
    """Just before or just after a file or directory of this name gets its name."""
    for function in ("rename", "replace"):
        original = getattr(os, function)

        def rename(source, target, *rest, original=original, **options):
            hit = Path(target).name == name
            if hit and not after:
                kill_me()
            original(source, target, *rest, **options)
            if hit:
                kill_me()

        setattr(os, function, rename)


def die_in_save(directory, number, seconds):
    """So long after the writing of the checkpoint of that number of this process has begun."""

    def watch():
        seen = set()
        while len(seen) < number:
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                seen.update(path.name for path in Path(directory).glob("checkpoints/**/*orbax-checkpoint-tmp*"))
            time.sleep(0.0002)
        time.sleep(seconds)
        kill_me()

    threading.Thread(target=watch, daemon=True).start()


def signal_at_step(step, number):
    """In training, counted over all tasks."""
    from tajax import interrupts

    requested_by, asked = interrupts.requested_by, []

    def requested_by_or_now():
        asked.append(step)
        if len(asked) == step:
            os.kill(os.getpid(), number)
        return requested_by()

    interrupts.requested_by = requested_by_or_now


def signal_at_record(count, number):
    """Before so many records, in a process that writes them or one that keeps them in mind."""
    from tajax.workflows.journal import Journal

    record, done = Journal.record, []

    def signal_and_record(self, stage, **fields):
        done.append(stage)
        if len(done) == count:
            os.kill(os.getpid(), number)
        record(self, stage, **fields)

    Journal.record = signal_and_record


def pretrain_on_few_scenes():
    import numpy as np

    from tajax.data import captions
    from tajax.data.builders import render_scene

    def scenes(split, *, data_dir, size):
        pictures, texts = zip(*(render_scene(index, 0) for index in range(20)), strict=True)
        names, index = np.unique(texts, return_inverse=True)
        phrases = tuple((str(name),) for name in names)
        return captions.CaptionedImages("scenes", np.stack(pictures), phrases, index.astype(np.int32), False)

    captions.load_scenes = scenes


PREPARATIONS = {
    function.__name__: function
    for function in (
        die_at_record,
        die_at_rename,
        die_in_save,
        signal_at_step,
        signal_at_record,
        pretrain_on_few_scenes,
    )
}


def child(job):
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for descriptor, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    os.environ.update(job["environment"])
    import jax

    from tajax import main

    jax.config.update("jax_compilation_cache_dir", job["cache"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for name, options in job["prepare"].items():
        PREPARATIONS[name](**options)
    sys.argv = ["tajax", *job["arguments"]]
    code = main.main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def import_all():
    """What a run imports, five seconds of it, once for all processes; no device is touched, so each has its own."""
    from transformers import CLIPTokenizer  # noqa: F401

    modules = ("flax.linen", "optax", "orbax.checkpoint", "grain", "tensorflow_datasets", "altair", "tensorboardX")
    workflows = ("single_task", "task_addition", "task_negation", "task_analogy", "pretrain")
    for name in (*modules, "tajax.main", "tajax.models", *(f"tajax.workflows.{name}" for name in workflows)):
        importlib.import_module(name)


def serve():
    import_all()
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                child(json.loads(line))
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
            os._exit(99)
        print(json.dumps(pid), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    serve()
