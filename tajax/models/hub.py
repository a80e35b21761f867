"""Where a named model lies on this machine: the bundled assets, a local path, or the Hugging Face cache."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

__all__ = ["BUNDLED", "locate"]

BUNDLED = {"tiny": "tiny-clip"}
"""Names of the models inside the package, and their directories under `tajax/assets`."""

_COMMON = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
_COMMON += ("special_tokens_map.json", "vocab.json", "merges.txt", "open_clip_config.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors",)


def locate(name_or_path: str | Path, *, revision: str | None = None) -> Path:
    """The directory or `.safetensors` file behind a bundled name, a path or a hub id.

    A path that exists wins over a hub id of the same spelling. Of a hub repository only the configuration,
    tokenizer and safetensors files are fetched; `HF_HUB_OFFLINE` and the cache are respected.

    Args:
        name_or_path: `"tiny"`, a path, or a hub id such as `openai/clip-vit-base-patch32`.
        revision: Branch, tag or commit of a hub repository; only for hub ids.

    Raises:
        FileNotFoundError: no such path, or a hub id that cannot be reached; says what to download, and where
            to.
        ValueError: the name is neither bundled, nor a path, nor shaped like a hub id.
    """
    name = str(name_or_path)
    if name in BUNDLED and not isinstance(name_or_path, Path):
        directory = Path(str(importlib.resources.files("tajax") / "assets" / BUNDLED[name]))
        if not directory.is_dir():
            raise FileNotFoundError(f"The bundled model {name!r} is not installed: {directory} is missing.")
        return directory
    path = Path(name_or_path).expanduser()
    if path.exists():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for hub ids; {name!r} is a local path.")
        return path
    parts = name.split("/")
    if isinstance(name_or_path, Path) or len(parts) != 2 or not all(parts) or name.startswith((".", "~")):
        choices = ", ".join(repr(bundled) for bundled in BUNDLED)
        error = FileNotFoundError if "/" in name or isinstance(name_or_path, Path) else ValueError
        raise error(
            f"No model {name!r}: it is not a bundled name ({choices}), no such path exists, and a hub id has the "
            "form 'owner/name', such as 'openai/clip-vit-base-patch32'."
        )
    return _download(name, revision)


def _download(repo_id: str, revision: str | None) -> Path:
    """Fetch what is needed of a hub repository: Hugging Face's weights, or open_clip's where it has none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))

    try:
        directory = fetch(_COMMON + _WEIGHTS)
        if not any(next(directory.glob(pattern), None) for pattern in _WEIGHTS):
            directory = fetch(_COMMON + _OPEN_CLIP_WEIGHTS)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no path that exists, and cannot be a hub id: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
        at, target = f" --revision {revision}" if revision else "", repo_id.rsplit("/", 1)[-1]
        raise FileNotFoundError(
            f"Cannot fetch {repo_id!r} from the Hugging Face hub, and it is not in the local cache ({reason}). Where "
            f"there is a network, run\n    hf download {repo_id}{at} --include '*.json' '*.txt' '*.safetensors' "
            f"--local-dir {target}\nthen copy {target}/ here and pass its path in place of the id."
        ) from error
    return directory
