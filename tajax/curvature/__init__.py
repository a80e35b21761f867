"""The curvature of tasks at θ₀, E‖J(x)τ‖² as a quadratic form in τ: in factors, of any encoder.

`roles` says how the curvature of each parameter is kept, by what it does (`tajax.tracing`), `factors` makes the factors
from examples without labels, `penalty` measures a change of the parameters with them, `files` keeps them, and `measure`
does this for a task of a run.
"""
