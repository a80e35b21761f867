"""Merging methods: many task vectors, one model. Each is `(pretrained, taus, *, ...) -> params`, pure and jittable."""

from __future__ import annotations

from tajax.merging.method import FitFn, Method, check_data, compiled
from tajax.merging.methods.adamerging import adamerging, fit_adamerging
from tajax.merging.methods.atlas import atlas, fit_atlas
from tajax.merging.methods.breadcrumbs import breadcrumbs
from tajax.merging.methods.cart import cart
from tajax.merging.methods.consensus import consensus
from tajax.merging.methods.core_space import core_space
from tajax.merging.methods.dare import dare
from tajax.merging.methods.della import della
from tajax.merging.methods.exact_coefficients import exact_coefficients, fit_exact_coefficients
from tajax.merging.methods.fisher import fisher, fit_fisher
from tajax.merging.methods.iso_c import iso_c
from tajax.merging.methods.iso_cts import iso_cts
from tajax.merging.methods.karcher import karcher
from tajax.merging.methods.lines import lines
from tajax.merging.methods.localize_and_stitch import localize_and_stitch
from tajax.merging.methods.localize_few_shot import fit_localize_few_shot, localize_few_shot
from tajax.merging.methods.magmax import magmax
from tajax.merging.methods.model_stock import model_stock
from tajax.merging.methods.pcb import pcb
from tajax.merging.methods.regmean import fit_regmean, regmean
from tajax.merging.methods.regmean_plusplus import fit_regmean_plusplus, regmean_plusplus
from tajax.merging.methods.slerp import slerp
from tajax.merging.methods.star import star
from tajax.merging.methods.svc import svc
from tajax.merging.methods.task_arithmetic import task_arithmetic
from tajax.merging.methods.ties import ties
from tajax.merging.methods.tsv_m import tsv_m
from tajax.merging.methods.weight_average import weight_average
from tajax.merging.methods.wudi import wudi
from tajax.merging.per_task import PerTask, emr, tall_masks
from tajax.merging.preparation import PREPARATIONS, Preparation, compose
from tajax.merging.table import METHODS
from tajax.options import Option

__all__ = [
    "FitFn",
    "METHODS",
    "Method",
    "Option",
    "PREPARATIONS",
    "PerTask",
    "Preparation",
    "adamerging",
    "atlas",
    "breadcrumbs",
    "cart",
    "check_data",
    "compiled",
    "compose",
    "consensus",
    "core_space",
    "dare",
    "della",
    "emr",
    "exact_coefficients",
    "fisher",
    "fit_adamerging",
    "fit_atlas",
    "fit_exact_coefficients",
    "fit_fisher",
    "fit_localize_few_shot",
    "fit_regmean",
    "fit_regmean_plusplus",
    "iso_c",
    "iso_cts",
    "karcher",
    "lines",
    "localize_and_stitch",
    "localize_few_shot",
    "magmax",
    "model_stock",
    "pcb",
    "regmean",
    "regmean_plusplus",
    "slerp",
    "star",
    "svc",
    "tall_masks",
    "task_arithmetic",
    "ties",
    "tsv_m",
    "weight_average",
    "wudi",
]
