"""Compiled programs as text: loops, traffic, and bytes between chips."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medjax.compiling.hlo import array_types, parse_program
from medjax.compiling.traffic import group_size, measure_traffic

LOOP = """HloModule m

%fused (p0: f32[4,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[4,8]{1,0:T(8,128)S(1)} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %ds = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
}

%body (b: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %b = (s32[]{:T(128)}, /*index=1*/f32[4,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%b), index=1
  %slice = f32[1,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused
  %sum = f32[4,8]{1,0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%i, %sum)
}

%condition (c: (s32[], f32[4,8])) -> pred[] {
  %c = (s32[], f32[4,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant(5)
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}, execution_thread="sparsecore"

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %start = s32[] constant(0)
  %both = (s32[], f32[4,8]{1,0}) tuple(%start, %a)
  %loop = (s32[], f32[4,8]{1,0}) while(%both), condition=%condition, body=%body
  %out = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %copy = f32[4,8]{1,0} copy(%out)
}
"""
ARRAY = 4 * 8 * 4


def test_a_loop_runs_as_often_as_its_condition_says():
    runs = [(one.name, times) for one, times in parse_program(LOOP).runs()]
    assert runs == [("main", 1), ("body", 5)]


def test_traffic_is_counted_by_hand():
    found = measure_traffic(parse_program(LOOP))
    copy, slices, reduced = 2 * ARRAY, 2 * 8 * 4 + 4, 2 * ARRAY
    assert found.once == copy + slices + reduced
    assert found.hbm == copy + 5 * (slices + reduced)
    # A ring of two sends half an array to reduce it and half to spread it.
    assert found.links == {"all-reduce": 5 * ARRAY}


def test_a_known_number_of_rounds_wins():
    known = LOOP.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    )
    assert [times for _, times in parse_program(known).runs()] == [1, 7]


def test_types_have_sizes():
    text = "(bf16[20,3]{1,0}, f32[3,20]{0,1:T(8,128)S(1)}, s8[]{:T(512)}, pred[])"
    # The fastest axis, the one of 3, is padded to 128, and the one of 20 to 24.
    sizes = [2 * 20 * 3, 4 * 24 * 128, 512, 1]
    assert [one.bytes for one in array_types(text)] == sizes


SCATTER = """HloModule m

%all-reduce-scatter.1 (p0: f32[4,8]) -> f32[2,8] {
  %p0 = f32[4,8]{1,0} parameter(0)
  %sum = f32[4,8]{1,0} all-reduce(%p0), replica_groups={{0,1}}, to_apply=%add
  ROOT %part = f32[2,8]{1,0} dynamic-slice(%sum), dynamic_slice_sizes={2,8}
}

ENTRY %main (a: f32[4,8]) -> f32[2,8] {
  %a = f32[4,8]{1,0} parameter(0)
  ROOT %f = f32[2,8]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_sum_that_is_scattered_is_sent_once():
    found = measure_traffic(parse_program(SCATTER))
    assert found.links == {"reduce-scatter": ARRAY / 2}


@pytest.mark.parametrize(
    ("attributes", "count"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}, x", 3),
        ("replica_groups=[2,4]<=[8], x", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}, x", 8),
        ("channel_id=1", 1),
    ],
)
def test_groups_of_chips_are_read(attributes, count):
    assert group_size(attributes) == count


def test_a_text_without_entry_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse_program("HloModule m\n")


def test_a_program_of_this_machine_is_read():
    """A scan of products: traffic grows with its length, nothing is sent."""

    def traffic(length):
        def repeated(x, w):
            return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length)[0]

        x = jnp.ones((32, 32))
        text = jax.jit(repeated).lower(x, x).compile().as_text()
        return measure_traffic(parse_program(text))

    short, long = traffic(8), traffic(80)
    assert short.links == {}
    assert long.hbm > 8 * short.hbm
    assert long.once == pytest.approx(short.once, rel=0.2)


@pytest.mark.ci
def test_a_program_of_a_tpu_that_is_not_there_is_read():
    """Each of two chips has half the rows of a product, so nothing is sent."""
    pytest.importorskip("libtpu")
    from medjax.compiling.topologies import find_topology

    topology = find_topology("v6e:2x2")
    assert len(topology.devices) == 4
    mesh = jax.make_mesh(
        (2,), ("x",), axis_types=(AxisType.Auto,), devices=topology.devices[:2]
    )

    def repeated(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, 6)[0]

    def shape(spec):
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=sharding)

    given = shape(PartitionSpec("x")), shape(PartitionSpec())
    lowered = jax.jit(repeated).trace(*given).lower(lowering_platforms=("tpu",))
    compiled = lowered.compile()
    program = parse_program(compiled.as_text())
    assert 6 in [times for _, times in program.runs()]
    assert measure_traffic(program).links == {}
    assert compiled.cost_analysis()["flops"] >= 2 * 128 * 256 * 256
