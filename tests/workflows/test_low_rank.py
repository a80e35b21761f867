"""Whole runs of the low-rank regimes: their vectors, the adapters beside them, and those of PEFT as checkpoints."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tajax import encoders, results, trees, vector_files
from tajax.models.layout import ADAPTER
from tests.workflows import members
from tests.workflows.conftest import TASKS, save_clip

RANK = 3
FIELDS = {"workflow": "single_task", "finetune.rank": RANK, "finetune.alpha": 6.0}


@pytest.fixture(scope="module")
def trained(run, world):
    """`trained(regime, **fields)`: the directory of a run, made once, and its vectors as trees."""
    done = {}

    def trained(regime, **fields):
        key = json.dumps([regime, fields], default=str)
        if key not in done:
            workdir = world / f"low_rank_{len(done)}"
            finished = run(regime, workdir, **FIELDS | fields)
            assert finished.code == 0, finished.err
            pretrained = encoders.load(str(world / "clip")).params
            paths = [workdir / "task_vectors" / f"{task}.safetensors" for task in TASKS]
            done[key] = workdir, [vector_files.load_task_vector(path, pretrained)[0] for path in paths]
        return done[key]

    return trained


@pytest.mark.parametrize("regime", ["lora", "linear_lora"])
def test_vectors_are_of_the_rank_and_of_kernels_alone(trained, regime):
    (workdir, taus), full = trained(regime), 0
    for tau in taus:
        for path, leaf in trees.flatten_paths(tau).items():
            assert np.any(leaf) == ("/attn/" in path and path.endswith("kernel")), path
            for layer in np.asarray(leaf, np.float64) if np.any(leaf) else ():
                values = np.linalg.svd(layer, compute_uv=False)
                full += values[RANK - 1] > 1e-4
                assert values[0] > 1e-4 > 1e-6 > values[RANK]  # θ is rounded to float32, τ is a difference
    assert full > 0
    (about,) = results.find(results.read(workdir / "results.jsonl"), stage="run")
    sides = 16 + 16 if regime == "lora" else 16
    assert about["trained_factors"] == 2 * 4 * RANK * sides  # layers, kernels
    assert about["trained_parameters"] == 2 * 4 * 16 * 16
    page = (workdir / "report.md").read_text()
    assert f"{about['trained_factors']:,} numbers in factors of 2,048 of " in page


def test_vectors_of_the_tangent_space_share_their_columns(trained):
    """One A₀ for all tasks: [τ₁ τ₂] of a kernel is of its rank; not so in `lora`, whose A moves."""
    for regime in ("linear_lora", "lora"):
        _, taus = trained(regime)
        for layer in range(2):
            both = [np.asarray(tau["blocks"]["attn"]["value"]["kernel"][layer], np.float64) for tau in taus]
            values = np.linalg.svd(np.concatenate(both, axis=1), compute_uv=False)
            assert (values[RANK] < 1e-6) if regime == "linear_lora" else (values[RANK] > 1e-4), (regime, values)


def test_the_adapter_beside_a_vector_is_the_vector(run, trained, world, tmp_path):
    workdir, taus = trained("lora")
    encoder = encoders.load(str(world / "clip"))
    for task, tau in zip(TASKS, taus, strict=True):
        found = encoder.load_finetuned(str(workdir / "adapters" / task))
        assert (found.format, found.notes) == ("adapter", ())
        wanted = trees.flatten_paths(jax.tree.map(np.add, encoder.params, tau))
        for path, leaf in trees.flatten_paths(found.params).items():
            np.testing.assert_allclose(leaf, wanted[path], rtol=0, atol=1e-6, err_msg=path)  # entries of about 1
    again = run("standard", tmp_path / "run", workflow="single_task", checkpoints=(f"{workdir}/adapters/{{task}}",))
    assert again.code == 0, again.err
    first, second = (
        {
            (r["task"], r["split"]): r["top1"]
            for r in results.find(results.read(place / "results.jsonl"), stage="single_task")
        }
        for place in (workdir, tmp_path / "run")
    )
    assert first == second and len(first) == 4
    checkpoints = results.find(results.read(tmp_path / "run" / "results.jsonl"), stage="checkpoint")
    assert [record["format"] for record in checkpoints] == ["adapter"] * 2
    assert not (trained("linear_lora")[0] / "adapters").exists()  # PEFT would not know the tangent space


def test_some_layers_of_another_rule(trained):
    workdir, taus = trained("lora", trainable="linear_layers", layers=(1, 2))
    for tau in taus:
        for path, leaf in trees.flatten_paths(tau).items():
            adapted = path.endswith("kernel") and ("/attn/" in path or "/mlp/" in path)
            assert [bool(np.any(layer)) for layer in leaf] == [False, adapted] or not (adapted or np.any(leaf)), path
    names = load_file(workdir / "adapters" / "pets" / "adapter_model.safetensors")
    assert len(names) == 2 * 6 and all(".encoder.layers.1." in name for name in names)
    config = json.loads((workdir / "adapters" / "pets" / ADAPTER).read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, 6)


def test_what_cannot_be_trained_is_refused_before_a_run_is_replaced(run, trained):
    workdir, _ = trained("lora")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}
    for fields, message in (
        ({"trainable": "all"}, "low-rank factors are for dense kernels, and the trainable rule also names"),
        ({"trainable": "patch_embedding/kernel"}, "also names patch_embedding/kernel. Give one that names dense"),
        ({"finetune.rank": 17}, "finetune.rank is 17, but blocks/attn/key/kernel has kernels of (16, 16)"),
        ({"workflow": "ntk", "control": "c", "tasks": None}, "regime 'lora' trains other coordinates"),
    ):
        if fields.get("workflow") == "ntk":
            fields = fields | {
                "control": str(workdir.parent / "pets.npz"),
                "tasks": (str(workdir.parent / "tools.npz"),),
            }
        refused = run("lora", workdir, "--overwrite", **FIELDS | fields)
        assert refused.code == 2 and message in refused.err, refused.err
    assert before == {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_random_encoder_has_no_adapter(run, tmp_path):
    """PEFT would add it to the pre-trained one."""
    done = run("lora", tmp_path / "run", **FIELDS, initialization="random")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "task_vectors" / "pets.safetensors").exists()
    assert not (tmp_path / "run" / "adapters").exists()


@pytest.fixture(scope="module")
def home(tmp_path_factory, rng, programs):
    home = tmp_path_factory.mktemp("families")
    save_clip(home / "clip", rng(920))
    members.save_bert(home / "text", rng(921))
    members.save_vit(home / "vit", rng(922))
    members.save_texts(home / "tasks_text", rng(923))
    members.save_images(home / "tasks_images", rng(924))
    return home


@pytest.fixture(scope="module")
def peft():
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[parity]'")
    return pytest.importorskip("peft", reason="needs PEFT: pip install -e '.[parity]'")


def model_of(home, family):
    import transformers

    return (transformers.CLIPModel if family == "clip" else transformers.AutoModel).from_pretrained(home / family)


def weights(model, names, prefix=""):
    """The weights of modules by name, transposed as kernels are, float64."""
    modules = dict(model.named_modules())
    return {name: modules[prefix + name].weight.detach().double().numpy().T for name in names}


def kernels(encoder, params, naming):
    flat = trees.flatten_paths(params)
    found = {}
    for name, linear in naming.items():
        leaf = np.asarray(flat[linear.path], np.float64)
        layer = leaf if linear.layer is None else leaf[linear.layer]
        found[name] = layer[:, linear.columns(layer.shape[-1])]
    return found


@pytest.mark.parametrize("family", ["clip", "text", "vit"])
def test_peft_opens_what_is_written_and_merges_it_to_the_same_weights(run, home, peft, tmp_path, family):
    folder = home / ("tasks_text" if family == "text" else "tasks_images")
    fields = {"family": family, "model": home / family, "tasks": (str(folder / "animals.npz"),)}
    fields |= {"heads": "linear_probe" if family == "vit" else "zero_shot", "trainable": "linear_layers"}
    done = run("lora", tmp_path / "run", **FIELDS | fields)
    assert done.code == 0, done.err
    encoder = encoders.load(str(home / family), family=family)
    tau, _ = vector_files.load_task_vector(tmp_path / "run" / "task_vectors" / "animals.safetensors", encoder.params)
    naming = encoder.linears[0]
    before = weights(model_of(home, family), naming)
    adapted = peft.PeftModel.from_pretrained(model_of(home, family), tmp_path / "run" / "adapters" / "animals")
    after = weights(adapted.merge_and_unload(), naming)
    moved = kernels(encoder, tau, naming)
    assert sum(bool(np.any(leaf)) for leaf in moved.values()) >= 6 * 2
    for name, leaf in moved.items():
        np.testing.assert_allclose(after[name] - before[name], leaf, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("stabilized", [False, True])
@pytest.mark.parametrize("family", ["clip", "text", "vit"])
def test_what_peft_writes_is_read_as_it_merges_it(home, peft, tmp_path, family, stabilized):
    import torch

    encoder, torch_model = encoders.load(str(home / family), family=family), model_of(home, family)
    naming = encoder.linears[0]
    ends = sorted({name.rpartition(".")[2] for name in naming if "layer" in name})
    torch.manual_seed(7)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=5,
        target_modules=ends,
        use_rslora=stabilized,
        init_lora_weights=False,
        exclude_modules=["pooler.dense"],
    )
    adapted = peft.get_peft_model(torch_model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    found = encoder.load_finetuned(str(tmp_path / "adapter"))
    assert found.format == "adapter"
    after = weights(adapted.merge_and_unload(), naming)
    before, ours = kernels(encoder, encoder.params, naming), kernels(encoder, found.params, naming)
    for name, leaf in ours.items():
        np.testing.assert_allclose(leaf, after[name], rtol=1e-6, atol=1e-5, err_msg=name)  # merged in float32 there
    assert max(np.max(np.abs(leaf - before[name])) for name, leaf in ours.items()) > 0.05
