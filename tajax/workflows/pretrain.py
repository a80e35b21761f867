"""Contrastive pre-training of the bundled small CLIP, from scratch to a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8
from ml_collections import ConfigDict

from tajax import checkpoints, interrupts, models, optim, parallel, progress, tracking
from tajax.config import config_hash
from tajax.data import captions, mixture
from tajax.data.fingerprint import of_captions
from tajax.data.preprocess import normalize
from tajax.finetune import TrainState, Unlogged, init_state, place_state, train
from tajax.models import clip, save_pretrained, tokenizer
from tajax.models.loading import OPENAI_MEAN, OPENAI_STD
from tajax.progress import Stage
from tajax.records import Pretrain, stage_of
from tajax.rules import DIVIDED
from tajax.types import Params, Preprocessing
from tajax.workflows import inputs
from tajax.workflows.journal import Journal, training_log
from tajax.workflows.placing import placed
from tajax.workflows.stages import announce, warn
from tajax.workflows.workdir import claim, write_report
from tajax.workflows.workflow import Memory, Workflow


def contrastive_loss(
    image_features: Float[Array, "B E"],
    text_features: Float[Array, "B E"],
    scale: Float[Array, ""],
    positives: Bool[Array, "B B"],
) -> Float[Array, ""]:
    """Symmetric contrastive cross-entropy in which every caption that fits an image is a positive of it.

    With one caption an image this is CLIP's loss (Radford et al. 2021, §2.3); with several, the targets of an image are
    uniform over its captions and those of a caption over its images (Yang et al. 2022, "Unified contrastive
    learning", §3).

    Args:
        image_features: [B, E], not normalised.
        text_features: [B, E], not normalised.
        scale: inverse temperature.
        positives: bool [B, B], whether the caption of a column fits the image of a row; at least one in each row and
            in each column.

    Returns:
        The mean over rows and both directions, a scalar.
    """
    images, texts = (f / jnp.linalg.norm(f, axis=-1, keepdims=True) for f in (image_features, text_features))
    logits = scale * images @ texts.T
    of_images, of_texts = (p / jnp.sum(p, axis=1, keepdims=True) for p in (positives, positives.T))
    return (
        optax.softmax_cross_entropy(logits, of_images).mean() + optax.softmax_cross_entropy(logits.T, of_texts).mean()
    ) / 2


def augment(
    key: PRNGKeyArray,
    images: UInt8[Array, "B H W 3"],
    mirrored: Bool[Array, " B"],
    *,
    zoom: float = 0.2,
    shift: float = 4.0,
    light: float = 0.3,
) -> UInt8[Array, "B H W 3"]:
    """Random zoom, shift, brightness and contrast for every image, mirrored half of the time where that is allowed.

    Args:
        key: PRNG key.
        images: uint8 [B, H, W, 3].
        mirrored: bool [B], rows that may be mirrored.
        zoom: largest relative change of size.
        shift: largest shift, pixels.
        light: largest relative change of brightness and of contrast.

    Returns:
        uint8 [B, H, W, 3].
    """
    count, height, width, _ = images.shape
    keys = jax.random.split(key, 5)
    scale = 1 + jax.random.uniform(keys[0], (count, 1), minval=-zoom, maxval=zoom)
    centre = jnp.array([[height, width]]) / 2
    offset = jax.random.uniform(keys[1], (count, 2), minval=-shift, maxval=shift) + centre * (1 - scale)
    flip = mirrored & jax.random.bernoulli(keys[2], shape=(count,))
    pixels = images.astype(jnp.float32)
    pixels = jnp.where(flip[:, None, None, None], pixels[:, :, ::-1], pixels)
    pad = int(np.ceil(shift + zoom * max(height, width) / 2)) + 1
    pixels = jnp.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")

    def warp(image: Array, scale: Array, offset: Array) -> Array:
        return jax.image.scale_and_translate(
            image, (height, width, 3), (0, 1), jnp.tile(scale, 2), offset - pad * scale, method="linear"
        )

    pixels = jax.vmap(warp)(pixels, scale, offset)
    mean = jnp.mean(pixels, axis=(1, 2, 3), keepdims=True)
    contrast = 1 + jax.random.uniform(keys[3], (count, 1, 1, 1), minval=-light, maxval=light)
    brightness = 1 + jax.random.uniform(keys[4], (count, 1, 1, 1), minval=-light, maxval=light)
    pixels = ((pixels - mean) * contrast + mean) * brightness
    return jnp.round(jnp.clip(pixels, 0, 255)).astype(jnp.uint8)


def make_step(
    model: clip.CLIP,
    tx: optax.GradientTransformation,
    preprocessing: Preprocessing,
    placement: parallel.Placement | None = None,
) -> Callable[..., tuple[TrainState, Array]]:
    """A compiled step `(state, key, images, mirrored, tokens, positives) -> (state, loss)`; the state is donated."""
    place = placement or parallel.Replicated()

    def loss_fn(params: Params, images: Array, tokens: Array, positives: Array) -> Array:
        outputs = model.apply({"params": params}, images, tokens)
        image_features, text_features, scale = outputs  # type: ignore[misc]  # Flax's type: with variables that change
        return contrastive_loss(image_features, text_features, jnp.minimum(scale, 100.0), positives)

    def step(
        state: TrainState, key: PRNGKeyArray, images: Array, mirrored: Array, tokens: Array, positives: Array
    ) -> tuple[TrainState, Array]:
        pixels = normalize(augment(jax.random.fold_in(key, state.step), images, mirrored), preprocessing)
        loss, grads = jax.value_and_grad(loss_fn)(state.trained, pixels, tokens, positives)
        updates, opt_state = tx.update(grads, state.opt_state, state.trained)
        trained = place.keep(optax.apply_updates(state.trained, updates))
        return TrainState(state.step + 1, trained, place.keep(opt_state, moments=True)), loss

    return place.compiled(step)


def run(config: ConfigDict, workdir: Path, *, overwrite: bool = False) -> None:
    """Pre-trains the model that `config.pretrain` describes and writes it to `workdir/model`.

    The data are captioned scenes of the synthetic world and, if given, labelled natural images. Checkpoints stay in
    `workdir/checkpoints`, all of them, and a run that was interrupted goes on from the last one.

    Args:
        config: a validated config.
        workdir: where checkpoints, `results.jsonl` and the model go.
        overwrite: start anew, removing what the directory holds.
    """
    settings = config.pretrain
    started = time.monotonic()
    announce(config, workdir)
    tracking.check(config.track.wandb)
    placement = _placement(config)
    with progress.stage("setup"):
        before = _initial_model(settings) if settings.initial_model else None
        sources = [captions.load_scenes("train", data_dir=config.data_dir, size=settings.scenes)]
        rows, left_out = [settings.batch_size], []
        if settings.natural and settings.natural_fraction > 0:
            for path in settings.natural:
                try:
                    found = captions.load_natural(path, on_bad_image=config.on_bad_image)
                except FileNotFoundError as error:
                    ways = "Give --config.pretrain.natural=FILE.npz, or =None to pre-train on synthetic scenes alone."
                    raise FileNotFoundError(f"{error}. {ways}") from error
                sources += found
                if count := found[0].skipped:
                    left_out.append(f"{count:,} images of {path} cannot be read and are left out")
            natural_rows = round(settings.batch_size * settings.natural_fraction)
            sizes = [len(source.images) for source in sources[1:]]
            shared = mixture.rows_of_sources(sizes, natural_rows, power=settings.share_power)
            rows = [settings.batch_size - natural_rows, *shared]
        claim(config, workdir, overwrite=overwrite)
        made_from = {f"{number}_{source.name}": of_captions(source) for number, source in enumerate(sources)}
        known = {"initial model": _sha256(before)} if before else {}
        inputs.keep(workdir, {"tasks": {}, "facts": made_from | known})
        vocabulary = mixture.vocabulary(sources)
        phrases = vocabulary.phrases
        sentences = [template.format(phrase) for phrase in phrases for template in mixture.TEMPLATES]
        words = before.tokenizer if before else _learnt_tokenizer(sentences, settings)
    tokens = words.tokenize(sentences).reshape(len(phrases), len(mixture.TEMPLATES), -1)
    # The tower is causal and pools at the end of the text: columns behind the longest text change nothing.
    tokens = tokens[..., : int((tokens != tokens[0, 0, -1]).any((0, 1)).nonzero()[0].max()) + 2]

    geometry = model_config(settings, vocab_size=words.vocab_size, eos=words.eos_token_id, bos=words.bos_token_id)
    default = Preprocessing(settings.image_size, OPENAI_MEAN, OPENAI_STD)
    preprocessing = before.preprocessing if before else default
    model = clip.CLIP(geometry, unroll=settings.layers)
    key = jax.random.key(config.seed)
    blank = jnp.zeros((1, settings.image_size, settings.image_size, 3))
    params = before.params if before else model.init(key, blank, jnp.asarray(tokens[:1, 0]))["params"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, settings.warmup_steps, settings.steps)
    tx = optim.adamw(schedule, weight_decay=settings.weight_decay)
    state = place_state(init_state(params, tx), placement)  # where a restored one goes, too
    made_by = config_hash(config)
    state, notes = checkpoints.restore_latest(workdir / "checkpoints", state, config_hash=made_by)
    step_fn = make_step(model, tx, preprocessing, placement)
    origin, facts = {"seed": config.seed, "config_hash": made_by}, {"data": made_from, "warnings": left_out}
    journal = Journal(workdir / "results.jsonl", origin, facts, started)
    journal.track(config)
    warn(left_out)
    start = int(state.step)
    batches = mixture.mixed_batches(sources, rows, vocabulary, seed=config.seed, start_batch=start)

    def step(state: TrainState, batch: mixture.MixedRows) -> tuple[TrainState, dict[str, jax.Array]]:
        texts = tokens[batch.phrase, batch.template]
        rows = placement.batch((batch.images, batch.mirrored, texts, batch.positives))
        state, loss = step_fn(state, key, *rows)
        return state, {"loss": loss}

    with (
        progress.stage(stage_of(Pretrain), settings.steps),
        checkpoints.Writer(workdir / "checkpoints", config_hash=made_by, keep=None) as writer,
        interrupts.deferred(),  # what was trained is kept, whenever the process is asked to end
    ):
        progress.resumed(start)

        def on_checkpoint(state: TrainState, unlogged: Unlogged) -> None:
            writer.save(state, step=int(state.step), notes={"unlogged": unlogged})

        state = train(
            step,
            state,
            batches,
            num_steps=settings.steps,
            log_every=settings.log_every,
            on_log=training_log(journal, Pretrain, schedule),
            checkpoint_every=settings.checkpoint_every,
            checkpoint_seconds=settings.checkpoint_seconds,
            on_checkpoint=on_checkpoint,
            unlogged=notes.get("unlogged", ()),
            advice="Lower config.pretrain.learning_rate.",
        )
        if start < settings.steps:
            on_checkpoint(state, ())
    with progress.stage("save"):
        model_files = geometry, state.trained, words, preprocessing
        save_pretrained(kept := workdir / "model", *model_files, dtype=jnp.float16, overwrite=True)
    minutes = (time.monotonic() - started) / 60
    write_report(workdir)
    print(f"Pre-trained {settings.steps} steps, {settings.steps - start} of them now in {minutes:.1f} minutes: {kept}")


def _placement(config: ConfigDict) -> parallel.Placement:
    """Whole parameters on each device, which divide the rows of a batch.

    Raises:
        ValueError: more devices than there are, or a batch that they do not divide.
    """
    devices, rows = parallel.local_devices(config.devices), config.pretrain.batch_size
    if rows % len(devices):
        fewer = max(count for count in range(1, len(devices)) if rows % count == 0)
        raise ValueError(
            f"pretrain.batch_size is {rows}, which {len(devices)} devices do not divide. Choose a multiple of "
            f"{len(devices)}, or --config.devices={fewer}."
        )
    return placed(config, rule=DIVIDED, local=True)


def _sha256(model: models.LoadedClip) -> str:
    return f"{model.image_sha256[:16]} {model.text_sha256[:16]}"


def _learnt_tokenizer(sentences: Sequence[str], settings: ConfigDict) -> tokenizer.ClipTokenizer:
    return tokenizer.train_bpe(sentences, vocab_size=settings.vocab_size, context_length=settings.context_length)


def _initial_model(settings: ConfigDict) -> models.LoadedClip:
    """The model that training goes on from, which has to have the geometry that the config describes.

    Raises:
        FileNotFoundError, ValueError: as `models.load`; or a field has another value, and is named.
    """
    model = models.load(settings.initial_model)
    words = model.tokenizer
    wanted = model_config(settings, vocab_size=words.vocab_size, eos=words.eos_token_id, bos=words.bos_token_id)
    for tower in ("vision", "text"):
        asked, given = (dataclasses.asdict(getattr(config, tower)) for config in (wanted, model.config))
        for field, value in asked.items():
            if given[field] != value:
                raise ValueError(
                    f"pretrain.initial_model {model.name} has {field} {given[field]!r} in its {tower} tower, and the "
                    f"config describes {value!r}. Give the pretrain fields that it was made with."
                )
    return model


def model_config(settings: ConfigDict, *, vocab_size: int, bos: int, eos: int) -> clip.ClipConfig:
    """The geometry that `config.pretrain` describes."""
    return clip.ClipConfig(
        vision=clip.VisionConfig(
            hidden_size=settings.width,
            intermediate_size=4 * settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            image_size=settings.image_size,
            patch_size=settings.patch_size,
            projection_dim=settings.embed_dim,
        ),
        text=clip.TextConfig(
            hidden_size=settings.text_width,
            intermediate_size=4 * settings.text_width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=settings.text_heads,
            vocab_size=vocab_size,
            max_position_embeddings=settings.context_length,
            bos_token_id=bos,
            eos_token_id=eos,
            projection_dim=settings.embed_dim,
        ),
    )


WORKFLOW = Workflow(
    run,
    stages=lambda config: (
        Stage("setup", "set up", work=0),
        Stage(stage_of(Pretrain), "pre-train", images=config.pretrain.batch_size),
        Stage("save", "save model", work=0),
    ),
    memory=Memory("pre-training", {"pretrain.batch_size": (" below {}", "takes fewer pairs a step")}),
)
