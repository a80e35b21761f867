"""Shapes in annotations can be checked: jaxtyping reads one that does not parse when somebody checks it, not before."""

import ast
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

import tajax

ROOT = Path(tajax.__file__).parent
DTYPES = {name for name in dir(jaxtyping) if isinstance(getattr(jaxtyping, name), type)} - {"PyTree"}
ARITHMETIC = (ast.Expression, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Name, ast.Load, ast.Constant)


def shapes(tree):
    """The shapes of all annotations `Float[Array, "B D"]` in a tree of code, in order."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", None) in DTYPES:
            _, shape = node.slice.elts
            yield shape.value


def axes(shape):
    """The axes that bind a name, and the expressions: `"B T+1 *K n=3"` binds B and K, and T+1 is an expression."""
    names, expressions = set(), []
    for axis in shape.split():
        axis = axis.lstrip("*#?").rpartition("=")[2]
        if axis.isidentifier():
            names.add(axis)
        elif axis != "..." and not axis.isdigit():
            expressions.append(ast.parse(axis, mode="eval"))
    return names, expressions


def mistakes(code):
    """Each shape that jaxtyping could not check."""
    found = []
    for shape in shapes(code):
        try:
            jaxtyping.Float[np.ndarray, shape]
            _, expressions = axes(shape)
        except (ValueError, SyntaxError) as error:
            found.append(f"{shape!r}: {error}")
            continue
        if not all(isinstance(part, ARITHMETIC) for expression in expressions for part in ast.walk(expression)):
            found.append(f"{shape!r}: want sums, differences and products of axes")
    for function in [node for node in ast.walk(code) if isinstance(node, ast.FunctionDef) and not found]:
        given, returned = list(shapes(function.args)), list(shapes(function.returns)) if function.returns else []
        bound = {name for shape in given for name in axes(shape)[0]}
        for shape in (*given, *returned):
            names = {part.id for one in axes(shape)[1] for part in ast.walk(one) if isinstance(part, ast.Name)}
            if names - bound:
                found.append(f"{shape!r} of {function.name}: no argument has an axis {', '.join(names - bound)}")
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shape_parses(path):
    assert not mistakes(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("shape", ["A² 2", "2m R", "2^T T", "B, D", "T+1"])
def test_one_that_does_not_parse_is_found(shape):
    assert mistakes(ast.parse(f"def f(x: Float[Array, 'B']) -> Float[Array, {shape!r}]: ..."))
    assert not mistakes(ast.parse("def f(x: Float[Array, ' T *out']) -> Float[Array, 'T+1 n=2 3 ... ']: ..."))
