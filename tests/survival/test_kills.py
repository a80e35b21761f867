"""SIGKILL at any moment: a run that was killed again and again ends with the bits of one that was left alone."""

import os
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.survival.conftest import KILLED, assert_part, assert_same, measured


def in_save(number, seconds=0.0):
    return {"die_in_save": {"number": number, "seconds": seconds}}


def at_record(count, torn=False):
    return {"die_at_record": {"count": count, "torn": torn}}


def at_rename(name, after=False):
    return {"die_at_rename": {"name": name, "after": after}}


MOMENTS = np.random.default_rng(20230522).uniform(0, 0.08, size=16).round(4).tolist()  # seconds into a save and beyond
VECTOR = "pets.safetensors"
SHARED = "4, fsdp"  # devices that share one copy of the parameters
CHAINS = {  # config, devices, workflow: how its processes end, one after the other, before one is left to finish
    ("standard", 1, "single_task"): [in_save(1), in_save(2, MOMENTS[0]), at_rename(VECTOR), at_record(2, torn=True)],
    ("attn", 1, "task_addition"): [
        at_record(1, torn=True),
        in_save(2, MOMENTS[1]),
        at_rename(VECTOR, after=True),
        in_save(1, MOMENTS[2]),
        at_record(7),
        at_rename("merged"),
        at_rename("report.md"),
    ],
    ("linear", 1, "single_task"): [in_save(1, MOMENTS[3]), in_save(2), at_record(2), in_save(2, MOMENTS[4])],
    ("linear_attn", 1, "single_task"): [in_save(1, MOMENTS[5]), in_save(3, MOMENTS[6]), at_rename(VECTOR)],
    ("lora", 1, "single_task"): [in_save(2, MOMENTS[7]), at_rename("pets", after=True), at_record(3)],
    ("linear_lora", 1, "single_task"): [in_save(1, MOMENTS[9]), in_save(3), at_rename(VECTOR)],
    ("linear_lora", 4, "single_task"): [in_save(3, MOMENTS[12])],
    ("standard", SHARED, "single_task"): [in_save(3, MOMENTS[8])],
    ("linear_attn", 4, "single_task"): [in_save(3, MOMENTS[10])],
}


def test_there_are_at_least_twenty_kills_and_half_of_them_in_saves():
    deaths = [death for chain in CHAINS.values() for death in chain]
    assert len(deaths) >= 20
    assert sum("die_in_save" in death for death in deaths) >= 10


def kill_again_and_again(start, command, chain, whole, workdir, **options):
    assert start(command(whole), **options).end()[0] == 0
    for number, death in enumerate(chain):
        death = {name: dict(how) for name, how in death.items()}
        if "die_in_save" in death:
            death["die_in_save"]["directory"] = str(workdir)
        code, messages = start(command(workdir), **options, **death).end()
        assert code == KILLED, (number, death, messages)
        assert_part(workdir, whole)
    code, messages = start(command(workdir), **options).end()
    assert (code, "ended without finishing; going on in its place" in messages) == (0, True), messages
    assert_same(workdir, whole)


@pytest.mark.parametrize(("config", "devices", "workflow"), CHAINS, ids=lambda value: str(value))
def test_killed_run_ends_with_the_same_bits(config, devices, workflow, start, command, tmp_path):
    fields = {} if devices == 1 else {"tasks": command.one_task}
    fields |= {"placement": "fsdp"} if devices == SHARED else {}

    def line(workdir):
        return command(config, workdir, workflow=workflow, **fields)

    chain, count = CHAINS[config, devices, workflow], 4 if devices == SHARED else devices
    kill_again_and_again(start, line, chain, tmp_path / "whole", tmp_path / "run", devices=count)


def test_a_run_goes_on_where_devices_share_in_another_way(start, command, tmp_path):
    """Checkpoints hold whole leaves. The vector is that of a run on one device, but for the order of sums."""
    whole, run = tmp_path / "whole", tmp_path / "run"

    def line(workdir, **fields):
        return command("standard", workdir, workflow="single_task", tasks=command.one_task, **fields)

    for devices, step, fields in ((4, 1, {"placement": "fsdp"}), (2, 3, {"placement": "moments"})):
        stop = {"signal_at_step": {"step": step, "number": signal.SIGTERM}}
        code, messages = start(line(run, **fields), devices=devices, **stop).end()
        assert code == 75, messages
    assert start(line(run)).end()[0] == 0
    assert start(line(whole)).end()[0] == 0
    found, want = (
        np.concatenate([leaf.ravel() for leaf in load_file(place / "task_vectors" / VECTOR).values()])
        for place in (run, whole)
    )
    assert 0 < np.linalg.norm(found - want) < 0.05 * np.linalg.norm(want)


def test_killed_run_trains_the_entries_that_it_has_chosen(start, command, tmp_path):
    """TaLoS, killed before and after it has kept which entries it trains, and while it trains them."""
    entries = "entries.safetensors"
    chain = [at_rename(entries), at_rename(entries, after=True), in_save(1), in_save(2, MOMENTS[7]), at_rename(VECTOR)]
    fields = {"workflow": "single_task", "tasks": command.one_task, "regime": "talos", "finetune__scored": 8}
    places = tmp_path / "whole", tmp_path / "run"
    kill_again_and_again(start, lambda workdir: command("standard", workdir, **fields), chain, *places)


def test_killed_pretraining_ends_with_the_same_bits(start, tmp_path, pretrain_command):
    chain = [in_save(1, MOMENTS[11]), at_rename("model")]
    places = tmp_path / "whole", tmp_path / "run"
    kill_again_and_again(start, pretrain_command, chain, *places, pretrain_on_few_scenes={})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signal_keeps_the_step_it_comes_in(number, code, start, command, tmp_path):
    """A long run without checkpoints of its own: what is kept was kept because of the signal."""
    fields = {"workflow": "single_task", "finetune__steps": 300, "finetune__log_every": 1}
    rare = {"finetune__checkpoint_every": 100_000}
    workdir = tmp_path / "run"
    process = start(command("attn", workdir, **fields, **rare))
    while not any(record["stage"] == "finetune" for record in (measured(workdir) if workdir.exists() else ())):
        time.sleep(0.05)
    os.kill(process.pid, number)
    ended, messages = process.end()
    assert (ended, "The same command goes on from there" in messages) == (code, True), messages
    (kept,) = (workdir / "checkpoints" / "pets").iterdir()
    *_, last = measured(workdir)
    assert kept.name == f"step_{last['step']:08d}"  # logged at every step: none was done after the last one kept
    assert not (workdir / ".owner.json").exists()
