"""Data sets from strangers: .npz files, folders, manifests and tables are read, or refused by their names."""

import contextlib
import io
import itertools
import json
import os
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import strategies as st

from tajax import data
from tajax.data import fingerprint, manifests
from tajax.data.archives import fer2013, gtsrb, stores
from tajax.types import Preprocessing
from tests.data.conftest import encoded as drawn
from tests.data.conftest import picture
from tests.hostile.conftest import attack, little_memory
from tests.hostile.inputs import DEEP, JSON, NAMES, encoded, meddled

PREPROCESSING = Preprocessing(8, (0.5,) * 3, (0.3,) * 3)


class Payload:
    def __reduce__(self):
        return os.system, ("touch was_run",)


def good():
    labels = np.arange(24) % 2
    images = np.arange(24 * 48, dtype=np.uint8).reshape(24, 4, 4, 3)
    parts = {
        f"{split}_{what}": value
        for split in ("train", "test")
        for what, value in (("images", images), ("labels", labels))
    }
    return parts | {"class_names": np.array(["owl", "hare"]), "templates": np.array(["a {}"])}


def strange():
    """Arrays of every kind that do not belong there, objects that would run something among them."""
    shapes = st.lists(st.integers(0, 5), max_size=5)
    kinds = st.sampled_from(["u1", "i8", "<f4", ">i2", "?", "c8", "M8[s]", "S3", "U2", "V4", "u1,f4"])
    plain = st.tuples(shapes, kinds).map(lambda pair: np.zeros(pair[0], pair[1]))
    names = st.lists(NAMES.filter(lambda name: "\ud800" not in name), min_size=1, max_size=3).map(np.array)
    return st.one_of(plain, names, st.sampled_from([np.array([Payload()], object), np.array([["a"]], object)]))


def use(path):
    """Open it, and read every image."""
    task = data.open_task(path)
    for split in task.splits:
        for batch in data.load(task, split, batch_size=8, preprocessing=PREPROCESSING):
            assert batch.inputs.shape == (8, 8, 8, 3)
    return task


