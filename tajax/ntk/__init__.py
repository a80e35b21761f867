"""The empirical neural tangent kernel: its blocks, its spectrum, and where its leading eigenfunctions live."""

from tajax.ntk.kernel import MemoryTooSmallError, empirical_ntk, make_ntk, ntk_vector_product, project_outputs
from tajax.ntk.localization import (
    Mixture,
    Nystrom,
    Operator,
    energy_share,
    make_ntk_operator,
    matrix_operator,
    mixture_reading,
    nystrom_reading,
    separation,
)
from tajax.ntk.spectrum import (
    Spectrum,
    cosine_kernel,
    eigenfunctions,
    eigenfunctions_of_product,
    energies,
    extend,
)

__all__ = [
    "MemoryTooSmallError",
    "Mixture",
    "Nystrom",
    "Operator",
    "Spectrum",
    "cosine_kernel",
    "eigenfunctions",
    "eigenfunctions_of_product",
    "empirical_ntk",
    "energies",
    "energy_share",
    "extend",
    "make_ntk",
    "make_ntk_operator",
    "matrix_operator",
    "mixture_reading",
    "ntk_vector_product",
    "nystrom_reading",
    "project_outputs",
    "separation",
]
