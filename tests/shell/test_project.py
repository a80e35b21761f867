"""The project as a newcomer meets it."""

import re
import tomllib
from pathlib import Path

import tajax

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUP = "[ -d .venv ] || python3 -m venv .venv; . .venv/bin/activate && "


def test_readme_opens_with_two_commands_that_set_themselves_up():
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("[ -d .venv ]")]
    assert commands == [
        SETUP + "pip install -e . && python -m tajax.main --config=configs/attn.py",
        SETUP + "pip install -e '.[test]' && pytest",
    ]
    assert blocks[0] + blocks[1] == "\n".join(commands) + "\n"


def test_version_is_one():
    assert PROJECT["project"]["version"] == tajax.__version__
    assert f"## {tajax.__version__}" in (ROOT / "tajax" / "CHANGELOG.md").read_text()


def test_licence_travels_with_the_package():
    assert "Apache License" in (ROOT / "tajax" / "LICENSE").read_text()[:200]
    assert (ROOT / "tajax" / "py.typed").exists()


def test_light_extras_bring_no_torch_and_the_heavy_one_pins_it():
    extras = PROJECT["project"]["optional-dependencies"]
    light = [*PROJECT["project"]["dependencies"], *extras["test"]]
    assert not [name for name in light if re.match(r"(torch|tensorflow)\b(?!-datasets)", name)]
    assert "torch==2.13.0" in extras["parity"]
    assert set(extras) >= {"cuda12", "tpu", "test", "parity", "prepare"}
