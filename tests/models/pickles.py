"""Files of PyTorch from hand-made instructions: the parts of a pickle, and both layouts around it."""

import pickle
import struct
import zipfile

import numpy as np

from tajax.models.torch_files import open_torch_file


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def with_attributes(kind, constructor, *arguments):
    parts = (named(constructor), named(kind), tuple_of(*arguments), dictionary(mark=b"\x88"))
    return named("torch._tensor._rebuild_from_type_v2") + tuple_of(*parts) + b"R"


def number(value):
    return b"J" + struct.pack("<i", value) if abs(value) < 1 << 31 else b"\x8a\x09" + value.to_bytes(9, "little")


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def dictionary(**items):
    return b"}(" + b"".join(text(key.replace("__", ".")) + value for key, value in items.items()) + b"u"


def named(name):
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def storage(key="0", kind="torch.FloatStorage", size=6, *more):
    return tuple_of(text("storage"), named(kind), text(key), text("cpu"), number(size), *more) + b"Q"


def tensor(held=None, offset=0, shape=(2, 3), strides=(3, 1), *more):
    sizes = [tuple_of(*map(number, axis)) for axis in (shape, strides)]
    parts = [storage() if held is None else held, number(offset), *sizes, b"\x89", named("collections.OrderedDict")]
    return named("torch._utils._rebuild_tensor_v2") + tuple_of(*parts[:-1], parts[-1] + b")R", *more) + b"R"


def program(body):
    return b"\x80\x02" + body + b"."


SIX = np.arange(6, dtype="<f4")


def archive(path, body, records=None, *, root="archive", compressed=(), **more):
    """A file as `torch.save` writes it, from hand-made instructions."""
    records = {"data/0": SIX.tobytes()} if records is None else records
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"data.pkl": program(body), "byteorder": b"little", **records, **more}.items():
            kind = zipfile.ZIP_DEFLATED if name in compressed else zipfile.ZIP_STORED
            file.writestr(f"{root}/{name}", data, kind)
    return path


def legacy(path, body, keys, data, *, little=b"\x88"):
    """A file as `torch.save` wrote it before PyTorch 1.6."""
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)]
    parts += [program(dictionary(protocol_version=number(1001), little_endian=little)), program(body)]
    path.write_bytes(b"".join(parts) + pickle.dumps(keys, 2) + data)
    return path


def read(path):
    file = open_torch_file(path)
    return file.read(file.tensors)
