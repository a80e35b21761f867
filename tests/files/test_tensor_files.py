"""Files of tensors: the bytes that the safetensors library writes, without a copy of all of them in memory."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tajax import tensor_files
from tajax.models import files

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # a view, whose rows lie apart
    "a": np.float32(2.5).reshape(()),
    "half": np.arange(3, dtype=np.float16),
    "wide": np.arange(4.0)[::-1],
    "none": np.zeros((0, 3), np.float32),
    "yes": np.array([True, False, True]),
    "short": np.arange(3, dtype=np.int16),
    "bits": np.arange(5, dtype=np.uint8),
    "ä": np.arange(2, dtype=np.int64),
}


def test_bytes_are_those_of_the_library(tmp_path):
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in TENSORS.items()}
    want = safetensors.numpy.save(contiguous, metadata={"format": "pt"})
    files.write_tensors(tmp_path / "model.safetensors", TENSORS)
    assert (tmp_path / "model.safetensors").read_bytes() == want


def test_what_is_mapped_is_what_is_read_and_cannot_be_written_to(tmp_path):
    path, tensors = tmp_path / "t.safetensors", TENSORS | {"b16": np.arange(3).astype(jnp.bfloat16)}
    path.write_bytes(b"".join(tensor_files.parts(tensors, {"made": "here"})))
    (mapped, said), (read, also) = tensor_files.mapped(path), tensor_files.read(path)
    assert said == also == {"made": "here"} and mapped.keys() == read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        for found in (mapped[name], read[name]):
            assert found.dtype == tensor.dtype and found.shape == tensor.shape
            np.testing.assert_array_equal(found, tensor, err_msg=name)
    with pytest.raises(ValueError, match="read-only"):
        mapped["b"][0] = 1
    read["b"][0] = 1
    assert tensor_files.mapped(path, ["wide"])[0].keys() == {"wide"}


def test_a_dtype_that_files_have_not_is_named():
    with pytest.raises(ValueError, match="'w' is complex128, which safetensors files have not: want BOOL, "):
        next(tensor_files.parts({"w": np.zeros(2, complex)}, {}))


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    """Ten tensors that have to be turned: to write them takes one of them, to map them nothing."""
    path, tensors = tmp_path / "t.safetensors", {str(i): np.ones((512, 512), np.float32).T for i in range(10)}
    tracemalloc.start()
    try:
        files.write_tensors(path, tensors)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        mapped, _ = tensor_files.mapped(path)
        opened = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert written < 2.5 * tensors["0"].nbytes and opened < 0.5 * tensors["0"].nbytes
    np.testing.assert_array_equal(mapped["3"], tensors["3"])
