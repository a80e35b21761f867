"""What is measured: a model, task vectors, image files that both sides really read, and frozen heads."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import procedures
import reference
import torch
from PIL import Image
from steps import GEOMETRIES, encoder, load_clip

from tajax import data, models, trees, vector_files
from tajax.types import ApplyFn, Batch, Head, Mask, Params

HERE = Path(__file__).resolve().parent

ALPHAS = np.linspace(0, 1, 21)  # the papers' grid
TASKS = ("mnist", "dtd10")  # files of --data; the second is for the disentanglement map
PIXELS = 256  # side of the JPEG files, before the model's own resize
TRAIN_IMAGES = 4  # of a class, for the head
BATCH_SIZE = 128  # of an evaluation, as in the papers' code
RELATIVE_NORM = 0.05  # ‖τ‖ / ‖θ₀‖ of a drawn vector, leaf by leaf
TEMPERATURE = 100.0  # of a head, CLIP's

IMAGES = {"tiny": 256}  # of an evaluation, unless --images says otherwise; of every other model 24


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model, and the folders of images to run it on.

    Attributes:
        clip: The model; of `GEOMETRIES` the image tower alone.
        folders: One a task of `TASKS`, in the layout that tajax reads as a task.
        heads: One a task.
        images: Test images of each.
        vectors: A run that has task vectors, or None to draw them.
    """

    clip: models.LoadedClip
    folders: tuple[Path, ...]
    heads: tuple[Head, ...]
    images: int
    vectors: Path | None

    @property
    def pretrained(self) -> Params:
        """θ₀, the parameters of the image tower."""
        return self.clip.params["image"]

    @functools.cached_property
    def encode(self) -> ApplyFn:
        """`(image tower's parameters, uint8 images) -> features`."""
        return encoder(self.clip)

    @property
    def batch_size(self) -> int:
        """Of an evaluation; no more than there are images, so that nothing is padded needlessly."""
        return min(self.images, BATCH_SIZE)

    def read(self, task: int = 0) -> data.Batches:
        """The test images of a task, opened and decoded anew."""
        opened, preprocessing = data.open_task(self.folders[task]), self.clip.preprocessing
        return data.load(opened, "test", batch_size=self.batch_size, preprocessing=preprocessing)

    def batches(self, task: int = 0) -> list[Batch]:
        """The test images in memory."""
        return list(self.read(task))

    def reference_reader(self, task: int = 0) -> procedures.ReadImages:
        """The reference's passes over the same files in the same order; each reads and decodes them."""
        files = data.open_task(self.folders[task]).split("test").paths
        return procedures.read_files(files, self.clip.preprocessing, batch_size=self.batch_size)

    def reference_head(self, task: int = 0) -> torch.Tensor:
        """The same head for the reference, `[E, K]`."""
        return torch.tensor(np.asarray(self.heads[task].weights))

    def reference_model(self, *, maths_attention: bool = False) -> reference.ImageTower:
        """The reference at θ₀."""
        return reference.image_tower(self.clip.config.vision, self.pretrained, maths_attention=maths_attention)

    def task_vectors(self, count: int, *, rule: str = "all") -> list[Params]:
        """The first `count` vectors of the given run, else drawn ones; zero outside the leaves of `rule`."""
        return task_vectors(self.pretrained, count, directory=self.vectors, rule=rule)


def task_vectors(pretrained: Params, count: int, *, directory: Path | None, rule: str = "all") -> list[Params]:
    """`count` task vectors that are zero outside the leaves of `rule`.

    Args:
        pretrained: θ₀.
        count: how many.
        directory: a run, the first of whose task vectors are taken; None draws them from the seeds 0, 1, …
        rule: as of `tajax.param_mask`.

    Raises:
        ValueError: the directory holds fewer.
    """
    mask = trees.param_mask(pretrained, rule)
    if directory is None:
        return [drawn_task_vector(pretrained, mask, seed) for seed in range(count)]
    paths = sorted(directory.glob("task_vectors/*.safetensors"))
    if len(paths) < count:
        raise ValueError(f"{directory}/task_vectors holds {len(paths)} *.safetensors; {count} task vectors are needed")
    taus = [vector_files.load_task_vector(path, pretrained)[0] for path in paths[:count]]
    return [jax.tree.map(lambda leaf, moved: leaf if moved else jnp.zeros_like(leaf), tau, mask) for tau in taus]


