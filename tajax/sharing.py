"""Task vectors and merged models on the Hugging Face hub, with a model card: `python -m tajax.sharing --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tajax import report, results, text_files, vector_files
from tajax.models import hub, layout
from tajax.models.convert import few
from tajax.report.accuracy import accuracy_tables
from tajax.types import JsonObject

__all__ = ["files_to_push", "main", "model_card", "push_to_hub"]

MERGE_RECORD = "merge.json"
"""Beside a model that `tajax.merge` made: what was merged, and how."""

_MERGE_FIELDS = {"base", "family", "method", "options", "scaling_coef", "seed", "linearized", "sources", "length"}
_MODEL_SUFFIXES = (".json", ".txt", ".safetensors")
_EXAMPLES = """\
Log in once with `hf auth login`, or set HF_TOKEN. What is pushed is one commit: all of it or nothing.

examples:
  python -m tajax.sharing runs/attn_tiny OWNER/NAME
      the task vectors of a run, one file a task
  python -m tajax.sharing runs/attn_tiny/merged OWNER/NAME --private --license mit
      its merged model, which tajax.encoders.load("OWNER/NAME") and transformers open

exit codes: 0 done; 2 nothing was pushed, or a wrong option.
"""
Vectors = Mapping[str, Mapping[str, object]]  # metadata by name of file


def push_to_hub(
    path: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    license: str | None = None,
) -> str:
    """Puts task vectors or a model into a repository of the hub, with a card; the repository is made if absent.

    Args:
        path: the directory of a run (its task vectors), a task-vector file, or a model's directory.
        repo_id: `owner/name`.
        private: of a repository that is made now; None is the owner's default.
        token: None takes HF_TOKEN or what `hf auth login` keeps.
        revision: a branch to commit to, made if absent; None is the main one.
        license: a name of the hub's list, such as `mit`, for the card. A vector's right of use depends on its base's.

    Returns:
        `owner/name@commit`, which `models.load` takes, and with a file before the `@` also `load_task_vector`.

    Raises:
        FileNotFoundError: nothing to push there; or no such repository.
        ValueError: a file is damaged, the vectors are of several bases, or `repo_id` has not the form of one. Nothing
            was sent in this case.
        PermissionError: no token, or one without the right to write there.
        ConnectionError: no network, HF_HUB_OFFLINE, or a hub that fails. Nothing was committed.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HTTPError

    path = Path(path).expanduser()
    name = hub.hub_name(repo_id)
    if name is None or name.file or name.revision:
        raise ValueError(f"{repo_id!r} is no name of a repository: it has the form 'owner/name'.")
    files = files_to_push(path)
    card = model_card(path, repo_id, license=license)
    operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
    operations.append(CommitOperationAdd("README.md", card.encode()))
    api = HfApi(token=token, library_name="tajax")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        message = f"Add {few(files)} with tajax"
        commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    except (HTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        kinds: dict[int | None, type[OSError]] = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError}
        kind = kinds.get(status, ConnectionError)
        raise kind(f"Cannot push {path} to {repo_id!r}, nothing was committed: {hub.reason(error)}.") from error
    return f"{repo_id}@{commit.oid}"


def files_to_push(path: Path) -> dict[str, Path]:
    """The files of a run, of a vector or of a model by their names in the repository.

    Raises:
        FileNotFoundError: there is nothing that can be pushed.
        ValueError: a task vector is damaged, or they are of several bases.
    """
    vectors = _vector_paths(path)
    if vectors:
        bases = {vector_files.read_metadata(file).get("base_sha256") for file in vectors}
        if len(bases) > 1:
            raise ValueError(f"the task vectors of {path} were made from {len(bases)} bases: push those of one.")
        return {file.name: file for file in vectors}
    if any(layout.is_there(path / name) for name in layout.CONFIGS) and any(path.glob("*.safetensors")):
        files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix in _MODEL_SUFFIXES)
        return {file.relative_to(path).as_posix(): file for file in files}  # a sentence encoder has a folder, 1_Pooling
    raise FileNotFoundError(
        f"nothing to push in {path}: neither a run with task_vectors/*.safetensors, nor a task-vector file, nor a "
        f"model ({' or '.join(layout.CONFIGS)} with safetensors)."
    )


