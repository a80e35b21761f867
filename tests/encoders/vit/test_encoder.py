"""A ViT keeps the contract of encoders, and its features are those of the arithmetic in conftest.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tajax import encoders
from tajax.data.preprocess import normalize
from tajax.encoders.vit.family import FAMILY, of_vit
from tajax.encoders.vit.loading import load_vit
from tajax.encoders.vit.positions import KERNELS, bicubic_matrix
from tajax.rules import RULES
from tajax.trees import flatten_paths, param_mask, unflatten_paths
from tajax.types import Preprocessing, Resize
from tests.encoders.vit.conftest import CONFIGS, PREPROCESSOR, reference_features, write

pytestmark = pytest.mark.usefixtures("quick_programs")

BLOCK = {f"ln_{n}/{part}" for n in (1, 2) for part in ("scale", "bias")}
BLOCK |= {f"attn/{name}/{part}" for name in ("query", "key", "value", "out") for part in ("kernel", "bias")}
BLOCK |= {f"mlp/{name}/{part}" for name in ("fc_in", "fc_out") for part in ("kernel", "bias")}
OUTSIDE = {"class_embedding", "position_embedding", "patch_embedding/kernel", "patch_embedding/bias"}
OUTSIDE |= {"ln_post/scale", "ln_post/bias"}
SCALES = {"scale_1", "scale_2"}
QKV_BIASES = {f"attn/{name}/bias" for name in ("query", "key", "value")}


def paths_of(kind):
    block = BLOCK - (QKV_BIASES if kind == "unbiased" else set())
    block |= SCALES if CONFIGS[kind]["model_type"] != "vit" else set()
    return OUTSIDE | {f"blocks/{path}" for path in block} | ({"registers"} if kind == "registers" else set())


@pytest.fixture(scope="module")
def loaded(small):
    """Each small ViT, loaded once."""
    made = {}

    def loaded(kind):
        if kind not in made:
            made[kind] = encoders.load(str(small(kind)[0]), family="vit")
        return made[kind]

    return loaded


@pytest.mark.parametrize("kind", CONFIGS)
def test_features_of_pixels_are_those_of_the_formulas(loaded, small, images, kind):
    _, config, tensors = small(kind)
    encoder = loaded(kind)
    pixels = (images / 255 - np.array(PREPROCESSOR["image_mean"])) / np.array(PREPROCESSOR["image_std"])
    positions = tensors["embeddings.position_embeddings"][0].astype(np.float64)
    if kind == "dinov2":
        matrix = bicubic_matrix(5, 2, **KERNELS["dinov2"]._asdict())
        grid = np.einsum("ij,jkd,lk->ild", matrix, positions[1:].reshape(5, 5, 16), matrix)
        positions = np.concatenate([positions[:1], grid.reshape(4, 16)])
    want = reference_features(config, tensors, pixels, positions)
    got = jax.jit(encoder.apply)(encoder.params, images)
    assert got.shape == (3, encoder.feature_dim) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(), rtol=0)  # float32 through 3 layers
    unrolled = jax.jit(encoder.apply_for_responses)(encoder.params, images)
    np.testing.assert_allclose(unrolled, got, atol=1e-6 * np.abs(want).max(), rtol=0)
    assert np.abs(np.diff(want, axis=0)).max() > 0.1  # images tell


@pytest.mark.parametrize("kind", CONFIGS)
def test_layers_are_stacked_and_every_rule_claims_its_leaves(loaded, kind):
    encoder = loaded(kind)
    flat = flatten_paths(encoder.params)
    assert set(flat) == paths_of(kind)
    assert encoder.stacked == "blocks" and encoder.rules is RULES and encoder.zero_shot is None
    assert all(flat[path].shape[0] == 3 for path in flat if path.startswith("blocks/"))
    assert all(leaf.dtype == jnp.float32 for leaf in flat.values())

    def claimed(rule):
        return {path for path, trained in flatten_paths(param_mask(encoder.params, rule)).items() if trained}

    assert claimed("all") == set(flat)
    kernels = {f"blocks/attn/{name}/kernel" for name in ("query", "key", "value", "out")}
    mlp = {"blocks/mlp/fc_in/kernel", "blocks/mlp/fc_out/kernel"}
    assert claimed("attention") == kernels and claimed("mlp") == mlp and claimed("linear_layers") == kernels | mlp
    assert claimed("attention_with_bias") == {p for p in flat if p.startswith("blocks/attn/")}
    assert claimed("biases") == {path for path in flat if path.endswith("/bias")}
    assert claimed("layer_norms") == {p for p in flat if p.split("/")[-2:-1][:1] in (["ln_1"], ["ln_2"], ["ln_post"])}
    assert claimed("attention_query_value") == {"blocks/attn/query/kernel", "blocks/attn/value/kernel"}


def test_the_outline_has_the_paths_of_all_and_no_other():
    paths = {path for kind in CONFIGS for path in paths_of(kind)}
    assert set(flatten_paths(FAMILY.outline())) == paths
    assert encoders.family_named("vit") is FAMILY
    assert (FAMILY.modality, FAMILY.formats) == ("images", ("huggingface",))


@pytest.mark.parametrize("kind", CONFIGS)
def test_tangents_are_those_of_finite_differences(small, images, kind, rng):
    with jax.enable_x64(True):
        vit = load_vit(small(kind)[0], dtype=jnp.float64)
        pixels = jnp.asarray(normalize(images, vit.prepared.preprocessing), jnp.float64)
        tau = jax.tree.map(lambda leaf: rng(730).normal(size=leaf.shape), vit.params)

        def features(params):
            return vit.encode(params, pixels)

        @jax.jit
        def derivatives(params, tau):
            moved = [jax.tree.map(lambda leaf, move, h=h: leaf + h * move, params, tau) for h in (1e-5, -1e-5)]
            _, tangent = jax.jvp(features, (params,), (tau,))
            return tangent, features(moved[0]) - features(moved[1]), jax.grad(lambda p: jnp.sum(features(p)))(params)

        tangent, difference, gradient = jax.tree.map(np.asarray, derivatives(vit.params, tau))
    assert tangent.dtype == np.float64
    np.testing.assert_allclose(tangent, difference / 2e-5, atol=1e-6 * np.abs(tangent).max())
    inner = sum(np.sum(a * b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(tau), strict=True))
    np.testing.assert_allclose(inner, tangent.sum(), rtol=1e-9)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))  # no leaf is without use


@pytest.mark.parametrize("remat", ["dots", "layers"])
def test_recomputing_layers_changes_no_number(small, images, remat):
    encoder = encoders.load(str(small("registers")[0]), family="vit")

    def gradient(apply):
        return jax.jit(jax.grad(lambda params: jnp.sum(apply(params, images) ** 2)))(encoder.params)

    pairs = gradient(encoder.for_training(remat=remat)), gradient(encoder.apply)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *pairs)


def test_identity_says_which_model_it_is_and_what_it_was_read_from(loaded, small):
    encoder = loaded("registers")
    assert encoder.family == "vit" and encoder.identity.name == str(small("registers")[0])
    assert encoder.identity.revision is None and len(encoder.identity.sha256) == 64
    assert encoder.identity.sha256 != loaded("gated").identity.sha256
    assert encoder.inputs == Preprocessing(8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    geometry, facts = encoder.identity.geometry, encoder.identity.facts
    assert (geometry["num_attention_heads"], geometry["hidden_act"], geometry["num_registers"]) == (2, "gelu", 3)
    assert facts["base_notes"] == [] and facts["preprocessing"]["from"] == "preprocessor_config.json"
    assert json.loads(json.dumps([geometry, facts])) == [geometry, facts]
    for_table = loaded("dinov2").identity.geometry
    assert (for_table["image_size"], for_table["input_size"]) == (20, 8)


def test_a_seed_draws_another_model_of_the_same_shapes(small, loaded):
    directory, known = str(small("dinov2")[0]), loaded("dinov2")
    one, two = (encoders.load(directory, family="vit", random_seed=seed) for seed in (1, 2))
    assert one.identity.sha256 == load_vit(directory).with_random_params(1).sha256
    assert len({one.identity.sha256, two.identity.sha256, known.identity.sha256}) == 3
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), one.params, known.params)
    np.testing.assert_array_equal(one.params["blocks"]["scale_1"], 1)  # what its config.json says, or leaves at 1


@pytest.mark.parametrize("wrong, message", [(np.zeros((1, 9, 9, 3), np.uint8), r"\[B, 8, 8, 3\], got \[1, 9, 9, 3\]")])
def test_images_of_another_size_are_refused(loaded, wrong, message):
    with pytest.raises(ValueError, match=message):
        loaded("vit").apply(loaded("vit").params, wrong)


def test_names_are_checked_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="'tiny' is a CLIP, of the family 'clip'. The family 'vit' takes a directory"):
        FAMILY.check_name("tiny")
    with pytest.raises(FileNotFoundError, match="No model"):
        FAMILY.check_name(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="No model 'vitb16'"):
        FAMILY.check_name("vitb16")
    FAMILY.check_name("facebook/dinov2-small@main")


def test_a_repository_of_the_hub_is_known_by_its_commit(hub, small, loaded, images):
    commit = hub.commit("owner/dino", {file.name: file.read_bytes() for file in small("gated")[0].iterdir()})
    encoder = encoders.load("owner/dino@main", family="vit")
    assert encoder.identity.revision == commit
    assert encoder.identity.sha256 == loaded("gated").identity.sha256


def test_what_is_not_there_is_not_guessed(small, tmp_path):
    _, config, tensors = small("vit")
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config.json is missing: nothing says with which mean"):
        load_vit(write(tmp_path / "one", config, tensors, preprocessor=None))
    directory = write(tmp_path / "two", config, tensors)
    (directory / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json is missing: the weights need it"):
        load_vit(directory)
    oblong = PREPROCESSOR | {"crop_size": {"height": 4, "width": 4}}
    with pytest.raises(ValueError, match="takes images of 8 pixels .* but they would have 4"):
        load_vit(write(tmp_path / "three", config, tensors, oblong))


def test_images_are_prepared_as_the_files_say_and_the_record_says_how(small, tmp_path):
    _, config, tensors = small("vit")
    google = {"do_resize": True, "size": 8, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    encoder = of_vit(load_vit(write(tmp_path / "google", config, tensors, google)))
    assert encoder.inputs.resize == Resize(8, squash=True, interpolation="bilinear")
    assert encoder.identity.facts["base_notes"] == []
    assert encoder.identity.facts["preprocessing"]["resize"] == "squashed to 8, bilinear"


def test_half_precision_is_said(small, tmp_path):
    _, config, tensors = small("dinov2")
    halves = {name: value.astype(np.float16) for name, value in tensors.items()}
    encoder = of_vit(load_vit(write(tmp_path / "half", config, halves)))
    assert encoder.identity.facts["base_notes"] == [f"weights are float16 ({len(halves)} of {len(halves)} tensors)"]
    leaf = flatten_paths(encoder.params)["class_embedding"]
    np.testing.assert_array_equal(leaf, halves["embeddings.cls_token"][0, 0].astype(np.float32))


def test_a_tree_that_is_not_the_models_is_refused_when_it_is_saved(loaded, tmp_path):
    encoder = loaded("vit")
    flat = flatten_paths(encoder.params)
    without = unflatten_paths({path: leaf for path, leaf in flat.items() if path != "class_embedding"})
    with pytest.raises(ValueError, match="class_embedding"):
        encoder.save(tmp_path / "out", without, format="huggingface")
    assert not (tmp_path / "out").exists()
