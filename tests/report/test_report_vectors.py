"""Tables of kernel behaviour, geometry and fitted heads, by hand."""

from tajax.report import geometry, heads, kernel

BASE = {"config_hash": "0", "regime": "attention", "model": "tiny", "seed": 0}


def behaviour(task, coef, gap, **more):
    measures = {"norm": 3 * coef, "relative_movement": 0.5 * coef, "top1": 0.9, "linearized_top1": 0.7}
    place = {"stage": "kernel_behaviour", "task": task, "split": "test", "scaling_coef": coef, "relative_gap": gap}
    return BASE | place | measures | {"agreement": 0.75, "count": 10} | more


def test_kernel_behaviour_is_shown_at_one_and_averaged_at_every_coefficient():
    records = [behaviour(task, coef, gap * coef) for task, gap in (("a", 0.2), ("b", 0.4)) for coef in (2.0, 0.5, 1.0)]
    (table,) = kernel.tables(records)
    assert "θ₀ + 1 τ" in table.title
    assert table.rows == (
        ("a", "3.00", "0.200", "0.500", "90.0", "70.0", "75.0"),
        ("b", "3.00", "0.400", "0.500", "90.0", "70.0", "75.0"),
        ("mean", "3.00", "0.300", "0.500", "90.0", "70.0", "75.0"),
    )
    (curve,) = kernel.curves(records)
    assert [row[:2] for row in curve.rows] == [("0.5", "0.150"), ("1", "0.300"), ("2", "0.600")]
    (end,) = kernel.tables([behaviour("a", 0.25, 0.1)])
    assert "θ₀ + 0.25 τ" in end.title


def test_geometry_by_hand():
    """Two vectors at 60 degrees; 9 and 4 of the squared norm in the one module, whose weights were zero before."""
    cosines = [[1.0, 0.5], [0.5, 1.0]]
    whole = {"module": "all", "norms": [5.0, 4.0], "pretrained_norm": 10.0, "cosines": cosines, "parameters": 400}
    layers = {
        "layer_norms": [[3.0, 4.0], [1.0, 0.0]],
        "layer_pretrained_norms": [8.0, 0.0],
        "layer_cosines": [0.25, None],
    }
    part = {"module": "blocks", "norms": [3.0, 2.0], "pretrained_norm": 0.0, "cosines": [[1.0, None], [None, None]]}
    records = [BASE | {"stage": "run", "trained_parameters": 100}]
    records += [
        BASE | {"stage": "geometry", "tasks": ["a", "b"]} | r for r in (whole, part | layers | {"parameters": 25})
    ]
    between, by_layer = geometry.tables(records)
    assert between.rows == (("a", "1.000", "0.500"), ("b", "0.500", "1.000"), ("‖τ‖", "5.00", "4.00"))
    assert "pairs of tasks: 0.500" in between.notes[0] and "0 ± 0.1000" in between.notes[0]
    assert by_layer.rows == (("0", "2.000", "25.0", "0.250"), ("1", "2.000", "–", "–"))
    (modules,) = geometry.modules(records)
    assert modules.rows == (
        ("all", "400", "4.500", "100.0", "45.0", "0.23", "0.500"),
        ("blocks", "25", "2.500", "30.5", "–", "0.5", "–"),  # (9/25 + 4/16) / 2
    )


def test_a_head_whose_fit_was_cut_short_is_marked():
    head = {"stage": "head", "task": "a", "regularization": 1e-6, "images": 2000, "train_top1": 0.9, "val_top1": 0.8}
    (table,) = heads.tables([BASE | head | {"converged": True}, BASE | head | {"task": "b", "converged": False}])
    assert table.rows == (("a", "1e-06", "2000", "90.0", "80.0"), ("b", "1e-06 !", "2000", "90.0", "80.0"))
    assert "tolerance" in table.notes[-1]


def test_records_of_other_stages_give_no_table():
    records = [BASE | {"stage": "zero_shot", "task": "a", "split": "test", "top1": 0.5}]
    for tables in (kernel.tables, kernel.curves, geometry.tables, geometry.modules, heads.tables):
        assert tables(records) == []