def model_card(path: Path, repo_id: str, *, license: str | None = None) -> str:
    """The README.md that goes with what is pushed: front matter, how to load it, what it is, the run's accuracies.

    Args:
        path: as of `push_to_hub`; the records are those of the run that it is, or lies in.
        repo_id: where it goes.
        license: for the front matter.
    """
    from huggingface_hub import ModelCard, ModelCardData

    vectors = {file.name: vector_files.read_metadata(file) for file in _vector_paths(path)}
    records = _records(path)
    first = next(iter(vectors.values()), records[0] if records else {})
    merged = _merge_record(path)
    base_name = merged["base"]["name"] if merged else str(first.get("model", ""))
    base = hub.hub_name(str(hub.split_choice(base_name)[0]))
    regime = str(first.get("regime", "")).replace("_", "-")
    family = str(merged.get("family") or first.get("family", "clip"))
    data = ModelCardData(
        base_model=base.repo_id if base else None,
        base_model_relation=None if vectors or not base else "merge",
        library_name="tajax",
        license=license,
        tags=[family, "task-arithmetic", "task-vector" if vectors else "merge", *filter(None, [regime])],
    )
    if merged:
        body = _about_merged(repo_id, merged)
    else:
        body = _about_vectors(vectors, repo_id) if vectors else _about_model(repo_id, records)
    if not license:
        body.append("No licence is stated here; that of the base model applies to what was made from it.")
    if tables := [t for group in results.by_config(records).values() for t in accuracy_tables(group)]:
        body.append(report.markdown(tables))
    return (
        str(
            ModelCard(
                "\n".join(["---", data.to_yaml(), "---", f"# {repo_id.rpartition('/')[2]}", "", "\n\n".join(body)])
            )
        ).rstrip()
        + "\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Pushes one thing; returns the exit code: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m tajax.sharing",
        description="Puts task vectors or a model on the Hugging Face hub, with a card that says what they are.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a run, a task-vector file, or a model's directory")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="the repository; it is made if absent")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository a private one")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to, made if absent")
    parser.add_argument("--license", metavar="NAME", help="a name of the hub's list, such as mit")
    options = parser.parse_args(argv)
    try:
        print(push_to_hub(**vars(options)))
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _vector_paths(path: Path) -> list[Path]:
    if path.is_file():
        vector_files.read_metadata(path)  # or an error that says what it is instead
        return [path]
    return sorted((path / "task_vectors").glob("*.safetensors"))


def _records(path: Path) -> list[results.Record]:
    for directory in (path, *path.parents[:2]) if path.is_dir() else path.parents[:2]:
        if records := results.read(directory / "results.jsonl"):
            return records
    return []


def _about_vectors(vectors: Vectors, repo_id: str) -> list[str]:
    first_name, first = next(iter(vectors.items()))
    torch = sorted({str(fields.get("naming", "tajax")) for fields in vectors.values()} - {"tajax"})
    revision = f"@{first['revision']}" if "revision" in first else ""
    place, which = hub.split_choice(str(first.get("model", "")))
    model = str(place).partition("@")[0] + revision + (f"#{which}" if which else "")
    lines = [
        f"Task vectors τ = θ − θ₀ of the encoder of `{model}`, one a file. θ₀ + λτ is the fine-tuned model at "
        "λ = 1; add several, or subtract one to forget its task.",
        "\n".join(
            [
                "```python",
                "import jax",
                "import tajax",
                "from tajax import encoders, vector_files",
                "",
                f"encoder = encoders.load({_loaded(model, first.get('family'))})",
                "theta, base = encoder.params, encoder.identity.sha256",
                f'tau, _ = vector_files.load_task_vector("{repo_id}/{first_name}", theta, base_sha256=base)',
                "edited = tajax.apply_task_vector(theta, tau, scaling_coef=1.0)",
                "features = jax.jit(encoder.apply)(edited, inputs)",
                "```",
            ]
        ),
    ]
    if torch:
        lines.append(
            f"The tensors carry the names of {' and '.join(torch)}: without tajax, "
            "`state_dict[name] += scaling_coef * tau[name]` for each tensor of the file."
        )
    if any(fields.get("linearized") for fields in vectors.values()):
        through = any(fields.get("through_norm") for fields in vectors.values())
        encoder = "through_norm(encoder)" if through else "encoder"
        lines.append(
            "They were trained in the first-order expansion around θ₀ and are meant for it: "
            f"`tajax.linearize({encoder}.apply, theta)(edited, inputs)`"
            + (" (`tajax.encoders.encoder`), whose features are not normalised again." if through else ".")
        )
    columns = ("task", "regime", "trainable", "layers", "seed", "dtype", "config_hash", "tajax_version")
    rows = [(name, *(_cell(fields.get(column)) for column in columns)) for name, fields in vectors.items()]
    note = f"SHA-256 of the base's encoder, which is checked: `{first.get('base_sha256')}`"
    lines.append(report.markdown([report.Table("Files", ("file", *columns), tuple(rows), (note,))]))
    return lines


