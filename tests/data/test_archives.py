"""Official archives become data sets: the right images under the right labels, or an error that names file and row."""

import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from tajax.data import TASKS, BadImageError, archives, catalog, open_task
from tajax.data.archives import official, stores
from tajax.data.sources import decode
from tests.data import archive_layouts as layouts
from tests.data.conftest import encoded, picture

TRAIN_TEST = {"train": "train", "test": "test"}


@pytest.fixture
def manual(tmp_path):
    """The directory for files fetched by hand."""
    return tmp_path / "downloads" / "manual"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test reaches for one, with or without a proxy."""

    def unresolved(*arguments):
        raise OSError("no such host")

    monkeypatch.setattr("socket.getaddrinfo", unresolved)
    monkeypatch.setattr("tajax.data.network.getproxies", dict)


def contents(source) -> dict[bytes, int]:
    """Pixels → label of every example."""
    return {image.tobytes(): label for image, label in (source[i] for i in range(len(source)))}


def refused(name, tmp_path, *words, kind=ValueError):
    """Preparing fails with a message that has the words, and leaves no data set behind."""
    with pytest.raises(kind) as error:
        archives.prepare(name, data_dir=tmp_path)
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("form", ["unpacked", "archives", "in a directory"])
def test_gtsrb_whole_images_and_both_tables(form, manual, tmp_path):
    parts = layouts.gtsrb()
    names = ("GTSRB-Training_fixed.zip", "GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip")
    for files, name in zip(parts, names, strict=True):
        if form == "unpacked":
            layouts.unpack(files, manual)
        else:
            layouts.pack(files, manual / ("gtsrb" if form == "in a directory" else "") / name)
    opened = catalog.open_tfds("tajax_gtsrb", tmp_path, splits=TRAIN_TEST)
    assert opened.class_names == tuple(f"{label:05d}" for label in range(43))
    expected = {picture(100 * label, width=24, height=20).tobytes(): label for label in range(43)}
    assert contents(opened.splits["train"]) == expected  # whole images: the tables' boxes are not cut out
    expected = {picture(9000 + i, width=24, height=20).tobytes(): 7 * i % 43 for i in range(5)}
    assert contents(opened.splits["test"]) == expected


def test_gtsrb_prefers_the_papers_training_set(manual, tmp_path, caplog):
    final, test, labels = layouts.gtsrb(training="Final_Training/Images", each=2)
    for files in (final, test, labels):
        layouts.unpack(files, manual / "GTSRB_archives")
    assert len(archives.prepare("tajax_gtsrb", data_dir=tmp_path).as_data_source("train")) == 86
    assert "final training set in " in caplog.text and "which the papers used; 39,209" in caplog.text
    shutil.rmtree(tmp_path / "tajax_gtsrb")
    layouts.pack(layouts.gtsrb()[0], manual / "GTSRB-Training_fixed.zip")
    assert len(archives.prepare("tajax_gtsrb", data_dir=tmp_path).as_data_source("train")) == 43


@pytest.mark.parametrize("form", ["unpacked", "archives", "mirror"])
def test_cars_from_matlab_tables(form, manual, tmp_path):
    files = layouts.cars()
    if form == "unpacked":
        layouts.unpack(files, manual / "stanford_cars")
    elif form == "mirror":  # directories twice, the devkit elsewhere
        nested = {
            name.replace("/", f"/{name.split('/')[0]}/") if ".jpg" in name else name: files[name] for name in files
        }
        images = {name: content for name, content in nested.items() if name.endswith(".jpg")}
        layouts.pack(images, manual / "stanford-cars-dataset.zip")
        layouts.unpack({name: nested[name] for name in nested.keys() - images.keys()}, manual)
    else:
        for prefix, name in {
            "cars_train/": "cars_train.tgz",
            "cars_test/": "cars_test.tgz",
            "devkit": "car_devkit.tgz",
        }.items():
            layouts.pack({path: content for path, content in files.items() if path.startswith(prefix)}, manual / name)
        layouts.unpack({"cars_test_annos_withlabels.mat": files["cars_test_annos_withlabels.mat"]}, manual)
    opened = catalog.open_tfds("tajax_cars", tmp_path, splits=TRAIN_TEST)
    assert opened.class_names == layouts.CAR_NAMES
    for split, source in opened.splits.items():
        labels = sorted(label for label in contents(source).values())
        assert labels == sorted(49 * index % 196 for index in range(len(source)))
        stored = {bytes(record["image"]) for record in source.records}
        assert stored == {files[name] for name in files if name.startswith(f"cars_{split}/")}  # files as they are
    assert {split: len(source) for split, source in opened.splits.items()} == {"train": 6, "test": 4}


FER_COUNTS = {"Training": 9, "PublicTest": 3, "PrivateTest": 4}


@pytest.mark.parametrize("form", ["fer2013.csv", "official archive", "icml_face_data.csv", "two tables", "folders"])
def test_fer2013_in_every_form(form, manual, tmp_path):
    if form == "folders":
        faces = {"train": {}, "test": {}}
        for split, each in (("train", 2), ("test", 1)):
            for number in range(7 * each):
                name = f"{split}/{layouts.FER_CLASSES[number % 7]}/{number}.png"
                faces[split][name] = layouts.face(number + 100 * (split == "test"))
        files = {
            f"archive/{name}": encoded(Image.fromarray(face))
            for split in faces.values()
            for name, face in split.items()
        }
        layouts.pack(files, manual / "fer2013.zip")
        expected = {
            split: {_rgb(face): layouts.FER_CLASSES.index(name.split("/")[1]) for name, face in faces[split].items()}
            for split in faces
        }
    else:
        rows = layouts.fer_rows(FER_COUNTS)
        numbers = {"train": range(9), "test": range(9, 16)}
        expected = {split: {_rgb(layouts.face(n)): n % 7 for n in chosen} for split, chosen in numbers.items()}
        if form == "official archive":
            layouts.pack({"fer2013/fer2013.csv": layouts.fer_table(rows)}, manual / "fer2013.tar.gz")
        elif form == "fer2013.csv":
            layouts.unpack({form: layouts.fer_table(rows)}, manual)
        elif form == "icml_face_data.csv":  # spaces before names of columns, another order
            layouts.unpack({form: layouts.fer_table(rows, "emotion, Usage, pixels")}, manual)
        else:
            tables = {"train.csv": rows[:9], "test.csv": rows[9:]}
            tables = {f"fer2013/{name}": layouts.fer_table(part, "emotion,pixels") for name, part in tables.items()}
            layouts.unpack(tables, manual)
    opened = catalog.open_tfds("tajax_fer2013", tmp_path)
    assert opened.class_names == layouts.FER_CLASSES
    assert {split: contents(source) for split, source in opened.splits.items()} == expected


def _rgb(face) -> bytes:
    return np.repeat(face[..., None], 3, axis=-1).tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_rendered_sst2(packed, manual, tmp_path):
    files = layouts.rendered_sst2()
    if packed:
        layouts.pack(files, manual / "rendered-sst2.tgz")
    else:
        layouts.unpack(files, manual)
    opened = catalog.open_tfds("tajax_rendered_sst2", tmp_path)
    assert opened.class_names == ("negative", "positive")
    for role, split in {"train": "train", "val": "valid", "test": "test"}.items():
        numbers = [number for number, name in enumerate(files) if f"/{split}/" in name]
        expected = {picture(n, width=56, height=56).tobytes(): n % 4 // 2 for n in numbers}
        assert contents(opened.splits[role]) == expected


def test_the_table_opens_what_the_archives_hold(manual, tmp_path):
    for files in layouts.gtsrb():
        layouts.unpack(files, manual)
    layouts.unpack(layouts.cars(class_names=tuple(TASKS["cars"].class_names)), manual / "stanford_cars")
    rows = layouts.fer_rows({"Training": 10, "PublicTest": 2, "PrivateTest": 3})
    layouts.pack({"fer2013.csv": layouts.fer_table(rows)}, manual / "fer2013" / "archive.zip")  # any name in there
    layouts.unpack(layouts.rendered_sst2(), manual)
    sizes = {"gtsrb": (43, 5), "cars": (6, 4), "fer2013": (10, 5), "rendered_sst2": (4, 4)}
    for name, (train, test) in sizes.items():
        task = open_task(name, data_dir=tmp_path)
        assert task.class_names == tuple(TASKS[name].class_names.values())
        splits = {split: len(source) for split, source in task.splits.items()}
        assert (splits["train"] + splits["val"], splits["test"]) == (train, test)


def test_what_is_missing_is_named_with_its_place(manual, tmp_path):
    refused("tajax_gtsrb", tmp_path, str(manual), "GTSRB-Training_fixed.zip", "https://sid.erda.dk", "no network")
    refused("tajax_rendered_sst2", tmp_path, str(manual), "rendered-sst2.tgz", "openaipublic", "no network")
    refused("tajax_fer2013", tmp_path, str(manual), "fer2013.tar.gz", "kaggle.com")
    files = layouts.cars()
    del files["cars_test_annos_withlabels.mat"]
    layouts.unpack(files, manual)
    refused("tajax_cars", tmp_path, "cars_test_annos.mat has no classes", "cars_test_annos_withlabels.mat")
    shutil.rmtree(manual / "devkit")
    refused("tajax_cars", tmp_path, "cars_meta.mat", "cars_train_annos.mat", "car_devkit.tgz", str(manual))


def change(old: str, new: str):
    return lambda content: content.replace(old.encode(), new.encode())


@pytest.mark.parametrize(
    "file, edit, words",
    [
        ("Training/00003/GT-00003.csv", None, ["directory", "Training/00003 has no GT-00003.csv"]),
        ("Training/00003/00000_00000.ppm", None, ["GT-00003.csv line 2 names the image 00000_00000.ppm", "not there"]),
        ("GT-00003.csv", change(";3\n", ";4\n"), ["GT-00003.csv line 2 gives 00000_00000.ppm class 4", "00003"]),
        ("GT-00003.csv", change(";3\n", ";x\n"), ["GT-00003.csv line 2 has class 'x'", "from 0 to 42"]),
        ("GT-00003.csv", change("00000_", "../00004/00000_"), ["line 2 names the image '../00004/00000_00000.ppm'"]),
        ("GT-00003.csv", change("ClassId", "Class"), ["GT-00003.csv lacks the column ClassId", "Filename, Width"]),
        ("GT-00003.csv", change(layouts.gtsrb_row("00000_00000.ppm", 3), ""), ["1 images are not listed in"]),
        ("GT-00003.csv", change(";24;20;2;3;20;17;3\n", "\n"), ["GT-00003.csv line 2 is incomplete: 00000_00000.ppm"]),
        ("GT-final_test.csv", change(";7\n", ";43\n"), ["GT-final_test.csv line 3 has class '43'", "from 0 to 42"]),
        ("GT-final_test.csv", change("00002.ppm", "00001.ppm"), ["line 4 names the image 00001.ppm a second time"]),
        ("GT-final_test.csv", change("00002.ppm", "/etc/passwd"), ["line 4", "'/etc/passwd'", "plain file name"]),
        ("GT-final_test.csv", lambda content: b"\xff\xfe" + content, ["GT-final_test.csv is not text"]),
        ("Final_Test/Images/00002.ppm", None, ["GT-final_test.csv line 4 names the image 00002.ppm"]),
        (
            "Final_Test/Images/00002.ppm",
            lambda content: content[:40],
            ["Final_Test/Images/00002.ppm cannot be decoded"],
        ),
        ("Final_Test/Images/00002.ppm", lambda content: b"", ["Final_Test/Images/00002.ppm is empty"]),
    ],
)
def test_gtsrb_with_a_fault(file, edit, words, manual, tmp_path):
    files = {name: content for part in layouts.gtsrb() for name, content in part.items()}
    (name,) = [name for name in files if name.endswith(file)]
    content = files.pop(name)
    if edit:
        files[name] = edit(content)
        assert files[name] != content
    layouts.unpack(files, manual / "gtsrb")
    refused("tajax_gtsrb", tmp_path, *words)


def test_gtsrb_with_a_class_too_many_or_too_few(manual, tmp_path):
    train, test, labels = layouts.gtsrb()
    layouts.unpack(train | test | labels, manual)
    shutil.rmtree(manual / "GTSRB/Training/00042")
    refused("tajax_gtsrb", tmp_path, "lack 1 of 43 classes: 00042")
    (manual / "GTSRB/Training/00041").rename(manual / "GTSRB/Training/00043")
    refused("tajax_gtsrb", tmp_path, "Training/00043 has class '00043'; expected a whole number from 0 to 42")


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("devkit/cars_train_annos.mat", [("00001.jpg", 197)], ["cars_train_annos.mat row 1 has class 197", "1 to 196"]),
        ("devkit/cars_train_annos.mat", [("00001.jpg", 1), ("00009.jpg", 1)], ["row 2 names the image 00009.jpg"]),
        ("devkit/cars_train_annos.mat", [("00001.jpg", 1), ("00001.jpg", 2)], ["row 2", "00001.jpg a second time"]),
        ("devkit/cars_train_annos.mat", [("../x/00001.jpg", 1)], ["row 1 names the image '../x/00001.jpg'"]),
        ("devkit/cars_train_annos.mat", b"MATLAB", ["cars_train_annos.mat is not a readable MATLAB file"]),
        ("devkit/cars_meta.mat", layouts.mat(names=np.zeros(2)), ["no variable 'class_names'; it has names"]),
        ("devkit/cars_meta.mat", layouts.mat(class_names=np.array(["a", "b"], object)), ["2 class names", "196"]),
        ("cars_train/00003.jpg", b"\xff\xd8\xff\xe0 no image", ["cars_train/00003.jpg cannot be decoded"]),
    ],
)
def test_cars_with_a_fault(file, content, words, manual, tmp_path):
    content = layouts.annotations(content) if isinstance(content, list) else content
    layouts.unpack(layouts.cars() | {file: content}, manual)
    refused("tajax_cars", tmp_path, *words, kind=BadImageError if ".jpg" in file else archives.BadArchiveError)


def test_cars_with_a_truncated_table(manual, tmp_path):
    files = layouts.cars()
    files["devkit/cars_meta.mat"] = files["devkit/cars_meta.mat"][:5000]
    layouts.unpack(files, manual)
    refused("tajax_cars", tmp_path, "cars_meta.mat is not a readable MATLAB file", "fetch it anew")


PIXELS = " ".join(["7"] * 48**2)


@pytest.mark.parametrize("content", [b"emotion,pixels,Usage\n0,\xff\xfe,Training\n", b"emotion,pixels,Usage\n0,7\x00"])
def test_fer2013_that_is_no_text(content, manual, tmp_path):
    layouts.unpack({"fer2013.csv": content}, manual)
    refused("tajax_fer2013", tmp_path, "fer2013.csv", "line")


@pytest.mark.parametrize(
    "rows, words",
    [
        ([(0, PIXELS + " 8", "Training")], ["fer2013.csv line 2 has 2305 pixels; expected 48 × 48 = 2304"]),
        ([(0, PIXELS, "Training"), (0, "7 7", "PublicTest")], ["fer2013.csv line 3 has 2 pixels"]),
        ([(0, PIXELS[:-1] + "256", "Training")], ["line 2 has pixels from 7 to 256; expected 0 to 255"]),
        ([(0, PIXELS[:-1] + "seven", "Training")], ["line 2 has pixels that are no whole numbers", "seven"]),
        ([(7, PIXELS, "Training")], ["line 2 has class '7'; expected a whole number from 0 to 6"]),
        ([(0, PIXELS, "Testing")], ["line 2 has Usage 'Testing'; expected one of Training, PublicTest, PrivateTest"]),
        ([(0, PIXELS, "Training")], ["fer2013.csv has no row of the test split"]),
    ],
)
def test_fer2013_with_a_fault(rows, words, manual, tmp_path):
    layouts.unpack({"fer2013.csv": layouts.fer_table(rows)}, manual)
    refused("tajax_fer2013", tmp_path, *words)


def test_fer2013_in_forms_that_will_not_do(manual, tmp_path):
    rows = layouts.fer_rows({"Training": 2, "PublicTest": 1})
    train = layouts.fer_table(rows[:2], "emotion,pixels")
    layouts.unpack({"train.csv": train, "test.csv": layouts.fer_table(rows[2:], "pixels")}, manual / "fer2013")
    refused("tajax_fer2013", tmp_path, "test.csv lacks the column emotion", "hides the emotions", "icml_face_data.csv")
    (manual / "fer2013" / "test.csv").unlink()
    layouts.unpack({"test/angry/0.png": encoded(picture(0))}, manual / "fer2013")
    refused("tajax_fer2013", tmp_path, "two forms", "train.csv", "test/angry/0.png", "keep one")
    (manual / "fer2013" / "train.csv").unlink()
    layouts.unpack({"train/cross/0.png": encoded(picture(0))}, manual / "fer2013")
    refused("tajax_fer2013", tmp_path, "lies in 'cross'; the expressions are angry, disgust")
    shutil.rmtree(manual / "fer2013" / "train" / "cross")
    layouts.unpack({"train/anger/0.png": encoded(picture(0))}, manual / "fer2013")
    refused("tajax_fer2013", tmp_path, "has no image of disgust, fear")


def test_rendered_sst2_with_another_class(manual, tmp_path):
    layouts.unpack(layouts.rendered_sst2() | {"rendered-sst2/valid/neutral/0.png": encoded(picture(0))}, manual)
    refused("tajax_rendered_sst2", tmp_path, "valid/neutral/0.png lies in 'neutral'", "negative and positive")


def test_an_interruption_leaves_nothing(manual, tmp_path, monkeypatch):
    layouts.unpack(layouts.rendered_sst2(), manual)
    calls = iter(range(100))

    def interrupted(*arguments, **options):
        if next(calls) == 6:  # in the second split
            raise KeyboardInterrupt
        return decode(*arguments, **options)

    monkeypatch.setattr(official, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        archives.prepare("tajax_rendered_sst2", data_dir=tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".tajax_rendered_sst2.lock", "downloads"]  # whose turn it is to prepare the set
    assert len(archives.prepare("tajax_rendered_sst2", data_dir=tmp_path).as_data_source("test")) == 4


@pytest.mark.parametrize("name", ["rendered-sst2.tgz", "rendered-sst2.zip", "rendered-sst2.tar"])
@pytest.mark.parametrize("kept", [0, 0.3, 0.8])
def test_a_truncated_archive_leaves_nothing(name, kept, manual, tmp_path):
    path = layouts.pack(layouts.rendered_sst2(), manual / name)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    refused("tajax_rendered_sst2", tmp_path, name, "truncated or damaged", "fetch it anew")


@pytest.mark.parametrize("suffix", ["zip", "tgz"])
@pytest.mark.parametrize("name", ["../../evil.png", "/evil.png", "a/../../evil.png", "C:\\evil.png", "..\\evil.png"])
def test_paths_that_lead_out_of_an_archive_are_refused(suffix, name, manual, tmp_path):
    layouts.pack(layouts.rendered_sst2() | {name: b"evil"}, manual / f"rendered-sst2.{suffix}")
    refused("tajax_rendered_sst2", tmp_path, "leads out of it")
    assert not list(tmp_path.rglob("*evil*"))


def test_links_in_an_archive_are_not_followed(manual, tmp_path):
    path = layouts.pack(layouts.rendered_sst2(), manual / "rendered-sst2.tar")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("rendered-sst2/train/negative/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    refused("tajax_rendered_sst2", tmp_path, "holds a link or device", "link.png")


def test_what_operating_systems_leave_behind_is_no_image(manual, tmp_path):
    files = layouts.rendered_sst2() | {"__MACOSX/rendered-sst2/train/negative/._0.png": b"", ".DS_Store": b""}
    layouts.pack(files, manual / "rendered-sst2.zip")
    assert len(archives.prepare("tajax_rendered_sst2", data_dir=tmp_path).as_data_source("train")) == 4


class Downloads:
    """Stands in for TFDS's download manager."""

    def __init__(self, files):
        self.files, self.asked = files, []

    def download(self, url):
        self.asked.append(url)
        return self.files[url]


