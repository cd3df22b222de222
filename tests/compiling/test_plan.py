"""The plan of a TPU's compiler: its files, its figures and its process."""

import os
import signal

import jax
import jax.numpy as jnp
import pytest

from medjax.compiling.compiled import compile_program
from medjax.compiling.hlo import parse_program
from medjax.compiling.operations import count_kernels, count_operations
from medjax.compiling.plan import plan_program, read_plan
from medjax.compiling.process import call_in_process
from medjax.compiling.run_programs import RunProgram
from medjax.compiling.topologies import find_topology
from medjax.compiling.traffic import measure_traffic
from medjax.errors import UserError

PROGRAM = "module_0.jit_f.after_optimizations_after_buffer_assignment.txt"
ALLOCATIONS = "module_0.jit_f.after_optimizations-buffer-assignment.txt"
LIST = """BufferAssignment:
allocation 0: size 512, page 0, thread-local:
allocation 1: size 4000, page 0, parameter 1, shape |f32[10,100]| at ShapeIndex {}:
 value: <15 w.1 @0> (size=4000,offset=0): f32[10,100]{1,0:T(8,128)}
allocation 2: size 800, page 0, parameter 0, maybe-live-out, shape |f32[200]| at …:
allocation 3: size 70, page 0, maybe-live-out:
allocation 4: size 8, page 0, output shape is |(f32[200], f32[70])|, maybe-live-out:
allocation 5: size 16, page 0, constant:
allocation 6: size 6000, page 0, preallocated-temp:
allocation 7: size 9999, color 1, page 0, preallocated-temp:
"""
CONVOLUTION = """HloModule m

%fused (p0: bf16[2,8,8,3], p1: bf16[3,3,3,5]) -> bf16[2,4,4,5] {
  %p0 = bf16[2,8,8,3]{3,2,1,0} parameter(0)
  %p1 = bf16[3,3,3,5]{3,2,1,0} parameter(1)
  %c = bf16[2,4,4,5]{3,2,1,0} convolution(%p0, %p1), window={size=3x3 pad=1_0x1_0 \
stride=2x2}, dim_labels=b01f_01io->b01f
  ROOT %n = bf16[2,4,4,5]{3,2,1,0} negate(%c)
}

ENTRY %main (a: bf16[2,8,8,3], k: bf16[3,3,3,5], m: f32[6,7]) -> f32[6,9] {
  %a = bf16[2,8,8,3]{3,2,1,0} parameter(0)
  %k = bf16[3,3,3,5]{3,2,1,0} parameter(1)
  %m = f32[6,7]{1,0} parameter(2)
  %f = bf16[2,4,4,5]{3,2,1,0} fusion(%a, %k), kind=kOutput, calls=%fused
  %w = f32[7,9]{1,0} custom-call(%m), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"block_q": "512"
}}, backend_config={"cost_estimate":{"bytes_accessed":"1000","flops":"300"}}
  ROOT %d = f32[6,9]{1,0} dot(%m, %w), lhs_contracting_dims={1}
}
"""


def test_a_plan_is_read_when_both_files_are_complete(tmp_path):
    assert read_plan(tmp_path) is None
    (tmp_path / ALLOCATIONS).write_text(LIST)
    assert read_plan(tmp_path) is None
    # Half of the file, up to a line that ends with a bracket.
    (tmp_path / PROGRAM).write_text(CONVOLUTION[: CONVOLUTION.index("\n  ROOT %d")])
    assert read_plan(tmp_path) is None
    (tmp_path / PROGRAM).write_text(f"{CONVOLUTION}\n")
    plan = read_plan(tmp_path)
    assert plan.argument_bytes == 4800
    assert plan.output_bytes == 78
    assert plan.temporary_bytes == 6016


def test_operations_are_counted_by_hand():
    program = parse_program(CONVOLUTION)
    # Along an axis, 4 outputs meet 3 pixels each but one, at the edge.
    pairs = (4 * 3 - 1) ** 2
    outputs = 2 * 4 * 4 * 5
    product = 2 * 6 * 7 * 9
    assert count_operations(program) == 2 * 2 * 5 * 3 * pairs + outputs + 300 + product
    assert count_kernels(program) == 1
    fused = 2 * (2 * 8 * 8 * 3 + 3 * 3 * 3 * 5 + outputs)
    assert measure_traffic(program).hbm == fused + 1000 + 4 * (42 + 63 + 54)


def refused(text):
    raise UserError(text)


def killed(number):
    os.kill(os.getpid(), number)


@pytest.mark.ci
def test_another_process_gives_its_result_or_its_error():
    assert call_in_process(divmod, 17, 5) == (3, 2)
    with pytest.raises(UserError, match=r"^v9: unknown$"):
        call_in_process(refused, "v9: unknown")
    with pytest.raises(UserError, match="ended with SIGKILL"):
        call_in_process(killed, signal.SIGKILL)


def repeated(x, w):
    """Six products in a loop, and one beside it."""
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, 6)[0] @ w


def failing():
    raise KeyError("a bug")


@pytest.mark.ci
def test_a_bug_in_another_process_is_not_an_error_of_the_user(capfd):
    with pytest.raises(RuntimeError, match="ended with code 1"):
        call_in_process(failing)
    assert "KeyError: 'a bug'" in capfd.readouterr().err


def too_large(topology):
    """A program with 26 GB of arguments and as many of results."""
    mesh = jax.sharding.Mesh(topology.devices, ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((200_000, 65_536), jnp.bfloat16, sharding=sharding)
    return RunProgram("step", jax.jit(jnp.tanh), (x,), images=1)


@pytest.mark.ci
def test_a_program_that_does_not_fit_says_what_it_needs(tmp_path, monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    found = compile_program(too_large, find_topology("v6e:1"), tmp_path)
    assert found.flops is None
    assert found.needed_bytes == pytest.approx(2 * 2 * 200_000 * 65_536, rel=0.01)


def planned(folder):
    """Return figures of the plan, and the compiler's own of the whole program."""
    topology = find_topology("v6e:1")
    mesh = jax.sharding.Mesh(topology.devices, ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=sharding)
    lowered = jax.jit(repeated).trace(x, x).lower(lowering_platforms=("tpu",))
    plan = plan_program(lowered, folder)
    program = parse_program(plan.text)
    traffic = measure_traffic(program)
    compiled = lowered.compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    ours = (
        count_operations(program),
        traffic.once,
        plan.argument_bytes,
        plan.output_bytes,
        plan.temporary_bytes,
    )
    theirs = (
        cost["flops"],
        cost["bytes accessed"],
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
    )
    return ours, theirs


@pytest.mark.ci
def test_the_plan_has_the_figures_of_the_compiled_program(tmp_path, monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    ours, theirs = call_in_process(planned, tmp_path)
    # The compiler counts a loop once: two products of seven.
    assert ours[0] == pytest.approx(7 / 2 * theirs[0], rel=0.01)
    # The compiler's count is higher by two arrays; we do not know which.
    assert ours[1] == pytest.approx(theirs[1], rel=0.2)
    assert ours[2:4] == theirs[2:4]
    assert ours[4] == pytest.approx(theirs[4], abs=2**16)
