"""The contract of a family: every workflow and regime runs on its tiny member, or says why not before it loads it."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tajax import encoders, results
from tajax.config import REGIMES, WORKFLOWS
from tajax.encoders import FAMILIES
from tests.workflows import members
from tests.workflows.conftest import save_clip

ON_TASKS = [name for name in WORKFLOWS if name != "pretrain"]
HEADS = {"clip": "zero_shot", "text": "zero_shot", "vit": "linear_probe"}
NEEDED = {  # beside the tasks
    "task_negation": {"control": True},
    "ntk": {"control": True, "ntk.images": 8, "ntk.eigenfunctions": 2, "ntk.directions": 2},
    "task_analogy": {"count": 4},
    "curvature": {"curvature.images": 6},
    "disentanglement": {"disentanglement.coefs": (-1.0, 0.0, 1.0), "disentanglement.images": 6},
}


def test_every_family_is_under_contract():
    assert set(HEADS) == set(FAMILIES)


@pytest.fixture(scope="module")
def home(tmp_path_factory, rng, programs):
    home = tmp_path_factory.mktemp("families")
    save_clip(home / "clip", rng(810))
    members.save_bert(home / "text", rng(811))
    members.save_vit(home / "vit", rng(812))
    members.save_texts(home / "tasks_text", rng(813))
    members.save_images(home / "tasks_images", rng(814))
    return home


@pytest.fixture(scope="module")
def on(run, home):
    """`on(family, config, workdir, **overrides)`: a run on its tiny member and on tasks of what that takes."""

    def on(family, config, workdir, *, count=2, control=False, **overrides):
        folder = home / ("tasks_text" if family == "text" else "tasks_images")
        paths = [str(folder / f"{name}.npz") for name in members.SUBJECTS]
        control_path = str(folder / f"{members.CONTROL}.npz")
        chosen = [path for path in paths if not control or path != control_path][:count]
        fields = {"family": family, "model": home / family, "tasks": tuple(chosen), "heads": HEADS[family]}
        fields |= {"control": control_path} if control else {}
        done = run(config, workdir, **fields | {"finetune.steps": 2} | overrides)
        done.tasks = chosen
        return done

    return on


@pytest.fixture(scope="module")
def trained(on, tmp_path_factory):
    """The run of a family whose vectors the analyses look at, made once."""
    made = {}

    def trained(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("trained") / family
            done = on(family, "standard", made[family], workflow="single_task", count=4)
            assert done.code == 0, done.err
        return made[family]

    return trained


@pytest.mark.parametrize("workflow", ON_TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_workflow_runs_on_every_family(on, trained, tmp_path, family, workflow):
    own = {"task_vectors": trained(family)} if workflow != "ntk" else {}
    done = on(family, "standard", tmp_path / "run", workflow=workflow, **own, **NEEDED.get(workflow, {}))
    assert done.code == 0, done.err
    assert results.find(results.read(tmp_path / "run" / "results.jsonl"), stage=workflow)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<table" in page and ">nan<" not in page


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "clip"])  # which all other tests train
def test_every_regime_trains_every_family(on, tmp_path, family, regime):
    vectors = {"task_vectors": tmp_path / "first"} if regime == "posthoc" else {}
    if vectors:
        assert on(family, "standard", tmp_path / "first", workflow="single_task").code == 0
    done = on(family, "standard", tmp_path / "run", workflow="single_task", regime=regime, **vectors)
    assert done.code == 0, done.err
    tau = load_file((tmp_path / "first" if vectors else tmp_path / "run") / "task_vectors" / "animals.safetensors")
    assert any(leaf.any() for leaf in tau.values())


@pytest.mark.parametrize(
    "method",
    [
        "ties",
        "weight_average",
        "dare",
        "cart",
        "tsv_m",
        "regmean",
        "regmean_plusplus",
        "fisher",
        "localize_few_shot",
    ],
)
def test_merging_methods_take_text_encoders(on, trained, home, tmp_path, method):
    fields = {"task_vectors": trained("text"), "merging.method": method, "count": 4}
    done = on("text", "standard", tmp_path / "run", **fields)
    assert done.code == 0, done.err
    base, again = (encoders.load(str(place), family="text") for place in (home / "text", tmp_path / "run" / "merged"))
    assert again.identity.geometry == base.identity.geometry and again.identity.sha256 != base.identity.sha256
    assert again.inputs.facts["sha256"] == base.inputs.facts["sha256"]


def test_texts_are_cut_to_so_many_tokens_and_that_is_counted_and_said(on, tmp_path):
    done = on("text", "standard", tmp_path / "run", workflow="single_task", max_tokens=6)
    assert done.code == 0 and "Texts of more than 6 tokens are cut: " in done.err
    (about,) = results.find(results.read(tmp_path / "run" / "results.jsonl"), stage="run")
    file = np.load(done.tasks[0])
    assert about["cut_texts"]["animals"]["test"] == sum(len(text.split()) + 2 > 6 for text in file["test_texts"])
    assert (about["examples"], about["family"]) == ("texts", "text")
    other = on("text", "standard", tmp_path / "run", workflow="single_task", max_tokens=7)
    assert other.code == 2 and "max_tokens" in other.err  # another config in the same directory


def test_what_a_family_has_not_is_refused_before_it_is_loaded(on, home, tmp_path):
    words = home / "tasks_text" / "words.npz"
    refusals = [
        ("clip", {"max_tokens": 8}, "max_tokens is 8, but models of the family 'clip' take images"),
        ("text", {"max_tokens": 99}, "max_tokens is 99; "),
        ("text", {"save.open_clip": True}, "save.open_clip writes the merged model for open_clip, which has no models"),
        ("vit", {"save.open_clip": True}, "which has no models of the family 'vit'"),
        ("vit", {"heads": "zero_shot"}, "heads are from class names, and models of the family 'vit' take no texts"),
        ("clip", {"tasks": (str(words),)}, "task 'words'"),
        ("text", {"tasks": (str(home / "tasks_images" / "tools.npz"),)}, "is of images, and the model takes texts"),
        ("text", {"tasks": (str(words), str(home / "tasks_images" / "tools.npz"))}, "task 'tools'"),
        ("text", {"model": home / "clip"}, str(home / "clip")),
        ("clip", {"model": home / "text"}, str(home / "text")),
        ("text", {"trainable": "patch_embedding"}, "matches none of the"),
    ]
    for number, (family, fields, message) in enumerate(refusals):
        workdir = tmp_path / str(number)
        refused = on(family, "standard", workdir, **fields)
        assert refused.code == 2 and message in refused.err, (message, refused.err)
        assert not (workdir / "results.jsonl").exists()
