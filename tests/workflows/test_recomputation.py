"""`config.finetune.remat`: what is chosen by the memory of the devices, compiled once, and trained with."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from tajax import config as configuration
from tajax import device_memory, finetune, parallel, results
from tajax.device_memory import Need
from tajax.workflows import recomputation

NEEDS = {"none": Need(1 << 20, 0, 5 << 30), "dots": Need(1 << 20, 0, 3 << 30), "layers": Need(1 << 20, 0, 2 << 30)}
compiled = []  # names of programs; a listener cannot be taken away again
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **about: event.endswith("backend_compile_duration") and compiled.append(about.get("fun_name"))
)


@pytest.fixture
def devices_with(monkeypatch):
    """Devices of so many bytes, and programs that need what `NEEDS` says, one after the other."""

    def devices_with(count):
        needs = iter(NEEDS.values())
        monkeypatch.setattr(device_memory, "limit_bytes", lambda device: count)
        monkeypatch.setattr(device_memory, "need_of", lambda program: next(needs))

    return devices_with


class Journal(list):
    """The records of one kind."""

    def find(self, kind, **fields):
        return results.find(self, **fields)

    def record(self, kind, **fields):
        self.append(fields)


@pytest.fixture
def setup():
    """A run as far as the choice looks at it: a model of 4 MiB."""
    return SimpleNamespace(
        config=configuration.default_config(),
        regime=SimpleNamespace(name="standard"),
        encoder=SimpleNamespace(remats=tuple(NEEDS)),
        pretrained={"w": jnp.zeros(1 << 20)},
        journal=Journal(),
        placement="1 × cpu",  # of a placement its words alone
    )


def settle(setup):
    """The choice, and what was compiled for it."""
    asked = []

    def step_with(remat):
        asked.append(remat)
        return jax.jit(lambda x: x + 1)

    return recomputation.settle(setup, step_with, lambda: ((1.0,), {})), asked


@pytest.mark.parametrize(("free", "remat"), [(6 << 30, "none"), (4 << 30, "dots"), (5 << 29, "layers")])
def test_the_first_that_fits_is_taken_and_the_rest_is_not_compiled(setup, devices_with, free, remat, monkeypatch):
    devices_with(free)
    tried = list(NEEDS)[: list(NEEDS).index(remat) + 1]
    assert settle(setup) == (remat, tried)
    (record,) = setup.journal
    assert record["needs"] == {name: NEEDS[name].total for name in tried}
    assert (record["remat"], record["free"], record["device_count"]) == (remat, free, len(jax.devices()))


def test_what_is_taken_already_is_not_free(monkeypatch):
    mine = jnp.zeros(1 << 10)
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1 << 20, "bytes_in_use": (1 << 18) + mine.nbytes})
    monkeypatch.setattr(device_memory, "_bytes_on", lambda device, tree: mine.nbytes)
    assert device_memory.free_bytes([device], mine) == (1 << 20) - (1 << 18)
    assert device_memory.free_bytes([device, jax.devices("cpu")[0]], mine) is None


def test_bytes_of_arguments_are_those_on_the_device():
    tree = {"a": jnp.zeros((3, 5)), "b": [jnp.zeros(2, jnp.int8), 7]}
    assert device_memory._bytes_on(jax.devices()[0], tree) == 62


def test_what_was_chosen_on_such_devices_is_taken_again(setup, devices_with):
    devices_with(4 << 30)
    settle(setup)
    devices_with(6 << 30)
    assert settle(setup) == ("dots", [])
    setup.placement = "1 × cpu, parameters divided by 1"
    assert settle(setup) == ("none", ["none"])
    setup.placement = "1 × cpu"
    setup.journal[0]["device_kind"] = "another"
    assert settle(setup) == ("none", ["none"])


def test_a_program_that_cannot_be_compiled_for_want_of_memory_does_not_fit(setup, devices_with):
    devices_with(6 << 30)

    def step_with(remat):
        if remat == "none":
            said = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm."
            raise jax.errors.JaxRuntimeError(said)
        return jax.jit(lambda x: x + 1)

    assert recomputation.settle(setup, step_with, lambda: ((1.0,), {})) == "dots"
    assert setup.journal[0]["needs"]["none"] is None


def test_nothing_fits(setup, devices_with, monkeypatch):
    devices_with(1 << 30)
    with pytest.raises(ValueError) as error:
        settle(setup)
    assert not setup.journal
    for said in (
        "no fine-tuning step of regime 'standard' with 128 examples in 1 part fits into the memory of a cpu",
        "1.00 GiB are free",
        "5.00 GiB (1.0 MiB arguments, 5.00 GiB temporary) with finetune.remat=none",
        "2.00 GiB (1.0 MiB arguments, 2.00 GiB temporary) with finetune.remat=layers",
        "--config.finetune.accumulation_steps above 1",
        "--config.finetune.batch_size below 128",
        "--config.regime=attention",
        "--config.finetune.remat=layers",
    ):
        assert said in str(error.value)
    assert "placement" not in str(error.value)  # one device shares with nobody
    monkeypatch.setattr(parallel, "devices_of_all", lambda count: [*jax.devices()[:1]] * 2)
    devices_with(1 << 30)
    with pytest.raises(ValueError, match="--config.placement=fsdp divides parameters, moments and gradients"):
        settle(setup)


@pytest.mark.parametrize("remat", NEEDS)
def test_what_the_config_says_is_not_measured(setup, devices_with, remat):
    devices_with(1)
    setup.config.finetune.remat = remat
    assert settle(setup) == (remat, [])


def test_without_a_limit_nothing_is_computed_again(setup):
    assert settle(setup) == ("none", []) and not setup.journal


def test_a_run_trains_with_the_program_that_was_measured(run, tmp_path, devices_with, monkeypatch):
    devices_with(4 << 30)
    traced, loss = [], finetune.cross_entropy
    monkeypatch.setattr(finetune, "cross_entropy", lambda *given: traced.append(1) or loss(*given))
    compiled.clear()
    done = run("linear", tmp_path, workflow="single_task", finetune__steps=2)
    assert done.code == 0, done.err
    (record,) = results.find(results.read(tmp_path / "results.jsonl"), stage="recomputation")
    assert record["remat"] == "dots"
    assert "finetune.remat=auto is dots: none needs 5.00 GiB; dots needs 3.00 GiB, and 4.00 GiB are" in done.err
    assert len(traced) == compiled.count("jit(step)") == 2  # none and dots: training two tasks compiled nothing
