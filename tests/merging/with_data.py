"""Oracles of the methods that need data, and what their fits might have found: in NumPy and float64, without tajax."""

from __future__ import annotations

import numpy as np


def nested(flat):
    """The tree of leaves by path."""
    tree = {}
    for path, leaf in flat.items():
        node, (*above, last) = tree, path.split("/")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def pattern(*shape, step=7, period=5):
    """Small whole numbers, without chance."""
    return (np.arange(int(np.prod(shape))) * step % period).astype(np.float64).reshape(shape)


def information(theta, tasks):
    """Of each leaf [T, ...], zeros among them."""
    return {path: pattern(tasks, *np.shape(leaf)) for path, leaf in theta.items()}


def fishers(theta, tasks):
    return {"fishers": nested(information(theta, tasks))}


def fisher(theta, taus, floor=2.0):
    found, merged = information(theta, len(taus)), {}
    for path, leaf in theta.items():
        weights = np.maximum(found[path], floor)
        models = np.stack([leaf + tau[path] for tau in taus])
        merged[path] = np.average(models, axis=0, weights=weights)
    return merged


LAYERS = {"blocks": 2, "projection": 1}


def moments(theta, tasks):
    """Of each kernel that is a matrix [T, L, K, K]."""
    found = {}
    for path, leaf in theta.items():
        layers = LAYERS.get(path.split("/")[0], 0) if path.endswith("kernel") else 0
        if layers:
            k = np.shape(leaf)[-2]
            roots = pattern(tasks, layers, k + 2, k, step=11, period=7) - 3
            found[path] = np.einsum("tlni,tlnj->tlij", roots, roots) / (k + 2)
    return found


def grams(theta, tasks):
    return {"grams": moments(theta, tasks)}


def regmean(theta, taus, off_diagonal=0.7):
    """By least squares: a root of each G̃_t as the inputs, and the outputs of each model on them."""
    found, merged = moments(theta, len(taus)), {}
    for path, leaf in theta.items():
        models = [leaf + tau[path] for tau in taus]
        merged[path] = sum(models) / len(models)
        if path in found:
            layers = found[path].shape[1]
            kernels = [model.reshape(layers, found[path].shape[2], -1) for model in models]
            merged[path] = np.stack(
                [regression([g[l] for g in found[path]], [k[l] for k in kernels], off_diagonal) for l in range(layers)]  # noqa: E741
            ).reshape(leaf.shape)
    return merged


def regression(moments, kernels, off_diagonal=1.0):
    """argmin_W Σ_t ‖R_t W − R_t W_t‖² with R_tᵀR_t = G̃_t."""
    inputs = []
    for moment in moments:
        shrunk = off_diagonal * moment + (1 - off_diagonal) * np.diag(np.diag(moment))
        values, vectors = np.linalg.eigh(shrunk)
        inputs.append(np.sqrt(np.maximum(values, 0))[:, None] * vectors.T)
    outputs = [x @ kernel for x, kernel in zip(inputs, kernels, strict=True)]
    return np.linalg.lstsq(np.concatenate(inputs), np.concatenate(outputs), rcond=None)[0]


def perceptron_inputs(model, x):
    """What both layers of the perceptron of test_with_data.py are given."""
    hidden = np.tanh(x @ model["first/kernel"] + model["first/bias"])
    return {"first/kernel": x, "second/kernel": hidden * model["scale"]}


def perceptron_fisher(model, weights, inputs, labels, kind):
    """E_x Σ_y p(y) (∂ log p(y)/∂θ)², or the same with the label for y, by the chain rule, example by example."""
    total = {path: np.zeros_like(leaf) for path, leaf in model.items()}
    for x, label in zip(inputs, labels, strict=True):
        hidden = np.tanh(x @ model["first/kernel"] + model["first/bias"])
        scaled = hidden * model["scale"]
        z = scaled @ model["second/kernel"]
        length = np.linalg.norm(z)
        unit = z / length
        logits = unit @ weights
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        for y in range(len(p)) if kind == "expected" else [label]:
            to_logits = np.eye(len(p))[y] - p
            to_unit = weights @ to_logits
            to_z = (to_unit - unit * (unit @ to_unit)) / length
            to_scaled = model["second/kernel"] @ to_z
            to_sum = to_scaled * model["scale"] * (1 - hidden**2)
            gradients = {
                "second/kernel": np.outer(scaled, to_z),
                "scale": to_scaled * hidden,
                "first/bias": to_sum,
                "first/kernel": np.outer(x, to_sum),
            }
            for path, gradient in gradients.items():
                total[path] += (p[y] if kind == "expected" else 1) * gradient**2
    return {path: leaf / len(inputs) for path, leaf in total.items()}


