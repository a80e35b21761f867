"""The documentation: its code runs, its commands are real, its links lead somewhere, and it leaves nothing out."""

import argparse
import html.parser
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import tajax
from tajax import config, encoders, main, merging, processes, task_names
from tajax.config.fields import merging_options
from tajax.workflows import stages
from tests.repository.test_project import ROOT

DOCS = ROOT / "tajax" / "docs"
GUIDES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
OURS = ("tajax", "configs", "experiments", "tests")
EVERY_TEXT = [ROOT / "README.md", *(path for room in OURS for path in sorted((ROOT / room).rglob("*.md")))]
PUBLIC = sorted(tajax._ON_DEMAND - {"workflows"}) + ["affine", "disentanglement", "gap", "losses", "merging", "metrics"]
PUBLIC += ["ntk", "progress", "scaling", "task_vectors", "tracking", "trees", "types"]


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", [path for path in GUIDES if blocks(path, "python")], ids=name_of)
def test_code_of_a_guide_runs(path, tmp_path, monkeypatch):
    """The blocks of a page, one after the other, in one namespace and an empty directory."""
    monkeypatch.chdir(tmp_path)
    examples = list(Sybil(parsers=[PythonCodeBlockParser()]).parse(path).examples())
    assert len(examples) == len(blocks(path, "python"))
    for example in examples:
        example.evaluate()


WORDS = r"""(?:"[^"]*"|[^;#|&"])*"""  # up to the end of a command, which is none within quotes


def commands(path):
    """Every `python -m …` and `tajax …` of the shell blocks, as module and arguments."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.findall(rf"(?:python -m ((?:tajax|experiments)[\w.]*)|\btajax(?= ))({WORDS})", line)
            yield from ((module or "tajax.main", tuple(shlex.split(words))) for module, words in found)


EXTRA = ("index.html", "genindex.html", "py-modindex.html", "search.html")  # made by Sphinx itself
COMMANDS = sorted({command for path in EVERY_TEXT for command in commands(path)})


class Parsed(Exception):
    """Raised where a program would begin to work."""


def stop_at_parsing(monkeypatch):
    """Programs of `argparse` take their arguments as ever, and then do nothing."""

    def stopping(parse):
        def parse_and_stop(*arguments):
            parse(*arguments)
            raise Parsed

        return parse_and_stop

    for name in ("parse_known_args", "parse_args"):  # the second calls the first
        monkeypatch.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))


def test_there_are_commands_of_every_program():
    assert {"tajax.main", "tajax.data", "tajax.report", "tajax.sharing", "tajax.merge"} < {
        module for module, _ in COMMANDS
    }


@pytest.mark.parametrize(
    ("module", "arguments"), COMMANDS, ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
def test_commands_are_taken_by_their_programs(module, arguments, tmp_path, monkeypatch, capsys):
    if module == "experiments.notebooks":
        pytest.importorskip("nbformat", reason="needs Jupyter: pip install -e '.[notebooks]'")
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path / "checkout")
    for place in map(Path, re.findall(r"(?:\.\./shared|\bpath)/[\w./-]+", " ".join(arguments))):  # the reader's own
        (place.parent if place.suffix else place).mkdir(parents=True, exist_ok=True)
        if place.suffix:
            place.touch()
    for place in re.findall(r"--config\.data_dir=(path/\S+)", " ".join(arguments)):  # the reader's texts
        for name in (*task_names.TEXT_TASKS, task_names.TEXT_CONTROL):
            Path(place, f"{name}.npz").touch()
    for run in re.findall(r"--config\.task_vectors=(\S+)", " ".join(arguments)):  # of an earlier command
        Path(run, "task_vectors").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    if any(word == "--help" or word.endswith(":help") for word in arguments):
        assert main.main(sys.argv) == 0 and capsys.readouterr().out
    elif module == "tajax.main":
        monkeypatch.setattr(processes, "join", lambda values: None)  # would wait for the other hosts
        main.parse(sys.argv)
    else:
        stop_at_parsing(monkeypatch)
        name = f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module
        with pytest.raises(Parsed):
            importlib.import_module(name).main()


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", EVERY_TEXT, ids=name_of)
def test_links_of_a_text_lead_to_files_and_headings(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        place, anchor = urldefrag(link)
        if urlsplit(place).scheme:
            continue  # elsewhere: `sphinx-build -b linkcheck`
        target = (path.parent / unquote(place)).resolve() if place else path
        assert target.exists(), f"{name_of(path)} links to {link}"
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{name_of(path)} links to {link}"


@pytest.mark.parametrize(
    ("page", "choices"),
    [
        ("command_line.md", config.WORKFLOWS),
        ("command_line.md", [f"{path.stem}.py" for path in (ROOT / "configs").glob("*.py")]),
        ("command_line.md", config.VARIANTS),
        ("glossary.md", config.REGIMES),
        ("choose.md", merging.METHODS),
        ("choose.md", merging.PREPARATIONS),
        ("choose.md", merging_options()),
        ("own_models.md", encoders.FAMILIES),
    ],
)
def test_pages_name_every_choice(page, choices):
    named = set(re.findall(r"`([^`\s]+)`", (DOCS / page).read_text(encoding="utf-8")))
    assert set(choices) <= named


def test_every_workflow_is_a_program():
    files = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tajax" / "workflows").glob("*.py")}
    programs = {name for name, text in files.items() if re.search(r"^WORKFLOW = Workflow\(", text, re.MULTILINE)}
    assert programs == set(config.WORKFLOWS)


@pytest.mark.parametrize("workflow", config.WORKFLOWS)
def test_every_workflow_has_its_stages_and_one_of_its_name(workflow):
    """The report takes the records of that one for the last."""
    chosen = config.default_config()
    chosen.workflow = workflow
    assert workflow in [stage.name for stage in stages.stages(chosen)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: of `$TAJAX_SITE`, where the gate has put it, or built here."""
    pytest.importorskip("sphinx", reason="needs Sphinx: pip install -e '.[docs]'")
    if "TAJAX_SITE" in os.environ:
        return Path(os.environ["TAJAX_SITE"])
    place = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-c", DOCS, ROOT, place]
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return place


def test_every_public_name_is_in_the_reference(site):
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, name: name)
    documented = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    modules = [tajax, *(importlib.import_module(f"tajax.{name}") for name in PUBLIC)]
    for module in modules:
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        public = getattr(module, "__all__", None) or [n for n in own if n[0] != "_" and callable(getattr(module, n))]
        public = [name for name in public if type(getattr(module, name)).__name__ != "TypeVar"]
        left_out = [n for n in public if not {f"{module.__name__}.{n}", f"tajax.{n}"} & documented]
        assert not left_out, f"{module.__name__}: {left_out}"


class Page(html.parser.HTMLParser):
    """What a page links to, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "href" and tag == "a":
                self.links.add(urldefrag(value)[0])
            elif name in ("src", "srcset") or (tag == "link" and name == "href"):
                self.loaded.append(value)


def test_every_page_can_be_reached_and_loads_nothing_from_elsewhere(site):
    seen, waiting = set(), [(site / "tajax" / "docs" / "index.html").resolve()]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        page = Page(path)
        assert not [url for url in page.loaded if urlsplit(url).scheme not in ("", "data")], path
        found = {(path.parent / unquote(link)).resolve() for link in page.links if not urlsplit(link).scheme and link}
        assert all(target.exists() for target in found), path
        waiting += [target for target in found - seen - set(waiting) if target.suffix == ".html"]
    made = {path.resolve() for path in site.rglob("*.html") if "_modules" not in path.parts}
    assert made - seen <= {(site / name).resolve() for name in EXTRA}
