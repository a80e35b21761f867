"""The encoder written out by hand, its parameters and batches, as the loops are tested on."""

from tests.loops.conftest import encode, head, make_batch, numbers, params, taus, x64  # noqa: F401
