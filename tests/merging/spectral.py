"""Oracles of the methods that see spectra, in the papers' orientation: matrices are [out, in], one layer at a time."""

import numpy as np


def by_matrix(matrix, other=lambda leaves: leaves.mean(0), scaling_coef=1.0):
    """From `matrix(D [T, out, in]) -> [out, in]` to θ₀ + λ times its matrices, with `other` of what is no matrix."""

    def of_trees(theta, taus):
        merged = {}
        for path, before in theta.items():
            leaves = np.stack([tau[path] for tau in taus])
            if not path.endswith("kernel") or path.startswith("patch_embedding"):
                step = other(leaves)
            elif path.startswith("blocks"):
                step = np.stack([matrix(leaves[:, layer].transpose(0, 2, 1)).T for layer in range(len(before))])
            else:
                step = matrix(leaves.transpose(0, 2, 1)).T
            merged[path] = before + scaling_coef * step
        return merged

    return of_trees


def triplets(matrix):
    """Singular values, the largest first, each with its vectors, from the eigenvectors of D Dᵀ."""
    squares, left = np.linalg.eigh(matrix @ matrix.T)
    found = []
    for square, u in sorted(zip(squares, left.T, strict=True), key=lambda pair: -pair[0])[: min(matrix.shape)]:
        value = np.sqrt(max(square, 0))
        found.append((value, u, matrix.T @ u / value if value > 1e-7 else 0 * matrix[0]))
    return found


def low_rank(matrix, rank):
    return sum(value * np.outer(u, v) for value, u, v in triplets(matrix)[:rank])


def orthogonal(matrix):
    """D (DᵀD)^(−1/2), where the root is inverted on its range alone."""
    squares, vectors = np.linalg.eigh(matrix.T @ matrix)
    roots = [0 if square < 1e-12 * squares.max() else square**-0.5 for square in squares]
    return matrix @ (vectors * roots) @ vectors.T


def star(tasks, share):
    """Adds triplets until they have the share of the nuclear norm."""
    total = 0
    for task in tasks:
        found = triplets(task)
        whole, kept, part = sum(value for value, _, _ in found), 0, np.zeros_like(task)
        for value, u, v in found:
            if kept >= share * whole:
                break
            kept, part = kept + value, part + value * np.outer(u, v)
        total = total + (part * whole / kept if kept else 0)
    return total / len(tasks)


def tsv_m(tasks):
    kept = [triplet for task in tasks for triplet in triplets(task)[: max(1, min(task.shape) // len(tasks))]]
    left, right = (np.stack([triplet[side] for triplet in kept], axis=1) for side in (1, 2))
    return orthogonal(left) @ np.diag([value for value, _, _ in kept]) @ orthogonal(right).T


def iso_c(tasks):
    whole = sum(tasks)
    values = np.linalg.svd(whole, compute_uv=False)
    return orthogonal(whole) * values.sum() / max(1, np.linalg.matrix_rank(whole))


def iso_cts(tasks, common):
    size = min(tasks[0].shape)
    own = min(round((size - int(common * size)) / len(tasks)), size // len(tasks))
    kept = triplets(sum(tasks))[: size - own * len(tasks)]
    shared = np.stack([u for _, u, _ in kept], axis=1) if kept else np.zeros((len(tasks[0]), 0))
    for task in tasks:
        kept = kept + triplets(task - shared @ shared.T @ task)[:own]
    left, right = (np.stack([triplet[side] for triplet in kept], axis=1) for side in (1, 2))
    return orthogonal(left) @ orthogonal(right).T * np.mean([value for value, _, _ in kept])


def cart(tasks, rank, scaling_coef):
    mean = tasks.mean(0)
    kept = max(1, round(rank * min(mean.shape)))
    return mean + scaling_coef * sum(low_rank(task - mean, kept) for task in tasks)


def wudi(tasks, weights, ridge):
    """Row by row, each a problem of its own: min over x of Σ_t w_t ‖D_t (x − row of D_t)‖² + ρ ‖x − Σ rows‖²."""
    scales = [1.0 if weights == "one" else 1 / np.linalg.norm(task) for task in tasks]
    system = np.concatenate([scale * task for scale, task in zip(scales, tasks, strict=True)])
    inputs = system.shape[1]
    root = np.sqrt(ridge * np.linalg.norm(system) ** 2 / inputs)
    rows = []
    for row in range(len(tasks[0])):
        target = [scale * task @ task[row] for scale, task in zip(scales, tasks, strict=True)]
        target = np.concatenate([*target, root * sum(task[row] for task in tasks)])
        rows.append(np.linalg.lstsq(np.concatenate([system, root * np.eye(inputs)]), target, rcond=None)[0])
    return np.stack(rows)


def calibrated(merged, tasks, floor):
    """What SVC makes of a matrix that some method made of the tasks'."""
    total = 0
    for value, u, v in triplets(merged):
        ours = u @ merged
        shares = [(ours @ (u @ task)) / ((u @ task) @ (u @ task)) for task in tasks]
        total = total + len(tasks) / sum(max(floor, share) for share in shares) * value * np.outer(u, v)
    return total


def root_of_square(matrix):
    """(D Dᵀ)^½."""
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return (left * values) @ left.T


def common_basis(matrices, rank):
    """[side, K]: the leading eigenvectors of Σ (D Dᵀ)^½, of as many as T matrices of that rank can reach."""
    vectors = np.linalg.eigh(sum(map(root_of_square, matrices)))[1]
    return vectors[:, ::-1][:, : min(len(matrices) * rank, len(vectors))]


def in_core_space(merge, rank, scaling_coef=1.0):
    """From `merge(trees of T) -> tree`, which sees Uᵀ D V in place of matrices, to θ₀ + λ U (…) Vᵀ."""

    def of_trees(theta, taus):
        bases, small = {}, [dict(tau) for tau in taus]
        for path in theta:
            if path.endswith("kernel") and not path.startswith("patch_embedding"):
                layers = [np.reshape(tau[path], (-1, *np.shape(tau[path])[-2:])) for tau in taus]
                each = [[matrices[layer] for matrices in layers] for layer in range(len(layers[0]))]
                depth = min(rank, *np.shape(theta[path])[-2:])
                bases[path] = [
                    (common_basis(of_layer, depth), common_basis([d.T for d in of_layer], depth)) for of_layer in each
                ]
                for tau, matrices in zip(small, layers, strict=True):
                    cores = np.stack([u.T @ d @ v for (u, v), d in zip(bases[path], matrices, strict=True)])
                    tau[path] = cores if path.startswith("blocks") else cores[0]
        merged = merge(small)
        for path, pairs in bases.items():
            cores = merged[path] if path.startswith("blocks") else [merged[path]]
            whole = [u @ core @ v.T for (u, v), core in zip(pairs, cores, strict=True)]
            merged[path] = np.reshape(whole, np.shape(theta[path]))
        return {path: before + scaling_coef * merged[path] for path, before in theta.items()}

    return of_trees
