"""Memory that is freed is not asked of the system again."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys, threading
import numpy as np
from tajax.allocation import keep_memory
if sys.argv[1] == "kept" and not keep_memory():
    sys.exit("unknown")
def rounds(count):
    for _ in range(count):
        np.ones(50_000_000, np.uint8)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=rounds, args=(10,))
    thread.start(); thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
rounds(2), faults()
print(faults())
"""


def test_pages_of_what_was_freed_are_used_again_in_any_thread():
    found = {}
    for how in ("kept", "as it is"):
        done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True)
        if "unknown" in done.stderr:
            pytest.skip("the C library is not glibc")
        assert done.returncode == 0, done.stderr
        found[how] = int(done.stdout)
    assert found["kept"] < 1_000  # ten times 50 MB, in pages of 4 KiB, are 122,000
    assert found["as it is"] > 10 * found["kept"]
