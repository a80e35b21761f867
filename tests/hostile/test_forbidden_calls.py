"""No file of the package calls what runs code from its input."""

import ast
from pathlib import Path

import pytest

import tajax

PACKAGE = Path(tajax.__file__).parent
FORBIDDEN = {  # names of functions, with their modules where these tell
    *("eval", "exec", "compile", "__import__", "execfile"),
    *("os.system", "os.popen", "os.execv", "os.execve", "os.spawnv", "pty.spawn", "runpy.run_path", "code.interact"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "torch.hub.load", "joblib.load"),
    *("numpy.load_library", "imp.load_source", "tempfile.mktemp"),
    *("extractall", "unpack_archive", "shutil.unpack_archive", "tf.saved_model.load"),
}
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "jsonpickle",
    "joblib",
    "pickle5",
}
DANGEROUS_OPTIONS = {"allow_pickle": True, "shell": True, "trust_remote_code": True, "weights_only": False}


def dotted(node):
    """`a.b.c` of a name or an attribute; `().c` of what is neither, as the value of a call."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "()"


def offences(source):
    """Every forbidden call, option or import in a file, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            for name in names:
                if name.split(".")[0] in MODULES:
                    yield node.lineno, f"import {name}"
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            bare = name.rpartition(".")[2]
            if name in FORBIDDEN or (bare in FORBIDDEN and "." in name and bare in ("extractall", "unpack_archive")):
                yield node.lineno, name
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", "a variable")
                wanted = DANGEROUS_OPTIONS.get(keyword.arg, "nothing")
                if keyword.arg in DANGEROUS_OPTIONS and value in (wanted, "a variable"):
                    yield node.lineno, f"{name}({keyword.arg}=…)"
            if name.rpartition(".")[2] == "load" and name.split(".")[0] in ("np", "numpy"):
                if not any(k.arg == "allow_pickle" for k in node.keywords):
                    yield node.lineno, f"{name} without allow_pickle=False"


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "import pickle",
        "from marshal import loads",
        "np.load(f, allow_pickle=True)",
        "np.load(f)",
        "numpy.load(f, allow_pickle=flag)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "yaml.load(f)",
        "torch.load(f)",
        "zipfile.ZipFile(f).extractall(d)",
        "A.from_pretrained(d, trust_remote_code=True)",
        "__import__('os')",
    ],
)
def test_the_search_finds_what_is_forbidden(source):
    assert list(offences(source))


@pytest.mark.parametrize("source", ["jax.jit(f).lower(x).compile()", "re.compile(x)", "model.eval()", "np.loadtxt(f)"])
def test_the_search_passes_what_only_has_such_a_name(source):
    """Text that is parsed and never run: these methods have the names of others, and run no code of an input."""
    assert not list(offences(source))


def test_nothing_forbidden_is_called_in_the_package():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 80
    found = [f"{f.relative_to(PACKAGE)}:{line} {what}" for f in files for line, what in offences(f.read_text())]
    assert not found