@attack(120, content=st.data())
def test_npz_files(content, attempt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, parts = tmp_path / "task.npz", good()
    for key in content.draw(st.lists(st.sampled_from(sorted(parts)), max_size=2, unique=True)):
        parts[key] = content.draw(strange())
    for name in content.draw(st.lists(NAMES, max_size=2)):
        if name.isprintable() and "file" != name:
            parts[name] = np.zeros(2)
    file = io.BytesIO()
    np.savez(file, **parts)
    whole = file.getvalue()
    path.write_bytes(content.draw(st.one_of(st.just(whole), meddled(whole))))
    with little_memory():
        attempt(".npz files", lambda: use(path), path)
    assert not (tmp_path / "was_run").exists()


@attack(60, shape=st.lists(st.sampled_from([0, 1, 8, 2**20, 2**31, 2**40, 2**62, -1]), max_size=4), data=st.data())
def test_headers_in_npz_files(shape, data, attempt, tmp_path):
    """A header that promises more than follows, or is no header."""
    path, parts = tmp_path / "task.npz", good()
    descr = data.draw(
        st.sampled_from(["'|u1'", "'<f8'", "'O'", "'<U1000000'", "'|V2000000000'", "[('a', 'O')]", "__import__('os')"])
    )
    text = data.draw(
        st.one_of(
            st.just(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {tuple(shape)}, }}"),
            st.integers(1, 3000).map(lambda depth: "(" * depth),
            st.text(max_size=20),
        )
    ).encode("utf-8", "replace")
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text) + 1) + text + b"\n"
    np.savez(path, **{key: value for key, value in parts.items() if key != "train_images"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images.npy", header + bytes(64))
    with little_memory():
        attempt(".npz files, headers", lambda: use(path), path)


def test_a_zip_bomb_is_refused_before_it_is_read(attempt, tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, **{key: value for key, value in good().items() if key != "train_images"})
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("train_images.npy", "w", force_zip64=True) as out,
    ):
        np.lib.format.write_array_header_1_0(
            out, {"descr": "|u1", "fortran_order": False, "shape": (5, 1 << 13, 1 << 13, 1)}
        )
        for _ in range(5 << 6):
            out.write(bytes(1 << 20))
    assert path.stat().st_size < 4 << 20
    with little_memory(), pytest.raises(ValueError, match=r"bomb.npz.*0\.3 GB"):
        use(path)


def use_texts(path):
    """Open it, and take every text into account."""
    task = data.open_task(path)
    assert task.modality == "texts" and len(set(task.class_names)) == len(task.class_names)
    for source in task.splits.values():
        for index in range(len(source)):
            text, label = source[index]
            assert isinstance(text, str) and 0 <= label < len(task.class_names) and source.describe(index)
    data.find_overlap(task)
    json.dumps(fingerprint.of_task(task)).encode()
    return task


ROWS_OF_TEXTS = [(f"text {number}, é", ("good", "bad")[number % 2]) for number in range(20)]
CELLS = {",": [f'"{text}",{label}' for text, label in ROWS_OF_TEXTS], "\t": ["\t".join(row) for row in ROWS_OF_TEXTS]}
TABLES = {
    suffix: "\n".join([f"text{mark}label", *CELLS[mark]]).encode() for suffix, mark in ((".csv", ","), (".tsv", "\t"))
} | {".jsonl": b"\n".join(encoded(dict(zip(("text", "label"), row, strict=True))) for row in ROWS_OF_TEXTS)}


@attack(200, content=st.data())
def test_tables_of_texts(content, attempt, tmp_path):
    """Files that were meddled with, rows of names that nobody should choose, JSON of every kind; one or a folder."""
    suffix = content.draw(st.sampled_from(sorted(TABLES)))
    whole = TABLES[suffix]
    row = st.one_of(JSON, st.fixed_dictionaries({"text": JSON, "label": JSON}), st.lists(NAMES, max_size=3))
    if suffix == ".jsonl":
        lines = st.lists(st.one_of(row.map(encoded), DEEP), max_size=3)
    else:
        mark = "," if suffix == ".csv" else "\t"
        lines = st.lists(
            st.lists(NAMES, max_size=3).map(lambda cells: mark.join(cells).encode("utf-8", "surrogatepass")), max_size=3
        )
    more = lines.map(lambda found: b"\n".join([whole, *found]))
    folder = tmp_path / suffix[1:]
    folder.mkdir(exist_ok=True)
    drawn_files = st.one_of(st.just(whole), meddled(whole), more)
    for name in ("train", "test"):
        (folder / f"{name}{suffix}").write_bytes(content.draw(drawn_files))
    with little_memory():
        attempt("tables of texts", lambda: use_texts(folder / f"train{suffix}"), f"train{suffix}")
        attempt("folders of tables", lambda: use_texts(folder), folder)


@attack(60, content=st.data())
def test_folders_of_texts(content, attempt, tmp_path):
    folder = tmp_path / f"texts-{next(_COUNT)}"
    files = [f"{name}/{number}.txt" for name in ("bad", "good") for number in range(6)]
    for number, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text {number}")
    kinds = st.sampled_from(["bytes", "image", "pipe", "loop", "absent", "note"])
    for kind in content.draw(st.lists(kinds, max_size=3, unique=True)):
        path = folder / "good" / {"image": "x.png", "note": "README.txt"}.get(kind, f"{kind}.txt")
        if kind == "pipe":
            os.mkfifo(path)
        elif kind in ("loop", "absent"):
            path.symlink_to(path if kind == "loop" else "nowhere")
        else:
            path.write_bytes(IMAGE if kind == "image" else content.draw(st.binary(max_size=40)))
    with little_memory():
        attempt("folders of texts", lambda: use_texts(folder), folder)


def test_a_table_that_is_something_else_is_refused_by_name(attempt, tmp_path):
    np.savez(tmp_path / "a.npz", **good())
    (tmp_path / "a.npz").rename(tmp_path / "a.csv")
    os.mkfifo(tmp_path / "b.csv")
    (tmp_path / "c.jsonl").mkdir()
    (tmp_path / "d.tsv").write_bytes(b"text\tlabel\n" + bytes(1000))
    for name in ("a.csv", "b.csv", "c.jsonl", "d.tsv"):
        assert attempt("tables that are none", lambda name=name: use_texts(tmp_path / name), tmp_path / name) is None


PLACES = st.lists(
    st.tuples(
        st.sampled_from(["train", "test", "val", "..", "TRAIN"]),
        NAMES,
        st.sampled_from(
            ["1.png", "2.png", "x.PNG", ".hidden.png", "é.png", "a" * 200 + ".png", "x.txt", "\x1b[2J.png"]
        ),
        st.sampled_from(["image", "empty", "text", "cut", "loop", "outside", "pipe", "directory", "up", "absent"]),
    ),
    max_size=8,
)
IMAGE = drawn(picture(1))


@attack(80, places=PLACES, names=st.one_of(st.none(), st.lists(NAMES, max_size=3)), number=st.integers(0, 10**9))
def test_folders_of_images(places, names, number, attempt, tmp_path):
    folder = tmp_path / f"{number}-{next(_COUNT)}"
    for split, name in itertools.product(("train", "test"), ("owl", "hare")):
        (folder / split / name).mkdir(parents=True)
        for index in range(12):
            (folder / split / name / f"{index}.png").write_bytes(IMAGE)
    for split, name, file, kind in places:
        path = folder / split.replace("..", "train") / name.replace("/", "∕").replace("\0", "")[:80] / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() or path.is_symlink() or name in (".", "..", ""):
                continue
            if kind in ("image", "empty", "text", "cut"):
                path.write_bytes(
                    {"image": IMAGE, "empty": b"", "text": b"<svg onload=alert(1)>", "cut": IMAGE[:40]}[kind]
                )
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "directory":
                path.mkdir()
            else:
                where = {"loop": path, "outside": "/etc/passwd", "up": folder, "absent": "nowhere"}[kind]
                path.symlink_to(where)
        except (OSError, UnicodeEncodeError):
            continue  # no such name on this file system
    if names is not None:
        (folder / "class_names.txt").write_bytes("\n".join(names).encode("utf-8", "surrogatepass"))
    with little_memory():
        task = attempt("folders of images", lambda: use(folder), folder)
    if task is not None:
        assert len(set(task.class_names)) == len(task.class_names)


def test_a_pipe_among_the_images_is_not_waited_for(attempt, tmp_path):
    for split, name in itertools.product(("train", "test"), ("owl", "hare")):
        (tmp_path / split / name).mkdir(parents=True)
        (tmp_path / split / name / "0.png").write_bytes(IMAGE)
    os.mkfifo(tmp_path / "train" / "owl" / "1.png")
    assert attempt("pipes", lambda: use(tmp_path), tmp_path / "train" / "owl" / "1.png") is None


_COUNT = itertools.count()


@attack(100, content=st.data())
def test_manifests(content, attempt, tmp_path):
    name = content.draw(st.sampled_from(manifests.OWN))
    (tmp_path / manifests.OWN[name == manifests.OWN[0]]).unlink(missing_ok=True)
    splits = st.sampled_from(["train", "test", "val", "unused", "Train", ""])
    files = st.lists(NAMES, max_size=3)
    good = b'{"train": ["a.jpg"], "test": ["b.jpg"]}' if name.endswith("json") else b"train a.jpg\ntest b.jpg\n"
    lines = st.lists(st.tuples(splits, NAMES).map(" ".join), max_size=5)
    text = lines.map(lambda found: "\n".join(found).encode("utf-8", "surrogatepass"))
    objects = st.one_of(st.dictionaries(splits, files), JSON).map(encoded)
    (tmp_path / name).write_bytes(content.draw(st.one_of(text, objects, meddled(good), DEEP)))
    found = attempt("manifests", lambda: manifests.read(tmp_path), tmp_path / name)
    if found is not None:
        assert not any("/" in file for files in found.files.values() for file in files)


ROW = "0,{},Training\n".format(" ".join("7" for _ in range(48 * 48)))


@attack(
    100,
    cells=st.lists(
        st.lists(st.one_of(NAMES, st.sampled_from(["0", "6", "7", "-1", "1e9", "Training"])), max_size=4), max_size=4
    ),
    data=st.data(),
)
def test_tables(cells, data, attempt, tmp_path):
    """The CSV files of FER2013 and GTSRB."""
    lines = "".join(",".join(f'"{cell}"' if data.draw(st.booleans()) else cell for cell in row) + "\n" for row in cells)
    text = data.draw(st.one_of(st.just(f"emotion,pixels,Usage\n{ROW}{lines}"), st.just(lines)))
    content = text.encode("utf-8", "surrogatepass")
    content = data.draw(st.one_of(st.just(content), meddled(content)))

    def faces():
        for line, row in fer2013._rows(content, "faces.csv", usage=True):
            fer2013.check_label(row["emotion"], 7, f"faces.csv line {line}")
            assert fer2013._pixels(row["pixels"], f"faces.csv line {line}").shape == (48, 48)

    path = tmp_path / "GT.csv"
    path.write_bytes(
        data.draw(st.one_of(st.just(content.replace(b",", b";")), st.just(b"Filename;ClassId\n" + content)))
    )
    store = stores.Unpacked(tmp_path, [path])

    def signs():
        for place, row in gtsrb._rows(store, "GT.csv"):
            stores.check_plain(row["Filename"], place)
            gtsrb.check_label(row["ClassId"], 43, place)

    with little_memory():
        attempt("tables, FER2013", faces, "faces.csv")
        attempt("tables, GTSRB", signs, "GT.csv")


@attack(80, names=st.lists(NAMES, min_size=1, max_size=4), data=st.data())
def test_archives(names, data, attempt, tmp_path):
    path = tmp_path / data.draw(st.sampled_from(["a.zip", "a.tar", "a.tar.gz"]))
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                try:
                    archive.writestr(zipfile.ZipInfo(name or "x"), b"content")
                except (ValueError, UnicodeEncodeError):
                    continue
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 7 if name.isprintable() else 0
                member.type = data.draw(
                    st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
                )
                member.linkname = "/etc/passwd"
                with contextlib.suppress(UnicodeEncodeError, ValueError):
                    archive.addfile(member, io.BytesIO(b"content"))
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(meddled(path.read_bytes())))

    def read():
        store = stores.open_archive(path)
        return dict(store.stream(store.names))

    with little_memory():
        found = attempt("archives", read, path)
    for name in found or ():
        assert not {"..", ""} & set(name.split("/")[:1]) and ".." not in name.replace("\\", "/").split("/")