def perceptron_plusplus(models, inputs, off_diagonal):
    """RegMean layer after layer: the second layer is solved on what the merged first one gives."""
    merged = {path: np.mean([model[path] for model in models], axis=0) for path in models[0]}
    for path in ("first/kernel", "second/kernel"):
        given = [perceptron_inputs(merged, x)[path] for x in inputs]
        merged[path] = regression([x.T @ x / len(x) for x in given], [model[path] for model in models], off_diagonal)
    return merged


def coefficients(theta, tasks):
    """Of each leaf that can be moved [T], and [T, L] where it stacks layers; halves, so that sums are exact."""
    found = {}
    for path, leaf in theta.items():
        if np.asarray(leaf).dtype.kind not in "iub":
            layers = np.shape(leaf)[:1] if "blocks" in path.split("/") else ()
            found[path] = pattern(tasks, *layers, step=3) / 2 - 1
    return found


def coefs(theta, tasks):
    return {"coefs": coefficients(theta, tasks)}


def moved(theta, taus):
    """θ₀ + Σ c τ, layer by layer."""
    found, merged = coefficients(theta, len(taus)), {}
    for path, leaf in theta.items():
        merged[path] = leaf.copy()
        for t, tau in enumerate(taus):
            c = found[path][t]
            merged[path] += np.stack([a * b for a, b in zip(c, tau[path], strict=True)]) if c.ndim else c * tau[path]
    return merged


def perceptron_logits(model, weights, x):
    z = perceptron_inputs(model, x)["second/kernel"] @ model["second/kernel"]
    return z / np.linalg.norm(z, axis=1, keepdims=True) @ weights


def uncertainty(logits, labels):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return -np.mean(np.sum(p * np.log(p), axis=1))


def surprise(logits, labels):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return -np.mean(np.log(p / p.sum(axis=1, keepdims=True))[np.arange(len(labels)), labels])


def learned(
    loss, theta, taus, batches, weights, *, by_leaf, initial, steps, rate, decay=0.0, longest=None, bounds=None
):
    """Adam with gradients by finite differences; `batches[t][k]` are the inputs and labels of step k."""
    paths, tasks = list(theta), len(taus)
    shape = (len(paths), tasks) if by_leaf else (tasks,)
    low, high = bounds or (-np.inf, np.inf)

    def value(c, step):
        c = np.clip(c, low, high)
        rows = c if by_leaf else [c] * len(paths)
        model = {p: theta[p] + sum(r[t] * taus[t][p] for t in range(tasks)) for p, r in zip(paths, rows, strict=True)}
        chosen = [of_task[step % len(of_task)] for of_task in batches]
        return sum(loss(perceptron_logits(model, w, x), y) for w, (x, y) in zip(weights, chosen, strict=True))

    c, m, v = np.full(shape, initial), np.zeros(shape), np.zeros(shape)
    for step in range(steps):
        gradient = np.zeros(shape)
        for index in np.ndindex(shape):
            h = np.zeros(shape)
            h[index] = 1e-5
            gradient[index] = (value(c + h, step) - value(c - h, step)) / 2e-5
        if longest is not None:
            gradient *= min(1, longest / np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        unbiased = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
        c = c - rate * (unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8) + decay * c)
    c = np.clip(c, low, high)
    return dict(zip(paths, c, strict=True)) if by_leaf else c


def task_coefs(theta, tasks):
    return {"coefs": pattern(tasks, step=3) / 2 - 1}


def moved_by_task(theta, taus):
    found = task_coefs(theta, len(taus))["coefs"]
    return {path: leaf + sum(c * tau[path] for c, tau in zip(found, taus, strict=True)) for path, leaf in theta.items()}


def marks(theta, tasks):
    """Of each leaf [T, ...], of some entries by no task."""
    return {path: pattern(tasks, *np.shape(leaf)) > 2 for path, leaf in theta.items()}


def masks(theta, tasks):
    return {"masks": nested(marks(theta, tasks))}


def stitched(theta, taus):
    """Entry by entry the mean of those who marked it."""
    found, merged = marks(theta, len(taus)), {}
    for path, leaf in theta.items():
        merged[path] = leaf.copy()
        for index in np.ndindex(leaf.shape):
            steps = [tau[path][index] for t, tau in enumerate(taus) if found[path][(t, *index)] and tau[path][index]]
            merged[path][index] += np.mean(steps) if steps else 0
    return merged


def localized(theta, tau, x, y, weights, *, density, steps, rate, strength, initial):
    """The scores of the entries of one matrix after so many steps, by the chain rule; features are x @ matrix."""
    smallest = sorted(abs(tau).ravel())[::-1][round(density * tau.size) - 1]
    scores = np.where(abs(tau) >= smallest, initial, -initial)
    for _ in range(steps):
        share = 1 / (1 + np.exp(-scores))
        logits = x @ (theta + share * tau) @ weights
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        scores = scores - rate * (x.T @ p @ weights.T / len(y) * tau + strength) * share * (1 - share)
    return scores