def _about_model(repo_id: str, records: Sequence[results.Record]) -> list[str]:
    record = records[0] if records else {}
    method = next((r["method"] for r in records if "method" in r), "task_arithmetic")
    formulas = {
        "task_arithmetic": "θ₀ + α Σ τ over tasks",
        "weight_average": "the average of the fine-tuned models",
    }
    arguments = _loaded(repo_id, record.get("family"))
    formula = formulas.get(method, f"θ₀ + ατ, with τ merged by {method} from the vectors of all tasks,")
    origin = f", from {record['model']} by {record['regime']} fine-tuning" if "regime" in record else ""
    lines = [
        f"A model made by task arithmetic{origin}: {formula} in its encoder, all else untouched.",
        f"```python\nfrom tajax import encoders\n\nencoder = encoders.load({arguments})\n```",
    ]
    if str(record.get("regime", "")).startswith("linear") or record.get("regime") == "posthoc":
        lines.append(
            "The accuracies below are those of the first-order expansion around θ₀ at these parameters; the ordinary "
            "forward pass is another function."
        )
    return lines


def _merge_record(path: Path) -> JsonObject:
    """What `tajax.merge` wrote beside a model; empty where it made none."""
    file = path / MERGE_RECORD
    if not file.is_file():
        return {}
    try:
        found = json.loads(text_files.read(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no JSON: {error}. Remove it, or merge anew.") from error
    missing = _MERGE_FIELDS - set(found) if isinstance(found, dict) else _MERGE_FIELDS
    if missing:
        raise ValueError(f"{file} is no record of tajax.merge: {', '.join(sorted(missing))} missing. Remove it.")
    return found


def _about_merged(repo_id: str, record: JsonObject) -> list[str]:
    options = _listed(record["options"])
    before = "".join(f"`{name}`{_listed(given)}, then " for name, given in record.get("prepare", {}).items())
    coef = "" if record["scaling_coef"] is None else f", λ = {record['scaling_coef']:g}"
    seed = "" if record["seed"] is None else f", seed {record['seed']}"
    base, sources = record["base"], record["sources"]
    lines = [
        f"{len(sources)} encoders fine-tuned from `{base['name']}`, merged into one by "
        f"{before}`{record['method']}`{options}{coef}{seed} (tajax); all else is the base's, untouched. "
        f"The merged encoder lies {record['length']:.4f} ‖θ₀‖ from it. Nothing was tuned or measured on data.",
        f"```python\nfrom tajax import encoders\n\nencoder = encoders.load({_loaded(repo_id, record['family'])})\n```",
    ]
    if record["linearized"]:
        lines.append("These are parameters of the first-order expansion around the base, and meant for it.")
    rows = tuple((f"`{s['place']}`", str(s["format"]), f"{s['length']:.4f}") for s in sources)
    note = f"SHA-256 of the base's encoder: `{base['sha256']}`; revision {base['revision'] or 'unknown'}"
    return [*lines, report.markdown([report.Table("Merged", ("from", "format", "‖τ‖/‖θ₀‖"), rows, (note,))])]


def _listed(options: JsonObject) -> str:
    return "".join(f", {name} {_cell(value)}" for name, value in options.items())


def _loaded(name: str, family: object) -> str:
    """The arguments that `encoders.load` takes; vectors and runs that say no family are of its default."""
    return json.dumps(name) + (f", family={json.dumps(family)}" if family else "")


def _cell(value: object) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    sys.exit(main())