def drawn_task_vector(pretrained: Params, mask: Mask, seed: int) -> Params:
    """Normal noise of `RELATIVE_NORM` the size of each leaf in the mask (of 0.02 where the leaf is zero)."""
    generator = np.random.default_rng(seed)

    def draw(leaf, moved):
        if not moved:
            return jnp.zeros_like(leaf)
        deviation = RELATIVE_NORM * (float(jnp.sqrt(jnp.mean(leaf**2))) or 0.02)
        return jnp.asarray(deviation * generator.standard_normal(leaf.shape, np.float32))

    return jax.tree.map(draw, pretrained, mask)


def class_mean_head(clip: models.LoadedClip, folder: Path) -> Head:
    """The means of the classes' pre-trained features, about their common mean, from the training images of a folder.

    Not the zero-shot head: drawn weights know no text, and on 32-pixel photographs the bundled model's is at chance.
    """
    batches = data.load(data.open_task(folder), "train", batch_size=16, preprocessing=clip.preprocessing)
    encode = jax.jit(encoder(dataclasses.replace(clip, unroll=1)))  # compiles quicker, and is used little
    rows = [(np.asarray(encode(clip.params["image"], b.inputs))[b.mask], b.label[b.mask]) for b in batches]
    features, labels = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([features[labels == label].mean(0) for label in range(labels.max() + 1)]) - features.mean(0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return Head(jnp.asarray(TEMPERATURE * means.T), jnp.int32(len(means)))


def write_images(archive: Path, folder: Path, *, images: int) -> None:
    """Some images of an .npz file as JPEG files `split/class/number.jpg` of `PIXELS` a side."""
    with np.load(archive) as arrays:
        for split in ("train", "test"):
            pixels, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            rows = np.random.default_rng(0).permutation(len(labels))
            if split == "test":
                if images > len(rows):
                    raise ValueError(f"{archive} has {len(rows)} test images; {images} were asked for")
                rows = rows[:images]
            else:
                rows = np.concatenate([rows[labels[rows] == label][:TRAIN_IMAGES] for label in np.unique(labels)])
            for row in rows:
                path = folder / split / f"{labels[row]:03}" / f"{row:05}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(pixels[row]).convert("RGB")
                image.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).save(path, quality=95)


def argument_parser(doc: str, *, repeats: int = 3, model: str = "tiny") -> argparse.ArgumentParser:
    """The flags that every script has; `repeats` and `model` are its defaults."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--model", default=model, help=f"{', '.join(GEOMETRIES)} (drawn weights), or as `models.load`")
    parser.add_argument("--images", type=int, help="test images of a task; default: 256 of tiny, else 24")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed runs of each side")
    parser.add_argument("--task-vectors", type=Path, help="a run whose task vectors to use; default: drawn from seeds")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help=f"folder of {'.npz, '.join(TASKS)}.npz"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder for the JSON")
    return parser


@contextlib.contextmanager
def prepared(options: argparse.Namespace, *, tasks: int = 1) -> Iterator[Workload]:
    """The workload that the flags ask for, with the first tasks of `TASKS`; its image files are gone afterwards."""
    reference.use_all_cores()
    clip = load_clip(options.model)
    images = options.images or IMAGES.get(options.model, 24)
    with tempfile.TemporaryDirectory() as directory:
        folders = tuple(Path(directory, name) for name in TASKS[:tasks])
        for folder in folders:
            write_images(options.data / f"{folder.name}.npz", folder, images=images)
        heads = tuple(class_mean_head(clip, folder) for folder in folders)
        yield Workload(clip, folders, heads, images, options.task_vectors)