def test_downloads_are_checked_by_their_published_sum(manual, tmp_path, monkeypatch):
    train, test, labels = layouts.gtsrb()
    layouts.unpack(train | test, manual)
    part = archives.BUILDERS["tajax_gtsrb"].PARTS["labels"]
    fetched = layouts.pack(labels, tmp_path / "cache" / "some_name.tmp.zip")
    found = archives.BUILDERS["tajax_gtsrb"].parts_in(manual)
    assert [name for name, place in found.items() if place is None] == ["labels"]

    builder = archives.BUILDERS["tajax_gtsrb"](data_dir=str(tmp_path))
    with pytest.raises(archives.BadArchiveError, match=f"{part.url} gave a file with MD5 sum .*, not {part.md5}"):
        builder._fetch(["labels"], Downloads({part.url: fetched}))
    sound = official.Part(part.what, part.patterns, part.file, part.url, stores.md5_of(fetched))
    monkeypatch.setitem(builder.PARTS, "labels", sound)
    assert builder._fetch(["labels"], Downloads({part.url: fetched}))["labels"].name == "GT-final_test.csv"


def test_member_without_a_name_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("\0"), b"content")  # a name ends at its first NUL
    with pytest.raises(archives.BadArchiveError, match="holds '', a path that leads out of it"):
        _ = stores.Zip(tmp_path / "a.zip").names
