"""Oracles of methods that see entries, tensors and layers: slow, in NumPy and float64, without tajax."""

import itertools
import math

import numpy as np


def by_tensor(of_tensor):
    """From `(θ, [τ_1, …]) -> θ'` of one tensor to trees: layers below `blocks` are tensors of their own."""

    def of_trees(theta, taus):
        merged = {}
        for path, leaf in theta.items():
            if leaf.size == 0:
                merged[path] = leaf
            elif path.startswith("blocks/"):
                layers = range(len(leaf))
                merged[path] = np.stack([of_tensor(leaf[i], [tau[path][i] for tau in taus]) for i in layers])
            else:
                merged[path] = of_tensor(leaf, [tau[path] for tau in taus])
        return merged

    return of_trees


def slow_breadcrumbs(smallest, largest, scaling_coef):
    def of_tensor(theta, taus):
        merged = theta.copy()
        for tau in taus:
            magnitudes = sorted(abs(tau).ravel())
            for _ in range(math.floor(largest * theta.size)):
                magnitudes.pop()
            for _ in range(math.floor(smallest * theta.size)):
                magnitudes.pop(0)
            stays = (magnitudes[0] <= abs(tau)) * (abs(tau) <= magnitudes[-1])
            merged = merged + scaling_coef * stays * tau
        return merged

    return by_tensor(of_tensor)


def slow_consensus(theta, taus, tasks, threshold, scaling_coef):
    """[N] and [T, N], entry by entry."""
    merged = theta.copy()
    for i in range(len(theta)):
        total = sum(taus[:, i])
        votes = sum(abs(own) > threshold * abs(total - own) for own in taus[:, i])
        merged[i] += scaling_coef * total if votes >= tasks else 0
    return merged


def slow_magmax(theta, taus, scaling_coef):
    """[N] and [T, N], entry by entry."""
    merged = theta.copy()
    for i in range(len(theta)):
        size = max(abs(taus[:, i]))
        winners = {entry for entry in taus[:, i] if abs(entry) == size}
        merged[i] += scaling_coef * winners.pop() if len(winners) == 1 else 0
    return merged


def slow_lines(shallow, scaling_coef):
    def of_trees(theta, taus):
        merged = {}
        for path, leaf in theta.items():
            merged[path], total = leaf.copy(), sum(tau[path] for tau in taus)
            first = shallow / len(taus)
            if path.startswith("blocks/"):
                for layer in range(len(leaf)):
                    merged[path][layer] += (first + scaling_coef * layer / (len(leaf) - 1)) * total[layer]
            else:
                merged[path] = leaf + first * total
        return merged

    return of_trees


def slow_pcb(theta, taus, ratio, outliers, scaling_coef):
    """[N] and [T, N], by whole sorted vectors."""
    count = len(theta)
    weights, limited = [], []
    for tau in taus:
        ceiling = np.sort(abs(tau))[count - 1 - int(outliers * count)]
        small = np.minimum(abs(tau), ceiling)
        unit = (small - small.min()) / (small.max() - small.min())
        score = np.exp(len(taus) * unit**2) * np.tanh(tau * taus.sum(0))
        floor = np.sort(score)[max(0, count - 1 - max(1, round(ratio * count)))]
        weights.append((np.maximum(score, floor) - floor) / (score.max() - floor))
        limited.append(np.sign(tau) * small)
    shared = np.sum(weights, axis=0)
    won = shared > 0
    move = np.sum(np.multiply(weights, limited), axis=0)
    return theta + scaling_coef * np.divide(move, shared, out=np.zeros(count), where=won)


def slow_model_stock(theta, taus):
    """Of one tensor."""
    lengths = [np.linalg.norm(tau) for tau in taus]
    pairs = list(itertools.combinations(range(len(taus)), 2))
    cosine = sum(np.vdot(taus[a], taus[b]) / (lengths[a] * lengths[b] or 1) for a, b in pairs) / len(pairs)
    if cosine <= 0:
        return theta
    share = len(taus) * cosine / (1 + (len(taus) - 1) * cosine)
    return (1 - share) * theta + share * np.mean([theta + tau for tau in taus], axis=0)


def slow_slerp(share, scaling_coef):
    """In the plane of two vectors: a right angle's two legs, and a turn by a share of the angle between them."""

    def of_tensor(theta, taus):
        a, b = taus
        if not a.any() or not b.any():
            return theta + scaling_coef * ((1 - share) * a + share * b)
        along = np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
        if abs(along) > 0.9995:
            return theta + scaling_coef * ((1 - share) * a + share * b)
        across = math.sqrt(1 - along**2)
        turn = share * math.atan2(across, along)
        of_b = math.sin(turn) / across
        return theta + scaling_coef * ((math.cos(turn) - of_b * along) * a + of_b * b)

    return by_tensor(of_tensor)


def slow_karcher(scaling_coef):
    """A direction that is drawn to all, each in proportion to φ / sin φ, a little at a time until it stays."""

    def of_tensor(theta, taus):
        lengths = [np.linalg.norm(tau) for tau in taus]
        units = [tau / length for tau, length in zip(taus, lengths, strict=True) if length]
        if not units or np.linalg.norm(np.mean(units, axis=0)) < 1e-9:
            return theta
        mean = np.mean(units, axis=0) / np.linalg.norm(np.mean(units, axis=0))
        for _ in range(2000):
            cosines = [np.clip(np.vdot(mean, unit), -1, 1) for unit in units]
            weights = [0 if c < -1 + 1e-12 else math.acos(c) / math.sin(math.acos(c)) if c < 1 else 1 for c in cosines]
            mean = mean + 0.05 * sum(weight * unit for weight, unit in zip(weights, units, strict=True))
            mean = mean / np.linalg.norm(mean)
        return theta + scaling_coef * np.mean(lengths) * mean

    return by_tensor(of_tensor)


def slow_emr(theta, taus):
    """[N] and [T, N] to [T, N], the model of each task, entry by entry."""
    shared = []
    for entries in taus.T:
        sign = math.copysign(1, sum(entries)) if sum(entries) else 0
        shared.append(sign * max((abs(entry) for entry in entries if entry * sign > 0), default=0))
    models = []
    for tau in taus:
        own = np.array([entry if entry * mine > 0 else 0 for entry, mine in zip(shared, tau, strict=True)])
        models.append(theta + own * (sum(abs(tau)) / sum(abs(own)) if own.any() else 0))
    return np.array(models)


def slow_tall_masks(theta, taus, thresholds):
    """[N] and [T, N] to [T, N]: an entry of the sum where it is nearer to the task's own than θ₀ is, by a factor."""
    merged = theta + sum(taus)
    models = []
    for tau, threshold in zip(taus, thresholds, strict=True):
        tuned = theta + tau
        models.append(
            [m if abs(f - t) > threshold * abs(f - m) else t for m, f, t in zip(merged, tuned, theta, strict=True)]
        )
    return np.array(models)
