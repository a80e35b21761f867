"""Communication read off programs that were written by hand."""

import jax
import jax.numpy as jnp
import pytest

from experiments.scale import hlo
from experiments.scale.collectives import Collective, collectives, shape_bytes

ADD = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""

BODY = """
%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  %held = s32[]{:T(128)S(6)} copy(%i)
  %next = s32[] add(%held, %one)
  %a = f32[4,8]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %r = f32[4,8]{1,0:T(8,128)} all-reduce(%a), channel_id=1, replica_groups=mesh['axis_0'=8] {'axis_0'}, to_apply=%add
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%next, %r)
}
"""

LIMIT = """
%until (p: (s32[], f32[4,8])) -> pred[] {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %end = s32[] constant(11)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %end), direction=LT, metadata={op_name="while/cond (lt)"}
}
"""

LOOP = """
ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %zero = s32[] constant(START)
  %kept = s32[] copy(%zero)
  %x = f32[4,8]{1,0} parameter(0)
  %both = (s32[], f32[4,8]{1,0}) tuple(%kept, %x)
  %loop = (s32[], f32[4,8]{1,0}) while(%both), condition=%until, body=%body, metadata={op_name="a"}TOLD
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def program(start="0", told="", body=BODY, limit=LIMIT):
    return "HloModule m\n" + ADD + body + limit + LOOP.replace("START", start).replace("TOLD", told)


def test_what_stands_in_a_loop_is_executed_as_often_as_that_turns():
    counted = program()
    told = program(told=', backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}')
    assert collectives(counted) == (Collective("all-reduce", 1, 11, 11 * 4 * 8 * 4),)
    assert collectives(told) == (Collective("all-reduce", 1, 5, 5 * 4 * 8 * 4),)


def test_the_counter_of_a_loop_may_begin_late_take_larger_steps_or_never_turn():
    wide = BODY.replace("constant(1)", "constant(2)")
    assert collectives(program(start="1"))[0].executions == 10
    assert collectives(program(body=wide))[0].executions == 6
    assert collectives(program(start="11"))[0].executions == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"limit": LIMIT.replace("direction=LT", "direction=NE")},
        {"limit": LIMIT.replace("constant(11)", "floor(%x)")},
        {"body": BODY.replace("add(%held, %one)", "multiply(%held, %one)")},
        {"body": BODY.replace("constant(1)", "constant(0)")},
        {"body": BODY.replace("get-tuple-element(%p), index=0", "get-tuple-element(%p), index=2")},
    ],
)
def test_a_loop_whose_length_cannot_be_told_makes_numbers_unknown_and_not_wrong(changed):
    assert collectives(program(**changed)) == (Collective("all-reduce", 1, None, None),)


def test_a_limit_that_the_loop_carries_unchanged_is_known():
    carried = (
        program(
            body="""
%body (p: (s32[], f32[4,8], s32[])) -> (s32[], f32[4,8], s32[]) {
  %p = (s32[], f32[4,8]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %a = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %n = s32[] get-tuple-element(%p), index=2
  %r = f32[4,8]{1,0} all-reduce(%a), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  ROOT %t = (s32[], f32[4,8]{1,0}, s32[]) tuple(%next, %r, %n)
}
""",
            limit=LIMIT.replace("%end = s32[] constant(11)", "%end = s32[] get-tuple-element(%p), index=2"),
        )
        .replace("tuple(%kept, %x)", "tuple(%kept, %x, %three)")
        .replace("  %kept = ", "  %three = s32[] constant(3)\n  %kept = ")
    )
    assert collectives(carried)[0].executions == 3


STRAIGHT = (
    ADD
    + """
%wrapped (a: f32[16]) -> f32[128] {
  %a = f32[16]{0} parameter(0)
  ROOT %g = f32[128]{0} all-gather(%a), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (x: f32[4,8], y: bf16[6], z: f32[16]) -> f32[] {
  %x = f32[4,8]{1,0} parameter(0)
  %y = bf16[6]{0} parameter(1)
  %z = f32[16]{0} parameter(2)
  %several = (f32[4,8]{1,0}, bf16[6]{0}) all-reduce(%x, %y), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  %s = f32[4,8]{1,0} all-reduce-start(%x), channel_id=2, replica_groups={{0,1}}, to_apply=%add
  %d = f32[4,8]{1,0} all-reduce-done(%s)
  %begun = ((f32[16]{0}), f32[128]{0}, u32[]) async-start(%z), calls=%wrapped
  %g = f32[128]{0} async-done(%begun), calls=%wrapped
  %rs = f32[4,2]{1,0} reduce-scatter(%x), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %m = f32[4,2]{1,0} reduce-scatter(%x), channel_id=5, replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
  %half = ((f32[4,8]{1,0}), f32[2,8]{1,0}) reduce-scatter-start(%x), channel_id=6, replica_groups=[4,2]<=[8]
  %end = f32[2,8]{1,0} reduce-scatter-done(%half)
  ROOT %c = f32[] constant(0)
}
"""
)


def test_kinds_numbers_and_bytes_of_a_program_without_loops():
    """One that reduces two arrays is one; one in two halves is one; scattered results count as the whole array."""
    assert collectives(STRAIGHT) == (
        Collective("all-reduce", 2, 2, (4 * 8 * 4 + 6 * 2) + 4 * 8 * 4),
        Collective("all-gather", 1, 1, 128 * 4),
        Collective("reduce-scatter", 3, 3, 3 * (4 * 8 * 4)),
    )


def test_groups_that_are_not_understood_are_refused():
    with pytest.raises(ValueError, match="replica_groups"):
        collectives(STRAIGHT.replace("replica_groups={{0,1,2,3},{4,5,6,7}}", "replica_groups=all"))


def test_bytes_of_shapes():
    assert shape_bytes("pred[3]{0}") == 3
    assert shape_bytes("f8e4m3fn[2,2]{1,0:T(8,128)(4,1)}") == 4
    assert shape_bytes("s32[]{:T(128)S(6)}") == 4
    assert shape_bytes("token[]") == 0


def test_a_program_of_this_machine_executes_the_products_of_its_loop():
    """What XLA writes today is read, too."""

    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    x, weights = jnp.ones((32, 64)), jnp.ones((7, 64, 64))
    text = jax.jit(layers).lower(x, weights).compile().as_text()
    loops = [times for line, times in hlo.parse(text).executed() if line.operation == "tanh"]
    assert loops and all(times is not None and times % 7 == 0 for times in loops)


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no program"):
        collectives("HloModule empty")
