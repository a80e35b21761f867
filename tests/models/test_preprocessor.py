"""How images are prepared: as transformers and open_clip write it, refused where it is not what is done here."""

import json
import logging
import re

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPProcessor

from tajax.data.preprocess import normalize, resize_center_crop
from tajax.models import load, save_pretrained
from tajax.models.preprocessor import OPENAI_MEAN, OPENAI_STD, preprocessor_config, read_preprocessing
from tajax.types import Preprocessing

HALVES = Preprocessing(32, (0.5, 0.25, 0.125), (0.5, 0.25, 0.75))
WRITTEN = preprocessor_config(HALVES)


def write(directory, name, value):
    (directory / name).write_text(json.dumps(value))


def read(directory, image_size=32):
    return read_preprocessing(directory, image_size=image_size)


def open_clip(**changes):
    kept = {"mean": HALVES.mean, "std": HALVES.std, "interpolation": "bicubic", "resize_mode": "shortest"}
    return {"preprocess_cfg": kept | {"size": [32, 32], "mode": "RGB", "fill_color": 0} | changes}


@pytest.fixture
def processor():
    options = {"size": {"shortest_edge": 32}, "crop_size": 32, "image_mean": HALVES.mean, "image_std": HALVES.std}
    return CLIPImageProcessorPil(**options)


@pytest.mark.parametrize("whole", [True, False], ids=["processor_config", "preprocessor_config"])
def test_what_transformers_writes_prepares_the_same_pixels(processor, tokenizer, tmp_path, whole):
    (CLIPProcessor(processor, tokenizer.backend) if whole else processor).save_pretrained(tmp_path)
    written = {"processor_config.json", "preprocessor_config.json"} & {file.name for file in tmp_path.iterdir()}
    preprocessing, source = read(tmp_path)
    assert preprocessing == HALVES
    assert {source} == written == {"processor_config.json" if whole else "preprocessor_config.json"}
    pixels = np.random.default_rng(5).integers(0, 256, (50, 41, 3), dtype=np.uint8)
    reference = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = normalize(resize_center_crop(Image.fromarray(pixels), preprocessing.size), preprocessing)
    np.testing.assert_allclose(ours, reference, atol=1e-6)


@pytest.mark.parametrize("of", [CLIPImageProcessorPil, CLIPProcessor])
def test_what_we_write_transformers_reads(saved, preprocessing, of):
    found = of.from_pretrained(saved)
    processor = getattr(found, "image_processor", found)
    size = {"height": preprocessing.size, "width": preprocessing.size}
    assert (processor.image_mean, processor.image_std) == (preprocessing.mean, preprocessing.std)
    assert (dict(processor.size), dict(processor.crop_size)) == ({"shortest_edge": preprocessing.size}, size)


def test_a_model_with_the_new_form_alone_is_not_prepared_by_default(saved, copy, preprocessing):
    (copy / "preprocessor_config.json").rename(copy / "kept")
    write(copy, "processor_config.json", {"image_processor": json.loads((copy / "kept").read_text())})
    clip = load(copy)
    assert clip.preprocessing == preprocessing
    assert clip.sources == {"config": "config.json", "preprocessing": "processor_config.json"}


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 32, "crop_size": 32, "image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"},
        {"image_processor_type": "CLIPImageProcessorFast", "crop_size": [32, 32], "default_to_square": False},
        {"processor_class": "CLIPProcessor", "resample": "bicubic", "do_pad": None, "pad_size": None, "device": None},
        {"rescale_factor": float(np.float32(1 / 255)), "_valid_processor_keys": ["images"], "do_resize": None},
    ],
)
def test_forms_of_all_years_say_the_same(tmp_path, changes):
    write(tmp_path, "preprocessor_config.json", WRITTEN | changes)
    assert read(tmp_path) == (HALVES, "preprocessor_config.json")


@pytest.mark.parametrize("changes", [{}, {"interpolation": "random", "size": 32}, {"size": None, "mode": None}])
def test_what_open_clip_says(tmp_path, changes):
    write(tmp_path, "open_clip_config.json", open_clip(**changes))
    assert read(tmp_path) == (HALVES, "open_clip_config.json")


OTHERS = [
    {"size": {"shortest_edge": 20}},
    {"size": {"height": 32, "width": 32}},
    {"size": [32, 32]},
    {"size": {"shortest_edge": 32, "longest_edge": 64}},
    {"size": None},  # 224 in transformers
    {"crop_size": {"height": 32, "width": 16}},
    {"crop_size": {"shortest_edge": 32}},
    {"crop_size": 28},
    {"resample": 2},
    {"resample": "bilinear"},
    {"resample": "3"},
    {"do_resize": False},
    {"do_center_crop": False},
    {"do_center_crop": "false"},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_convert_rgb": False},
    {"do_pad": True},
    {"use_square_size": True},
    {"default_to_square": True},
    {"rescale_factor": 1 / 127.5},
    {"rescale_factor": 1},
    {"image_processor_type": "SiglipImageProcessor"},
    {"image_processor_type": "ViTImageProcessor"},
    {"image_processor_type": ["CLIPImageProcessor"]},
    {"feature_extractor_type": "ViTFeatureExtractor"},
    {"crop_pct": 0.9},
    {"auto_map": {"AutoImageProcessor": "mine.Processor"}},
]


