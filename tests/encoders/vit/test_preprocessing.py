"""What files of transformers ask for is done, to the pixel, or refused; never passed over in silence."""

import json

import numpy as np
import pytest
from PIL import Image

from tajax.data.preprocess import normalize, resize_center_crop
from tajax.encoders.vit.preprocessing import read_prepared
from tajax.types import Preprocessing, Resize

HALF, IMAGENET = (0.5, 0.5, 0.5), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RESCALE = {"do_rescale": True, "rescale_factor": 0.00392156862745098}
FILES = {  # as they are published
    "google/vit-base-patch16-224": (
        {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        | RESCALE
        | {"image_processor_type": "ViTImageProcessor", "resample": 2, "size": {"height": 224, "width": 224}},
        "vit",
    ),
    "google/vit-base-patch16-224-in21k": (
        {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
        | {"size": 224},
        "vit",
    ),
    "facebook/dino-vits16": (
        {"do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor", "resample": 3}
        | {"image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1]), "size": 224},
        "vit",
    ),
    "facebook/dinov2-small": (
        {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True}
        | {"do_normalize": True, "do_resize": True, "image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1])}
        | RESCALE
        | {"image_processor_type": "BitImageProcessor", "resample": 3, "size": {"shortest_edge": 256}},
        "dinov2",
    ),
}
TOLD = {
    "google/vit-base-patch16-224": (HALF, HALF, "squashed to 224, bilinear", Resize(224, True, "bilinear")),
    "google/vit-base-patch16-224-in21k": (HALF, HALF, "squashed to 224, bilinear", Resize(224, True, "bilinear")),
    "facebook/dino-vits16": (*IMAGENET, "squashed to 224, bicubic", Resize(224, True)),
    "facebook/dinov2-small": (*IMAGENET, "shorter side to 256, bicubic, centre 224 cut out", Resize(256)),
}


def read(directory, content, model_type="vit", *, file="preprocessor_config.json"):
    (directory / file).write_text(json.dumps(content))
    return read_prepared(directory, model_type=model_type)


@pytest.mark.parametrize("name", FILES)
def test_published_files(tmp_path, name):
    content, model_type = FILES[name]
    mean, std, told, resize = TOLD[name]
    prepared = read(tmp_path, content, model_type)
    assert prepared.preprocessing == Preprocessing(224, mean, std, resize)
    assert prepared.resize == told and prepared.source == "preprocessor_config.json"
    assert prepared.written == {"preprocessor_config.json": content}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("width, height", [(224, 224), (333, 250), (90, 141), (256, 31)])
def test_pixels_are_those_of_transformers(tmp_path, name, width, height):
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    content, model_type = FILES[name]
    prepared = read(tmp_path, content, model_type).preprocessing
    theirs = (BitImageProcessorPil if model_type == "dinov2" else ViTImageProcessorPil).from_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))
    ours = resize_center_crop(image, prepared.size, prepared.resize)
    pixels = theirs(image, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"][0]
    np.testing.assert_array_equal(ours, np.moveaxis(pixels, 0, -1))
    values = theirs(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(normalize(ours[None], prepared)[0], np.moveaxis(values, 0, -1), rtol=0, atol=1e-6)


def test_a_file_that_asks_for_clips_geometry_is_prepared_as_clips_are(tmp_path):
    content = FILES["facebook/dinov2-small"][0] | {"size": {"shortest_edge": 224}, "crop_size": 224}
    assert read(tmp_path, content, "dinov2").preprocessing.resize is None
    assert read(tmp_path, content | {"image_processor_type": "CLIPImageProcessor"}).preprocessing.resize is None


def test_what_a_file_leaves_out_is_what_its_class_takes(tmp_path):
    vit = read(tmp_path, {"image_processor_type": "ViTImageProcessor"})
    assert vit.preprocessing == Preprocessing(224, HALF, HALF, Resize(224, True, "bilinear"))
    bit = read(tmp_path, {"image_processor_type": "BitImageProcessorFast", "size": 256})
    assert (bit.preprocessing.size, bit.resize) == (224, "shorter side to 256, bicubic, centre 224 cut out")
    assert bit.preprocessing.mean[0] == 0.48145466  # transformers' BitImageProcessor takes OpenAI's


def test_both_files_are_read_and_must_agree(tmp_path):
    content = FILES["facebook/dinov2-small"][0]
    read(tmp_path, content)
    both = read(tmp_path, {"image_processor": content}, "dinov2", file="processor_config.json")
    assert both.source == "processor_config.json" and len(both.written) == 2
    with pytest.raises(ValueError, match="processor_config.json and preprocessor_config.json in .* disagree"):
        read(tmp_path, {"image_processor": content | {"resample": 2}}, "dinov2", file="processor_config.json")


def test_none_is_none(tmp_path):
    assert read_prepared(tmp_path, model_type="vit") is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"do_resize": False}, "do_resize=False"),
        ({"do_normalize": False}, "do_normalize=False"),
        ({"rescale_factor": 1.0}, "rescale_factor=1.0"),
        ({"do_pad": True}, "do_pad=True"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order=True"),
        ({"crop_pct": 0.9}, "crop_pct=0.9"),
        (
            {"image_processor_type": "DeiTImageProcessor"},
            "'DeiTImageProcessor' is not known. Known are ViTImageProcessor",
        ),
        ({"resample": 9}, "resample 9 is unknown"),
        ({"resample": "cubic"}, "resample 'cubic' is unknown"),
        ({"size": {"height": 224, "width": 192}}, "is not one side"),
        ({"size": {"longest_edge": 224}}, "is not one side"),
        ({"crop_size": 288}, "cuts 288 pixels out of 256"),
        ({"do_center_crop": False}, "resizes the shorter side to 256 pixels and crops nothing"),
        ({"do_center_crop": "yes"}, "do_center_crop must be true or false"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std"),
    ],
)
def test_what_is_not_done_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, FILES["facebook/dinov2-small"][0] | change, "dinov2")
    assert "preprocessor_config.json" in str(error.value)


def test_a_section_that_is_no_object_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"image_processor must be an object, got \[\]"):
        read(tmp_path, {"image_processor": []}, file="processor_config.json")
