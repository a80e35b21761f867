"""Tiny data sets in the layouts of the official archives, as {path: bytes}, unpacked or packed."""

import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io

from tests.data.conftest import encoded, picture

Files = dict[str, bytes]
GTSRB_HEAD = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
FER_CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
FER_USAGES = ("Training", "PublicTest", "PrivateTest")


def unpack(files: Files, root: Path) -> None:
    """The files under a directory."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def pack(files: Files, path: Path) -> Path:
    """The files as a .zip, .tar or .tgz archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def gtsrb_row(name: str, label: int) -> str:
    """A row of GTSRB's tables."""
    return f"{name};24;20;2;3;20;17;{label}\n"


def gtsrb(*, training: str = "Training", each: int = 1, tests: int = 5) -> tuple[Files, Files, Files]:
    """Training images, test images and test labels of GTSRB; picture numbers are 100 × class + index, and 9000 + i."""
    train: Files = {}
    for label in range(43):
        rows = GTSRB_HEAD
        for index in range(each):
            name = f"{index:05d}_00000.ppm"
            train[f"GTSRB/{training}/{label:05d}/{name}"] = ppm(100 * label + index)
            rows += gtsrb_row(name, label)
        train[f"GTSRB/{training}/{label:05d}/GT-{label:05d}.csv"] = rows.encode()
    test = {f"GTSRB/Final_Test/Images/{i:05d}.ppm": ppm(9000 + i) for i in range(tests)}
    labels = GTSRB_HEAD + "".join(gtsrb_row(f"{i:05d}.ppm", 7 * i % 43) for i in range(tests))
    return train, test, {"GT-final_test.csv": labels.encode()}


def ppm(number: int) -> bytes:
    """A sign, 24 × 20 pixels."""
    return encoded(picture(number, width=24, height=20), "PPM")


def annotations(rows: list[tuple[str, int | None]]) -> bytes:
    """A MATLAB file of Stanford Cars with one row an image; None leaves the classes out, as in cars_test_annos.mat."""
    labelled = all(label is not None for _, label in rows)
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", *(["class"] if labelled else []), "fname"]
    table = np.empty((1, len(rows)), [(field, object) for field in fields])
    for column, (name, label) in enumerate(rows):
        table[0, column] = (1, 2, 30, 20, *([label] if labelled else []), name)
    return mat(annotations=table)


def mat(**variables: np.ndarray) -> bytes:
    """A MATLAB file."""
    file = io.BytesIO()
    scipy.io.savemat(file, variables)
    return file.getvalue()


CAR_NAMES = tuple(f"Maker Model {number} 2012" for number in range(196))


def cars(*, train: int = 6, test: int = 4, class_names: Sequence[str] = CAR_NAMES) -> Files:
    """Stanford Cars with everything beside each other; classes 1, 50, 99, … in turn."""
    files: Files = {}
    for split, count in (("train", train), ("test", test)):
        rows = []
        for index in range(count):
            name = f"{index + 1:05d}.jpg"
            number = index + (500 if split == "test" else 0)
            files[f"cars_{split}/{name}"] = encoded(picture(number, width=40, height=30), "JPEG")
            rows.append((name, 1 + 49 * index % 196))
        if split == "train":
            files["devkit/cars_train_annos.mat"] = annotations(rows)
        else:
            files["devkit/cars_test_annos.mat"] = annotations([(name, None) for name, _ in rows])
            files["cars_test_annos_withlabels.mat"] = annotations(rows)
    names = np.empty((1, 196), object)
    names[0] = list(class_names)
    files["devkit/cars_meta.mat"] = mat(class_names=names)
    return files


def face(number: int) -> np.ndarray:
    """Grey values, uint8 [48, 48]."""
    return np.asarray(picture(number, width=48, height=48).convert("L"))


def fer_rows(counts: dict[str, int]) -> list[tuple[int, str, str]]:
    """(emotion, pixels, usage); emotions and picture numbers go round over all usages."""
    rows = []
    for usage, count in counts.items():
        for _ in range(count):
            number = len(rows)
            rows.append((number % 7, " ".join(map(str, face(number).ravel())), usage))
    return rows


def fer_table(rows: list[tuple[int, str, str]], head: str = "emotion,pixels,Usage") -> bytes:
    """FER2013 as one CSV, columns in the order that `head` gives."""
    order = [("emotion", "pixels", "usage").index(column.strip().lower()) for column in head.split(",")]
    return "\n".join([head, *(",".join(str(row[i]) for i in order) for row in rows), ""]).encode()


def rendered_sst2(each: int = 2) -> Files:
    """Rendered SST2; picture numbers go round in the order of the paths."""
    names = [
        f"rendered-sst2/{split}/{label}/{index}.png"
        for split in ("train", "valid", "test")
        for label in ("negative", "positive")
        for index in range(each)
    ]
    return {name: encoded(picture(number, width=56, height=56)) for number, name in enumerate(names)}