@pytest.mark.parametrize("changes", OTHERS, ids=json.dumps)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_preprocessing_that_cannot_be_done_is_refused(tmp_path, file, changes):
    section = {key: value for key, value in (WRITTEN | changes).items() if value is not None}
    write(tmp_path, file, {"image_processor": section} if file == "processor_config.json" else section)
    ((name, value),) = changes.items()
    expected = f"{file}: it asks for {name}={224 if value is None else value!r}: other preprocessing than CLIP's"
    with pytest.raises(ValueError, match=re.escape(expected)):
        read(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 224},
        {"size": [32, 16]},
        {"mode": "L"},
        {"interpolation": "bilinear"},
        {"resize_mode": "squash"},
        {"resize_mode": "longest"},
        {"crop_pct": 0.9},
    ],
    ids=json.dumps,
)
def test_preprocessing_of_open_clip_that_cannot_be_done_is_refused(tmp_path, changes):
    write(tmp_path, "open_clip_config.json", open_clip(**changes))
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=re.escape(f"open_clip_config.json: it asks for {name}={value!r}")):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_mean", [0.5, 0.5]),
        ("image_mean", "0.5"),
        ("image_mean", {"red": 0.5}),
        ("image_mean", [0.5, None, 0.5]),
        ("image_mean", [0.5, float("nan"), 0.5]),
        ("image_std", [0.5, 0.0, 0.5]),
        ("image_std", []),
    ],
)
def test_what_is_not_three_numbers_is_refused(tmp_path, name, value):
    write(tmp_path, "preprocessor_config.json", WRITTEN | {name: value})
    with pytest.raises(ValueError, match=rf"preprocessor_config.json: {name} .* is not 3 (finite|positive) numbers"):
        read(tmp_path)


def test_one_number_is_that_of_every_channel_as_in_both_libraries(tmp_path):
    write(tmp_path, "preprocessor_config.json", WRITTEN | {"image_mean": 0.5, "image_std": 1})
    assert read(tmp_path)[0] == Preprocessing(32, (0.5,) * 3, (1.0,) * 3)


def test_what_a_file_leaves_out_is_what_its_library_takes_and_is_said(tmp_path, caplog):
    section = {key: value for key, value in WRITTEN.items() if key != "image_std"}
    write(tmp_path, "preprocessor_config.json", section)
    taken = CLIPImageProcessorPil.from_pretrained(tmp_path)
    preprocessing, source = read(tmp_path)
    assert (
        preprocessing == HALVES._replace(std=OPENAI_STD) == Preprocessing(32, taken.image_mean, tuple(taken.image_std))
    )
    assert source == "preprocessor_config.json; image std: default (OpenAI's)"
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / 'preprocessor_config.json'} has no image std: OpenAI's is taken")


def test_the_default_is_said_in_one_line_and_kept(copy, caplog):
    (copy / "preprocessor_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        clip = load(copy)
    assert clip.preprocessing == Preprocessing(16, OPENAI_MEAN, OPENAI_STD)
    assert clip.sources["preprocessing"] == "default (OpenAI's)"
    (line,) = caplog.messages
    assert line.startswith(
        f"No preprocessor_config.json or processor_config.json in {copy}: images are prepared with Open"
    )


def test_files_that_agree_are_read_and_files_that_do_not_are_refused(tmp_path):
    write(tmp_path, "processor_config.json", {"image_processor": WRITTEN, "processor_class": "CLIPProcessor"})
    write(tmp_path, "preprocessor_config.json", WRITTEN)
    write(tmp_path, "open_clip_config.json", open_clip())
    assert read(tmp_path) == (HALVES, "processor_config.json")
    write(tmp_path, "open_clip_config.json", open_clip(std=[0.5] * 3))
    with pytest.raises(
        ValueError, match=r"processor_config.json and open_clip_config.json in .* disagree: .*0\.25, 0\.75"
    ):
        read(tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    write(tmp_path, "preprocessor_config.json", WRITTEN | {"image_mean": OPENAI_MEAN})
    with pytest.raises(ValueError, match=r"processor_config.json and preprocessor_config.json in .* disagree"):
        read(tmp_path)


def test_the_new_file_may_say_nothing_where_the_old_one_does(tmp_path):
    write(tmp_path, "processor_config.json", {"processor_class": "CLIPProcessor"})
    with pytest.raises(ValueError, match="has no image_processor, and no preprocessor_config.json lies beside it"):
        read(tmp_path)
    write(tmp_path, "preprocessor_config.json", WRITTEN)
    assert read(tmp_path) == (HALVES, "preprocessor_config.json")
    write(tmp_path, "processor_config.json", {"image_processor": "CLIPImageProcessor"})
    with pytest.raises(ValueError, match="processor_config.json: image_processor must be an object"):
        read(tmp_path)


def test_open_clip_may_leave_everything_to_its_library(tmp_path):
    write(tmp_path, "open_clip_config.json", {"model_cfg": {}})
    assert read(tmp_path) is None


def test_what_was_saved_for_open_clip_says_how_images_are_prepared(tmp_path, config, params, tokenizer, preprocessing):
    save_pretrained(tmp_path / "clip", config, params, tokenizer, preprocessing, format="open_clip")
    assert read(tmp_path / "clip", 16) == (preprocessing, "open_clip_config.json")
