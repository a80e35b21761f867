import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tajax
from tajax import merging
from tajax.merging import METHODS
from tajax.merging.methods.ties import keep_largest
from tests.merging.agreement import N, both, draws, fitted, tree_of, vector_of, vectors_for
from tests.merging.oracles import ORACLES, slow_ties


@pytest.fixture
def setting(key):
    """θ₀ and three task vectors of small integers."""
    return draws(key)


@pytest.mark.parametrize("density", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_ties_takes_the_mean_or_the_sum_of_who_agrees(setting, merge, density):
    theta, taus = setting
    options = {"density": density, "merge": merge}
    got = vector_of(
        merging.compiled(merging.ties, **options)(tree_of(theta), list(map(tree_of, taus)), scaling_coef=0.3)
    )
    np.testing.assert_allclose(got, slow_ties(theta, taus, density, 0.3, merge), rtol=1e-6, atol=2e-6)
    one = vector_of(merging.ties(tree_of(theta), [tree_of(taus[0])], **options))  # of one task they are the same
    np.testing.assert_allclose(one, slow_ties(theta, taus[:1], density, 1.0), rtol=1e-6)


def test_ties_names_its_choices():
    with pytest.raises(ValueError, match="merge is 'average', want one of 'mean', 'sum'"):
        merging.ties({"w": 1.0}, [{"w": 1.0}], merge="average")


@functools.cache
def compiled(name):
    """The method with its options, under `jit`; the same program for every test. What it was fitted to is left out."""
    return jax.jit(functools.partial(METHODS[name], **ORACLES[name].options))


def test_every_method_has_an_oracle_and_the_one_signature():
    assert set(METHODS) == set(ORACLES)
    for method in METHODS.values():
        first, second, *options = inspect.signature(method.merge).parameters.values()
        assert (first.name, second.name) == ("pretrained", "taus")
        assert all(option.kind in (option.KEYWORD_ONLY, option.VAR_KEYWORD) for option in options)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_says_what_the_function_takes(name):
    method, taken = METHODS[name], inspect.signature(METHODS[name].merge).parameters
    assert ("key" in taken, "stacked" in taken) == (method.random, method.layered)
    assert (method.fit is None) == (method.needs == "nothing")
    fitted = inspect.signature(method.fit).parameters if method.fit else {}
    assert "stacked" in fitted or not (method.fit and method.layered)
    for keyword, option in method.settings.items():
        for functions, its in ((method.options, taken), (method.fit_options, fitted)):
            assert keyword not in functions or its[keyword].default == option.default
        assert option.holds(option.default) and option.help
        assert not option.choices or option.default in option.choices


@pytest.mark.parametrize("name", METHODS)
def test_methods_agree_with_a_slow_oracle(setting, name):
    theta, taus = setting[0].astype(np.float32), vectors_for(name, setting[1]).astype(np.float32)
    for path, (leaf, want) in both(name, theta, taus, compiled(name)).items():
        np.testing.assert_allclose(leaf, want, rtol=1e-4, atol=2e-6 if ORACLES[name].exact else 1e-4, err_msg=path)


def equations(jaxpr):
    """Those of a program, and of the programs in them."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                yield from equations(inner)


DECOMPOSING = ("cart", "core_space", "iso_c", "iso_cts", "regmean", "regmean_plusplus", "star", "svc", "tsv_m", "wudi")


@pytest.mark.parametrize("name", DECOMPOSING)
def test_matrices_are_decomposed_one_by_one(setting, name):
    """Two cores that each begin with a batch of them wait for each other for ever (jaxlib 0.10.2, on CPUs)."""
    pretrained, taus = tree_of(setting[0]), list(map(tree_of, vectors_for(name, setting[1])))
    merge = functools.partial(METHODS[name], **ORACLES[name].options, **fitted(name, pretrained))
    found = [
        equation.invars[0].aval.ndim
        for equation in equations(jax.make_jaxpr(merge)(pretrained, taus).jaxpr)
        if equation.primitive.name in ("eigh", "svd", "geqrf")
    ]
    assert found and set(found) == {2}


@pytest.mark.parametrize("name", METHODS)
def test_methods_agree_with_it_in_double_precision(setting, name, x64):
    """And without `jit`, operation by operation."""
    for path, (leaf, want) in both(name, setting[0], vectors_for(name, setting[1]) / 7).items():
        assert leaf.dtype == np.float64
        np.testing.assert_allclose(leaf, want, rtol=1e-9, atol=1e-9, err_msg=path)


@pytest.mark.parametrize("name", METHODS)
def test_methods_do_not_see_the_order_of_tasks(setting, name):
    theta, taus, merge, case = setting[0], vectors_for(name, setting[1]), compiled(name), ORACLES[name]
    want = vector_of(merge(tree_of(theta), [tree_of(tau) for tau in taus], **fitted(name, tree_of(theta))))
    for order in itertools.permutations(range(case.tasks)):
        found = fitted(name, tree_of(theta), order)
        got = vector_of(merge(tree_of(theta), [tree_of(taus[t]) for t in order], **found))
        np.testing.assert_allclose(got, want, rtol=0, atol=0 if case.exact else 1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_vectors_of_nothing_leave_the_model(setting, name):
    pretrained, case = tree_of(setting[0]), ORACLES[name]
    zeros = [jax.tree.map(np.zeros_like, pretrained)] * case.tasks
    merged = compiled(name)(pretrained, zeros, **fitted(name, pretrained))
    np.testing.assert_allclose(vector_of(merged), vector_of(pretrained), rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_methods_keep_dtypes_and_leave_other_leaves_alone(name):
    pretrained = {"w": jnp.ones(4, jnp.bfloat16), "ids": jnp.arange(2)}
    tau = tajax.task_vector(pretrained, {"w": jnp.full(4, 3, jnp.bfloat16), "ids": jnp.arange(2)})
    options = {**ORACLES[name].options, **fitted(name, pretrained)}
    merged = METHODS[name](pretrained, [tau] * ORACLES[name].tasks, **options)
    assert {path: leaf.dtype.name for path, leaf in merged.items()} == {"w": "bfloat16", "ids": "int32"}
    np.testing.assert_array_equal(merged["ids"], [0, 1])


@pytest.mark.parametrize("name", METHODS)
def test_methods_name_the_task_vector_that_does_not_fit(name):
    options = {**ORACLES[name].options, **fitted(name, {"w": 1.0})}
    with pytest.raises(ValueError, match="'w' is in pretrained but not in task vector 1"):
        METHODS[name]({"w": 1.0}, [{"w": 1.0}, {"v": 1.0}], **options)
    with pytest.raises(ValueError, match="is empty"):
        METHODS[name]({"w": 1.0}, [], **options)


def moves_along_one_vector(merge, setting, tasks=3):
    """Whether merge(θ₀, τ, λ) = θ₀ + λ g with the same g at every θ₀ and λ: g is the model around zero at λ = 1."""
    theta, taus = setting[0], list(map(tree_of, setting[1]))[:tasks]
    vector = vector_of(merge(tree_of(np.zeros(N)), taus))
    assert np.abs(vector).max() > 0.1
    results = []
    for scale, coef in itertools.product((1, -3), (1.0, 0.3, -2.0)):
        options = {} if coef == 1 else {"scaling_coef": coef}
        moved = vector_of(merge(tree_of(scale * theta), taus, **options))
        results.append(np.allclose(moved, scale * theta + coef * vector, rtol=1e-5, atol=1e-5))
    return all(results)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.affine])
def test_methods_that_are_declared_affine_move_along_one_vector(name, setting):
    options = {key: value for key, value in ORACLES[name].options.items() if key != "scaling_coef"}
    found = fitted(name, tree_of(np.zeros(N)))
    program = merging.compiled(METHODS[name], **options)

    def merge(pretrained, taus, **given):
        if given and not METHODS[name].scaled:  # λ is always 1 then
            return tajax.apply_task_vector(pretrained, compiled(name)(tree_of(np.zeros(N)), taus, **found), **given)
        return program(pretrained, taus, **found, **given)

    assert moves_along_one_vector(merge, setting, ORACLES[name].tasks)


def average_of_lengths(pretrained, taus, *, scaling_coef=1.0):
    """The mean model, as long as the models are on average: it depends on θ₀, and not only by adding it."""
    tuned = [tajax.apply_task_vector(pretrained, tau, scaling_coef) for tau in taus]
    mean = tajax.combine(tuned, [1 / len(tuned)] * len(tuned))
    length = sum(float(tajax.norm(theta)) for theta in tuned) / len(tuned)
    return tajax.combine([mean], [length / float(tajax.norm(mean))])


def only_half_affine(pretrained, taus, *, scaling_coef=1.0):
    """Additive in θ₀, but not in proportion to λ."""
    return tajax.apply_task_vector(pretrained, tajax.combine(taus), scaling_coef**2)


@pytest.mark.parametrize("merge", [average_of_lengths, only_half_affine])
def test_a_method_that_is_not_affine_would_be_found(merge, setting):
    assert not moves_along_one_vector(merge, setting)


@pytest.mark.parametrize("density", [0.001, 0.3, 1.0])
def test_the_largest_entries_stay_whatever_their_leaf(key, density, x64):
    for dtype in (jnp.float32, jnp.float64):
        tau = {"u": jax.random.normal(key, (40, 3), dtype), "v": 1e-3 * jax.random.normal(key, (30,), dtype)}
        got, flat = vector_of(jax.jit(keep_largest, static_argnums=1)(tau, density)), vector_of(tau)
        threshold = np.sort(np.abs(flat))[-max(1, round(density * 150))]
        np.testing.assert_array_equal(got, np.where(np.abs(flat) >= threshold, flat, 0))


def test_density_and_drop_rate_have_ranges():
    for density in (0, 1.5, -0.1):
        with pytest.raises(ValueError, match=r"density is the share .* got"):
            METHODS["ties"]({"w": 1.0}, [{"w": 1.0}], density=density)
    for drop_rate in (1, -0.1):
        with pytest.raises(ValueError, match=r"drop_rate is the share .* got"):
            METHODS["dare"]({"w": 1.0}, [{"w": 1.0}], key=jax.random.key(0), drop_rate=drop_rate)


def test_dropping_entries_changes_a_task_vector_but_not_its_mean(key):
    n, drop_rate = 40_000, 0.75
    thin = jax.jit(lambda taus, key: METHODS["dare"](pretrained, taus, key=key, drop_rate=drop_rate))
    tau = {"w": jnp.full((n,), 2.0), "v": jnp.full((n,), 2.0)}
    pretrained = jax.tree.map(jnp.zeros_like, tau)
    thinned = thin([tau], key)
    for leaf in thinned.values():
        assert set(np.unique(leaf)) == {0.0, 8.0}
        np.testing.assert_allclose(np.mean(leaf), 2, atol=5 * 8 * np.sqrt(0.25 * 0.75 / n))  # five deviations
    assert not np.array_equal(thinned["w"], thinned["v"])
    both = thin([tau, tau], key)
    assert set(np.unique(both["w"])) == {0.0, 8.0, 16.0}  # each task has a draw of its own
    merged = METHODS["dare"](pretrained, [tau], key=key, drop_rate=drop_rate, merge=METHODS["ties"], density=1.0)
    np.testing.assert_array_equal(merged["w"], thinned["w"])


def test_one_compilation_serves_every_coefficient(setting):
    theta, taus = setting
    traces = []

    def method(pretrained, taus, **options):
        traces.append(options)
        return METHODS["ties"](pretrained, taus, **options)

    merge = merging.compiled(method, density=0.3)
    for coef in (0.5, 1.5, -1.0):
        got = merge(tree_of(theta), list(map(tree_of, taus)), scaling_coef=coef)
        np.testing.assert_allclose(vector_of(got), slow_ties(theta, taus, 0.3, coef), rtol=1e-6)
    assert len(traces) == 1


def test_a_donated_model_gives_its_memory_to_the_merged_one(setting):
    theta, taus = (jax.tree.map(jnp.asarray, tree) for tree in (tree_of(setting[0]), list(map(tree_of, setting[1]))))
    kept = merging.compiled(METHODS["task_arithmetic"])(theta, taus, scaling_coef=0.5)
    places = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(theta)}
    merge = merging.compiled(METHODS["task_arithmetic"], donate=True)
    with pytest.raises(ValueError, match="not in task vector 1"):
        merge(theta, [taus[0], {"blocks": taus[1]["blocks"]}])
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(theta))  # refused before anything was given away
    merged = merge(theta, taus, scaling_coef=0.5)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(theta))
    assert {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(merged)} == places
    np.testing.assert_array_equal(vector_of(merged), vector_of(kept))
