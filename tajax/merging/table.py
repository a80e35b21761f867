"""The merging methods: a row has all that a run needs to know of one, and is the only place that names it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

from tajax.merging.coefficients import Granularity
from tajax.merging.matrices import TEXT_PROJECTION
from tajax.merging.method import Method
from tajax.merging.methods.adamerging import adamerging, fit_adamerging
from tajax.merging.methods.atlas import atlas, fit_atlas
from tajax.merging.methods.breadcrumbs import breadcrumbs, check_breadcrumbs
from tajax.merging.methods.cart import cart
from tajax.merging.methods.consensus import check_consensus, consensus
from tajax.merging.methods.core_space import core_space
from tajax.merging.methods.dare import dare, thin_first
from tajax.merging.methods.della import check_della, della, prune_first
from tajax.merging.methods.exact_coefficients import exact_coefficients, fit_exact_coefficients
from tajax.merging.methods.fisher import Labels, fisher, fit_fisher
from tajax.merging.methods.iso_c import iso_c
from tajax.merging.methods.iso_cts import iso_cts
from tajax.merging.methods.karcher import karcher
from tajax.merging.methods.lines import lines
from tajax.merging.methods.localize_and_stitch import localize_and_stitch
from tajax.merging.methods.localize_few_shot import fit_localize_few_shot, localize_few_shot
from tajax.merging.methods.magmax import magmax
from tajax.merging.methods.model_stock import check_model_stock, model_stock
from tajax.merging.methods.pcb import pcb
from tajax.merging.methods.regmean import fit_regmean, regmean
from tajax.merging.methods.regmean_plusplus import fit_regmean_plusplus, regmean_plusplus
from tajax.merging.methods.slerp import check_slerp, slerp
from tajax.merging.methods.star import star
from tajax.merging.methods.svc import svc
from tajax.merging.methods.task_arithmetic import task_arithmetic
from tajax.merging.methods.ties import Agreement, ties, trim_first
from tajax.merging.methods.tsv_m import tsv_m
from tajax.merging.methods.weight_average import weight_average
from tajax.merging.methods.wudi import Weights, wudi
from tajax.merging.svd import Algorithm
from tajax.merging.wrapped import Wrapped
from tajax.options import Option

_OFF_DIAGONAL = Option(
    0.95, "γ, what products of different inputs are multiplied by", lambda v: 0 <= v <= 1, "a factor between 0 and 1"
)

_STEPS: tuple[Callable[[Any], bool], str] = (lambda v: v >= 1, "1 or more")
_RATE: tuple[Callable[[Any], bool], str] = (lambda v: 0 < v < math.inf, "a finite number above 0")
_SPAN = "what a coefficient is of, each task or each layer of each leaf and task"

_FUSED = Option(False, "whether query, key and value are one matrix, as open_clip and the paper's code keep them")
_EXCLUDE = Option(TEXT_PROJECTION, "pattern of matrices that are averaged, by default as the paper's code does")
_SVD = Option("exact", "how the leading singular vectors of a task are found", choices=get_args(Algorithm))

METHODS: Mapping[str, Method] = {
    "adamerging": Method(
        adamerging,
        affine=True,
        scaled=False,
        layered=True,
        needs="inputs",
        fit=fit_adamerging,
        fit_options={
            "granularity": Option("layer", _SPAN, choices=get_args(Granularity)),
            "steps": Option(500, "of Adam, a batch of each task a step", *_STEPS),
            "learning_rate": Option(1e-3, "of Adam", *_RATE),
            "initial": Option(0.3, "where coefficients begin", lambda v: 0 <= v <= 1, "a number between 0 and 1"),
        },
    ),
    "atlas": Method(
        atlas,
        affine=True,
        scaled=False,
        layered=True,
        needs="labels",
        fit=fit_atlas,
        fit_options={
            "granularity": Option("layer", _SPAN, choices=get_args(Granularity)),
            "steps": Option(320, "of AdamW, a batch of each task a step", *_STEPS),
            "learning_rate": Option(1e-3, "of AdamW", *_RATE),
            "weight_decay": Option(0.1, "of AdamW", lambda v: 0 <= v < math.inf, "a finite number, 0 or above"),
        },
    ),
    "breadcrumbs": Method(
        breadcrumbs,
        options={
            "smallest": Option(
                0.85, "share of entries, the smallest of each tensor, dropped", lambda v: 0 <= v < 1, "a share below 1"
            ),
            "largest": Option(
                0.007, "share of entries, the largest of each tensor, dropped", lambda v: 0 <= v < 1, "a share below 1"
            ),
        },
        affine=True,
        layered=True,
        by_leaf=True,
        usual_coef=0.3,
        check=check_breadcrumbs,
    ),
    "cart": Method(
        cart,
        options={
            "rank": Option(
                0.08, "share of ranks that CART keeps of a task", lambda v: 0 < v <= 1, "a share above 0, at most 1"
            ),
            "svd": _SVD,
            "fused": _FUSED,
        },
        layered=True,
        by_leaf=True,
    ),
    "consensus": Method(
        consensus,
        options={
            "tasks": Option(2, "how many tasks must want an entry that stays", lambda v: v >= 0, "0 or more"),
            "threshold": Option(
                0.4, "the larger, the fewer entries a task wants", lambda v: 0 < v < math.inf, "a finite number above 0"
            ),
        },
        affine=True,
        by_leaf=True,
        usual_coef=0.3,
        check=check_consensus,
    ),
    "core_space": Method(
        core_space,
        options={
            "merge": Option("ties", "the method that merges cores", choices=get_args(Wrapped)),
            "rank": Option(0, "r of the tasks' matrices; 0: what they have", lambda v: v >= 0, "0 or more"),
        },
        affine=True,
        layered=True,
        eager=True,
    ),
    "dare": Method(
        dare,
        options={
            "drop_rate": Option(0.5, "share of entries that DARE drops", lambda v: 0 <= v < 1, "a share below 1"),
        },
        affine=True,
        random=True,
        by_leaf=True,
        alone=thin_first,
        usual_coef=0.3,
    ),
    "della": Method(
        della,
        options={
            "drop_rate": Option(0.3, "share of entries that DELLA drops", lambda v: 0 <= v < 1, "a share below 1"),
            "window": Option(
                0.14,
                "by how much more often small entries are dropped than large ones",
                lambda v: 0 <= v < 1,
                "a share below 1",
            ),
        },
        affine=True,
        random=True,
        layered=True,
        by_leaf=True,
        alone=prune_first,
        check=check_della,
    ),
    "exact_coefficients": Method(
        exact_coefficients,
        affine=True,
        scaled=False,
        needs="labels",
        fit=fit_exact_coefficients,
        fit_options={"upper": Option(1.0, "the largest coefficient", lambda v: 0 < v < math.inf, "above 0")},
        models="linearized",
    ),
    "fisher": Method(
        fisher,
        options={"floor": Option(1e-6, "the least Fisher information of an entry", lambda v: v > 0, "above 0")},
        affine=True,
        scaled=False,
        needs="labels",
        fit=fit_fisher,
        fit_options={
            "labels": Option(
                "expected", "classes that are averaged over, the model's own or the true ones", choices=get_args(Labels)
            )
        },
    ),
    "iso_c": Method(
        iso_c,
        options={"fused": _FUSED, "exclude": _EXCLUDE},
        affine=True,
        layered=True,
        by_leaf=True,
        usual_coef=1.5,
    ),
    "iso_cts": Method(
        iso_cts,
        options={
            "common": Option(
                0.8, "share of directions that tasks have in common", lambda v: 0 <= v <= 1, "a share, at most 1"
            ),
            "svd": _SVD,
            "fused": _FUSED,
            "exclude": _EXCLUDE,
        },
        affine=True,
        layered=True,
        by_leaf=True,
        usual_coef=1.5,
    ),
    "karcher": Method(
        karcher,
        options={
            "iterations": Option(10, "steps to the mean direction at most", lambda v: v >= 1, "1 or more"),
            "tolerance": Option(1e-5, "length of the last step", lambda v: 0 < v < math.inf, "a finite number above 0"),
        },
        affine=True,
        layered=True,
        by_leaf=True,
    ),
    "lines": Method(
        lines,
        options={
            "shallow": Option(
                1.0,
                "coefficient of the first layers, times the number of tasks",
                lambda v: 0 <= v < math.inf,
                "a finite number, 0 or more",
            ),
        },
        layered=True,
        usual_coef=0.5,
    ),
    "localize_and_stitch": Method(
        localize_and_stitch,
        options={
            "density": Option(
                0.1, "share of entries that each task keeps", lambda v: 0 < v <= 1, "a share above 0, at most 1"
            ),
        },
        affine=True,
        scaled=False,
        by_leaf=True,
        alone=trim_first,
    ),
    "localize_few_shot": Method(
        localize_few_shot,
        affine=True,
        scaled=False,
        needs="labels",
        fit=fit_localize_few_shot,
        fit_options={
            "density": Option(
                0.01,
                "share of entries that a task's mask begins with, and ends with at most",
                lambda v: 0 < v <= 1,
                "a share above 0, at most 1",
            ),
            "steps": Option(10, "of gradient descent, all examples of a task a step", *_STEPS),
            "learning_rate": Option(1e7, "of gradient descent", *_RATE),
            "l1_strength": Option(
                1e-7,
                "λ, of the mask's norm beside the loss",
                lambda v: 0 <= v < math.inf,
                "a finite number, 0 or above",
            ),
            "initial": Option(5.0, "score of entries that begin marked, minus that of others", *_RATE),
        },
    ),
    "magmax": Method(magmax, affine=True, by_leaf=True, usual_coef=0.5),
    "model_stock": Method(model_stock, affine=True, scaled=False, layered=True, by_leaf=True, check=check_model_stock),
    "pcb": Method(
        pcb,
        options={
            "ratio": Option(
                0.1,
                "share of entries of each task that have a weight",
                lambda v: 0 < v <= 1,
                "a share above 0, at most 1",
            ),
            "outliers": Option(
                1e-4, "share of largest magnitudes that are limited", lambda v: 0 <= v < 1, "a share below 1"
            ),
        },
        affine=True,
        usual_coef=1.2,
    ),
    "regmean": Method(
        regmean,
        options={"off_diagonal": _OFF_DIAGONAL},
        affine=True,
        scaled=False,
        needs="inputs",
        fit=fit_regmean,
    ),
    "regmean_plusplus": Method(
        regmean_plusplus,
        options={"off_diagonal": _OFF_DIAGONAL},
        affine=True,
        scaled=False,
        needs="inputs",
        fit=fit_regmean_plusplus,
        fit_options={"off_diagonal": _OFF_DIAGONAL},
    ),
    "slerp": Method(
        slerp,
        options={
            "share": Option(
                0.5, "how far from the first task to the second", lambda v: 0 <= v <= 1, "a share between 0 and 1"
            ),
        },
        affine=True,
        layered=True,
        by_leaf=True,
        check=check_slerp,
    ),
    "star": Method(
        star,
        options={
            "share": Option(
                0.4, "share of the nuclear norm that STAR keeps", lambda v: 0 < v <= 1, "a share above 0, at most 1"
            ),
        },
        affine=True,
        layered=True,
        by_leaf=True,
    ),
    "svc": Method(
        svc,
        options={
            "merge": Option("task_arithmetic", "the method that SVC calibrates", choices=get_args(Wrapped)),
            "floor": Option(
                0.0,
                "the least that a task counts, α; 0: 1/T, and 1 for tsv_m",
                lambda v: v >= 0,
                "a number, not negative",
            ),
            "fused": _FUSED,
        },
        affine=True,
        layered=True,
    ),
    "task_arithmetic": Method(task_arithmetic, affine=True, by_leaf=True, usual_coef=0.3),
    "ties": Method(
        ties,
        options={
            "density": Option(
                0.2, "share of entries that TIES keeps", lambda v: 0 < v <= 1, "a share above 0, at most 1"
            ),
            "merge": Option(
                "mean",
                "what TIES makes of entries that agree, the paper's mean or fusion_bench's sum",
                choices=get_args(Agreement),
            ),
        },
        affine=True,
        by_leaf=True,
        alone=trim_first,
    ),
    "tsv_m": Method(
        tsv_m,
        options={"svd": _SVD, "fused": _FUSED, "exclude": _EXCLUDE},
        affine=True,
        layered=True,
        by_leaf=True,
    ),
    "weight_average": Method(weight_average, affine=True, by_leaf=True, scaled=False),
    "wudi": Method(
        wudi,
        options={
            "weights": Option(
                "norm", "of a task: 1/‖τ‖² of each matrix, for WUDI, or one, for ACTMat", choices=get_args(Weights)
            ),
            "ridge": Option(
                1.0,
                "how strongly the sum holds what the tasks' matrices leave open",
                lambda v: 0 <= v < math.inf,
                "a finite number, 0 or more",
            ),
            "fused": _FUSED,
        },
        affine=True,
        layered=True,
        by_leaf=True,
    ),
}
"""Every method by the name that configs and records use: a row has all that a run needs to know of it."""
