"""Where a named model or file lies on this machine: the bundled assets, a local path, or the Hugging Face cache.

A hub name is `owner/name`, with `@revision` a branch, tag or commit of it, and with a file between the two a single
file: `owner/name/digits.safetensors@v1`. Of several models in one file `#model_ema` chooses, at the end of any name,
a path's too. `HF_HUB_OFFLINE`, `HF_HOME` and `HF_ENDPOINT` mean what they mean elsewhere.
"""

from __future__ import annotations

import importlib.resources
import os
import re
from pathlib import Path
from typing import NamedTuple

from tajax.models import layout
from tajax.rules import nearest

__all__ = ["BUNDLED", "HubName", "commit_of", "hub_name", "locate", "reason", "split_choice"]

BUNDLED = {"tiny": "tiny-clip"}
"""Names of the models inside the package, and their directories under `tajax/assets`."""

_IN_TURN = (
    (*layout.WEIGHTS[:2], "model-*-of-*.safetensors"),
    layout.WEIGHTS[2:],
    (*layout.PICKLED_WEIGHTS[:2], "pytorch_model-*-of-*.bin"),
    layout.PICKLED_WEIGHTS[2:],
    *((name,) for name in layout.ADAPTER_WEIGHTS),
)
"""Patterns of weights. Those of the first that a repository has are fetched, so pickles only where nothing else is."""
_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


class HubName(NamedTuple):
    """What a hub name says.

    Attributes:
        repo_id: `owner/name`.
        file: A path inside the repository; None for all of it.
        revision: A branch, tag or commit; None for the repository's main branch.
    """

    repo_id: str
    file: str | None = None
    revision: str | None = None


def hub_name(name: str) -> HubName | None:
    """A hub name taken apart; None if a text has not the form of one. Whether it exists is not asked.

    Example:
        >>> hub_name("openai/clip-vit-base-patch32@3d74acf")
        HubName(repo_id='openai/clip-vit-base-patch32', file=None, revision='3d74acf')
        >>> hub_name("owner/vectors/b32/digits.safetensors")
        HubName(repo_id='owner/vectors', file='b32/digits.safetensors', revision=None)
        >>> hub_name("../clip") is None and hub_name("owner/vectors/../digits.safetensors") is None
        True
    """
    path, at, revision = name.partition("@")
    parts = path.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and "\\" not in path and "\0" not in name
    if len(parts) < 2 or not plain or path.startswith((".", "~")) or (at and not revision):
        return None
    if len(parts) > 2 and (not path.endswith(_FILES) or re.search(r"[*?\[\]]", path)):  # no pattern, one file
        return None
    return HubName("/".join(parts[:2]), "/".join(parts[2:]) or None, revision or None)


def split_choice(name_or_path: str | Path) -> tuple[str | Path, str | None]:
    """A name or path, and which of several models in its file is meant: what follows the last `#`, None without one.

    A path that exists as it is spelled wins over a choice.

    Example:
        >>> split_choice("owner/clip/epoch_9.pt@v1#model_ema"), split_choice("owner/clip")
        (('owner/clip/epoch_9.pt@v1', 'model_ema'), ('owner/clip', None))
    """
    text = str(name_or_path)
    place, mark, which = text.rpartition("#")
    if not mark or os.path.lexists(os.path.expanduser(text)):
        return name_or_path, None
    return (Path(place) if isinstance(name_or_path, Path) else place), which


def locate(name_or_path: str | Path, *, revision: str | None = None) -> Path:
    """The directory or file of weights behind a bundled name, a path or a hub name.

    A path that exists wins over a hub name of the same spelling. Of a hub repository only the configuration,
    tokenizer and safetensors files are fetched (PyTorch's weights where it has no safetensors), or of the weights the
    file that is named; `HF_HUB_OFFLINE` and the cache are respected. Without network a revision that is in the cache
    is used as it is.

    Args:
        name_or_path: `"tiny"`, a path, or a hub name such as `openai/clip-vit-base-patch32`, with a revision
            `openai/clip-vit-base-patch32@3d74acf`, of one file `owner/vectors/digits.safetensors`.
        revision: Branch, tag or commit of a hub repository, in place of `@revision`.

    Raises:
        FileNotFoundError: no such path, a link to nothing, or a hub name that cannot be reached; says what to download,
            and where to.
        ValueError: the name is neither bundled, nor a path, nor shaped like a hub name; or two revisions.
    """
    name = str(name_or_path)
    if name in BUNDLED and not isinstance(name_or_path, Path):
        directory = Path(str(importlib.resources.files("tajax") / "assets" / BUNDLED[name]))
        if not directory.is_dir():
            raise FileNotFoundError(f"The bundled model {name!r} is not installed: {directory} is missing.")
        return directory
    path = Path(os.path.expanduser(name_or_path))
    if path.is_dir() or layout.is_there(path):
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for hub ids; {name!r} is a local path.")
        return path
    hub = None if isinstance(name_or_path, Path) else hub_name(name)
    if hub is None or (hub.file and path.parent.is_dir()):
        raise _no_model(name_or_path)
    if revision is not None and hub.revision not in (None, revision):
        raise ValueError(
            f"{name!r} names the revision {hub.revision!r}, and revision={revision!r} is another: give one."
        )
    return _download(hub._replace(revision=hub.revision or revision))


