"""The curvature of tasks at θ₀, E‖J(x)τ‖² as a quadratic form in τ: in factors, of any encoder.

`tracing` reads off an encoder's program what each of its parameters does, `roles` says how its curvature is kept,
`factors` makes the factors from examples without labels, `penalty` measures a change of the parameters with them,
`files` keeps them, and `measure` does this for a task of a run.
"""
