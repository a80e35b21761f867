"""What a name in a PyTorch pickle means: dtypes and storages, what is kept as a name, and what is refused.

No name is ever imported, so on what list it stands decides what is said and not what is safe. Of the standard library,
PyTorch, NumPy and a few packages that are made to carry code, data types are kept as names and all else is refused:
whoever holds a file that names `os.system` wants to know, more than to read on. Every other package, `omegaconf` or
the one of whoever trained the model, is not known to do anything, and its names are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

__all__ = ["DTYPES", "STORAGES", "TENSOR_CLASSES", "UNTYPED", "is_kept"]

STORAGES: Mapping[str, np.dtype] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.ComplexFloatStorage": np.dtype("<c8"),
    "torch.ComplexDoubleStorage": np.dtype("<c16"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
    "torch.storage.UntypedStorage": np.dtype("u1"),
}
"""Storage types of PyTorch, and what their bytes are."""
UNTYPED = STORAGES["torch.storage.UntypedStorage"]

DTYPES: Mapping[str, np.dtype] = {
    f"torch.{name}": np.dtype(getattr(jnp, name))
    for name in (
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
} | {"torch.bool": np.dtype("?")}
"""Dtypes of PyTorch that NumPy has too, or JAX's additions to it."""

TENSOR_CLASSES = frozenset({"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"})

_ACTING = sys.stdlib_module_names.union(
    {"__builtin__", "asyncore", "commands", "distutils", "imp", "popen2", "smtpd"},  # of other Pythons
    {"IPython", "cloudpickle", "dill", "joblib", "pip", "pkg_resources", "setuptools"},
    {"jax", "numpy", "tajax", "torch"},
)
"""Packages of which something is known that acts."""
_DATA_IN = (
    *("collections.", "datetime.", "decimal.", "enum.", "fractions.", "pathlib.", "typing.", "uuid.", "zoneinfo."),
    *("numpy.dtypes.", "numpy.random."),
    *("torch.amp.", "torch.cuda.amp.", "torch.jit._pickle.", "torch.nn.", "torch.optim.", "torch.torch_version."),
    *("torch._utils._rebuild_", "torch.distributed._tensor.", "torch.distributed.tensor."),  # tensors of other kinds
)
_BUILTINS = ("bool", "int", "float", "complex", "str", "bytes", "bytearray", "list", "dict", "tuple", "slice", "range")
_DATA = TENSOR_CLASSES.union(
    STORAGES,
    DTYPES,
    {f"builtins.{name}" for name in (*_BUILTINS, "set", "frozenset", "object", "NoneType")},
    {"_codecs.encode", "argparse.Namespace", "array.array", "types.MappingProxyType", "types.SimpleNamespace"},
    {"numpy.dtype", "numpy.ndarray"} | {f"numpy.{scalar.__name__}" for scalar in np.sctypeDict.values()},
    {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")},
    {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")},
    {"torch._C._nn.gelu", "torch.device", "torch.Generator", "torch.Size", "torch.serialization._get_layout"},
    {f"torch.{name}" for name in ("complex32", "float4_e2m1fn_x2", "qint8", "quint8", "qint32")},
    {f"torch.{name}" for name in ("strided", "contiguous_format", "channels_last", "preserve_format")},
)
"""What of those packages is data: nothing is asked for but that a value be there."""


def is_kept(name: str) -> bool:
    """Whether a full dotted name may stand in a file.

    Example:
        >>> is_kept("omegaconf.dictconfig.DictConfig"), is_kept("pathlib.PosixPath"), is_kept("__main__.Arguments")
        (True, True, True)
        >>> is_kept("os.system"), is_kept("torch.hub.load"), is_kept("builtins.eval")
        (False, False, False)
    """
    return name in _DATA or name.startswith(_DATA_IN) or name.partition(".")[0] not in _ACTING