def check_name(name: str) -> None:
    """Raises as `locate` if a name is neither bundled, nor a path that exists, nor formed like a hub name."""
    name = str(split_choice(name)[0])
    if name not in BUNDLED and not os.path.lexists(os.path.expanduser(name)) and hub_name(name) is None:
        raise _no_model(name)


def _no_model(name_or_path: str | Path) -> Exception:
    name = str(name_or_path)
    error = FileNotFoundError if "/" in name or isinstance(name_or_path, Path) else ValueError
    return error(
        f"No model {name!r}{nearest(name, BUNDLED, '. Did you mean ', count=1, end='?', quote=True) or '.'} It is no "
        f"bundled name ({', '.join(map(repr, BUNDLED))}), no such path exists, and a hub id has the form 'owner/name' "
        "or 'owner/name@revision', such as 'openai/clip-vit-base-patch32'; of one file 'owner/name/file.safetensors'."
    )


def commit_of(path: Path) -> str | None:
    """The commit that a directory or file of the Hugging Face cache belongs to; None of any other path.

    Example:
        >>> commit_of(Path("hub/models--owner--clip/snapshots/3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268/config.json"))
        '3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268'
        >>> commit_of(Path("runs/attn_tiny/merged")) is None
        True
    """
    parts = path.absolute().parts
    for repository, snapshots, commit in zip(parts, parts[1:], parts[2:], strict=False):
        if repository.startswith("models--") and snapshots == "snapshots":
            return commit
    return None


def reason(error: BaseException) -> str:
    """What went wrong between here and the hub, in one line that says what to do about it."""
    from huggingface_hub import constants, errors

    while getattr(error, "response", None) is None and error.__cause__ is not None:
        error = error.__cause__  # an answer may hide behind "not in the cache either"
    said = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled):
        advice = "HF_HUB_OFFLINE is set: unset it where there is a network"
    elif isinstance(error, errors.GatedRepoError):
        advice = "the repository is gated: accept its terms on its page, and log in with `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        advice = "the repository has no such revision"
    elif status in (401, 403):
        advice = "no access, or no such repository: log in with `hf auth login`, or set HF_TOKEN"
    elif status == 404:
        advice = "no such repository or file, or a private one that needs `hf auth login`"
    else:
        advice = f"the hub answered {status}" if status else f"{constants.ENDPOINT} cannot be reached"
    return f"{advice} ({said})"


def _download(hub: HubName) -> Path:
    """Fetch what is needed of a hub repository: a file, or Hugging Face's weights, or open_clip's, or pickled ones."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(snapshot_download(hub.repo_id, revision=hub.revision, allow_patterns=list(beside + patterns)))

    above = hub.file.rpartition("/")[:2] if hub.file else ()
    beside = tuple("".join((*above, name)) for name in layout.DESCRIPTIONS)
    at = f" --revision {hub.revision}" if hub.revision else ""
    try:
        for patterns in ((hub.file,),) if hub.file else _IN_TURN:
            directory = fetch(patterns)
            if any(next(directory.glob(pattern), None) for pattern in patterns):
                break
    except HFValidationError as error:
        raise ValueError(f"{hub.repo_id!r} is no path that exists, and cannot be a hub id: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        what = repr(hub.file) if hub.file else "'*.json' '*.txt' '*.safetensors'"
        target, named = hub.repo_id.rsplit("/", 1)[-1], "/".join(filter(None, (hub.repo_id, hub.file)))
        raise FileNotFoundError(
            f"No path here is {named!r}. Cannot fetch {hub.repo_id!r} from the Hugging Face hub, and it is not in the "
            f"local cache: {reason(error)}. Where there is a network, run\n    hf download {hub.repo_id}{at} "
            f"--include {what} --local-dir {target}\nthen copy {target}/ here and pass its path in place of the id."
        ) from error
    if hub.file is None:
        return directory
    if not (directory / hub.file).is_file():
        held = [str(f.relative_to(directory)) for f in directory.rglob("*") if f.suffix in _FILES]
        raise FileNotFoundError(
            f"{hub.repo_id!r} at commit {commit_of(directory)} has no {hub.file!r}, or it is not in the local cache. "
            f"Weights of it here: {', '.join(sorted(held)) or 'none'}."
        )
    return directory / hub.file
