r"""Measure which operations take the time of a training step on the CPU.

medjax and torch take turns with the steps of `bench.step`, under their own profilers.

    python -m bench.breakdown                             twenty minutes, 13 GiB
    python -m bench.breakdown --network=tiny --size=64    a minute, to try it out
"""

import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bench import report
from bench.competitors import make_medjax
from bench.networks import DTYPES, UNETS, Settings, check_choices
from bench.report import Row, Spread
from bench.torch_steps import make_torch
from bench.workers import WARM_UP
from medjax.errors import UserError

# Kind of an operation, by the first pattern found in its name. The name is the module
# path for medjax, and the operator for torch.
PRODUCTS, ATTENTION, OTHER = "products with kernels", "attention", "other"
NORMS, UPDATE = "normalization", "clipping and AdamW"
OURS = {
    r"^(?!.*jvp\()": UPDATE,
    r"/attn\d/(?!to_)": ATTENTION,
    r"norm\w*/": NORMS,
}
TORCH = {
    r"conv|addmm|::mm$|::bmm$": PRODUCTS,
    r"attention": ATTENTION,
    r"group_norm|layer_norm": NORMS,
    r"adamw|_foreach|vector_norm|::mul_$": UPDATE,
}
IDLE = "none of these"
KINDS = (PRODUCTS, ATTENTION, NORMS, UPDATE, OTHER, IDLE)
PACKAGES = ("jax", "jaxlib", "diffusers", "torch", "numpy")
ABOUT = """
The time of each kind of operation in a training step of a ControlNet, on the CPU. The
steps are those of `bench.step`, here under the profiler of each library, which slows
them down a little.

* **medjax**, **torch**: seconds, as median (smallest–largest) of all steps. If several
  operations run at the same time, as in XLA, they share the time equally.
* **products with kernels**: dense layers and convolutions, forward and backward, with
  the operations fused into them. **attention**: its two products and the softmax
  between them, or torch's single operator. **none of these**: no operation ran; this is
  Python and waiting.
* **gap**: seconds of medjax minus seconds of torch.
"""
# Start and end in nanoseconds, and name of the operation.
Event = tuple[float, float, str]


def shared(threads: Iterable[Iterable[Event]]) -> dict[str, float]:
    """Return each operation's part of the time. Several may run at the same time.

    Args:
        threads: Events of each thread. Two events of a thread are nested or disjoint.
            The innermost event is the operation that runs.

    Returns:
        Seconds by operation. Their sum is the time in which any operation ran.
    """
    changes = []
    for number, events in enumerate(threads):
        for start, end, name in events:
            if end > start:
                # At the same time, ends come first, and longer events begin first.
                changes += [(end, 0, 0.0, number, name), (start, 1, -end, number, name)]
    running: dict[int, list[str]] = defaultdict(list)
    seconds: defaultdict[str, float] = defaultdict(float)
    before = 0.0
    for now, begins, _, number, name in sorted(changes):
        innermost = [names[-1] for names in running.values() if names]
        for each in innermost:
            seconds[each] += (now - before) / len(innermost) / 1e9
        before = now
        if begins:
            running[number].append(name)
        else:
            running[number].pop()
    return dict(seconds)


def kinds_of_instructions(hlo: str) -> dict[str, str]:
    """Return the kind of each instruction of a compiled module, by its name.

    A fusion that contains a product is a product. The origin of the last operation
    decides the kind of all other instructions.
    """
    computations: dict[str, str] = {}
    for header, body in re.findall(r"^(\S[^\n]*) \{\n(.*?)^\}", hlo, re.M | re.S):
        name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", header)
        if name:
            computations[name[1]] = body
    kinds = {}
    pattern = re.compile(r"^ *(?:ROOT )?%?([\w.\-]+) = (.*)$", re.M)
    for name, text in (
        found for body in computations.values() for found in pattern.findall(body)
    ):
        called = re.search(r"calls=%?([\w.\-]+)", text)
        within = text + (computations.get(called[1], "") if called else "")
        path = re.search(r'op_name="([^"]*)"', text)
        if re.search(r" dot\(.*batch_dims={\d", within):
            kinds[name] = ATTENTION
        elif re.search(r" (dot|convolution)\(", within):
            kinds[name] = PRODUCTS
        else:
            kinds[name] = _kind(path[1], OURS) if path else OTHER
    return kinds


def _kind(name: str, patterns: Mapping[str, str]) -> str:
    found = (kind for pattern, kind in patterns.items() if re.search(pattern, name))
    return next(found, OTHER)


def trace_medjax(settings: Settings, steps: int) -> list[dict[str, float]]:
    """Return the seconds of each kind, and of IDLE, in each step of medjax.

    It requires a new process, in which jax has not computed yet.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XLA_FLAGS"] = (
            f"--xla_dump_to={folder}/hlo --xla_dump_hlo_as_text "
            "--xla_dump_hlo_module_re=.*sharded_step.*"
        )
        import jax

        # XLA does not dump programs that it loads from the cache.
        jax.config.update("jax_enable_compilation_cache", False)
        step = make_medjax(settings)
        for _ in range(WARM_UP):
            step()
        (module,) = Path(folder, "hlo").glob("*after_optimizations.txt")
        kinds = kinds_of_instructions(module.read_text(encoding="utf-8"))
        return [
            _by_kind(step, Path(folder, f"{number}"), kinds) for number in range(steps)
        ]


def _by_kind(
    step: Callable[[], float], folder: Path, kinds: Mapping[str, str]
) -> dict[str, float]:
    import jax

    with jax.profiler.trace(str(folder)):
        start = time.perf_counter()
        step()
        wall = time.perf_counter() - start
    (path,) = folder.rglob("*.xplane.pb")
    threads = [
        [
            (event.start_ns, event.end_ns, str(stats["hlo_op"]))
            for event in line.events
            if "hlo_op" in (stats := dict(event.stats))
        ]
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines
    ]
    seconds: defaultdict[str, float] = defaultdict(float)
    for name, spent in shared(threads).items():
        seconds[kinds[name]] += spent
    return _whole(seconds, wall)


def trace_torch(settings: Settings, steps: int) -> list[dict[str, float]]:
    """Return the same for the steps of torch, which runs one operator at a time."""
    from torch.profiler import ProfilerActivity, profile

    step = make_torch(settings)
    for _ in range(WARM_UP):
        step()
    found = []
    for _ in range(steps):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            start = time.perf_counter()
            step()
            wall = time.perf_counter() - start
        seconds: defaultdict[str, float] = defaultdict(float)
        for operator in profiler.key_averages():
            kind = _kind(operator.key, TORCH)
            seconds[kind] += operator.self_cpu_time_total / 1e6
        found.append(_whole(seconds, wall))
    return found


def _whole(seconds: Mapping[str, float], wall: float) -> dict[str, float]:
    """Return the seconds of all kinds. IDLE gets the rest of the step."""
    return {kind: seconds.get(kind, 0.0) for kind in KINDS if kind != IDLE} | {
        IDLE: wall - sum(seconds.values())
    }


def measure(settings: Settings, steps: int, turns: int) -> list[Row]:
    """Return a row for each kind, and one for the whole step."""
    tracers = {"medjax": trace_medjax, "torch": trace_torch}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in tracers}
    for _ in range(turns):
        for name, trace in tracers.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found[name] += pool.submit(trace, settings, steps).result()
    kinds = {kind: (kind,) for kind in KINDS} | {"the step": KINDS}
    rows: list[Row] = []
    for title, parts in kinds.items():
        spent = {
            name: Spread(tuple(sum(one[part] for part in parts) for one in every))
            for name, every in found.items()
        }
        gap = spent["medjax"].median - spent["torch"].median
        rows.append({"seconds of": title, **spent, "gap": gap})
    return rows


def main() -> Path:
    """Measure as the flags say, and return the page that it writes."""
    flags = report.parser(__doc__)
    flags.add_argument("--network", choices=sorted(UNETS), default="sd15")
    flags.add_argument("--size", type=int, default=256, help="pixels (%(default)s)")
    flags.add_argument("--steps", type=int, default=2, help="per turn (%(default)s)")
    flags.add_argument("--turns", type=int, default=3, help="of each (%(default)s)")
    given = flags.parse_args()
    report.check_counts(given, "size", "steps", "turns")
    check_choices(given.network, given.size, DTYPES)
    report.need(("torch", "diffusers"), "the comparison")
    on = report.machine()
    if on.accelerated:
        raise UserError("bench.breakdown measures only the CPU; set JAX_PLATFORMS=cpu")
    tables = {}
    for dtype in DTYPES:
        settings = Settings(given.network, given.size, batch=1, dtype=dtype)
        caption = f"{given.network}, {given.size}², batch 1, {dtype}"
        tables[caption] = measure(settings, given.steps, given.turns)
    return report.write_results(
        "breakdown" if given.network == "sd15" else f"breakdown-{given.network}",
        "Operations of a training step",
        ABOUT,
        tables,
        on,
        PACKAGES,
        given.out,
    )


if __name__ == "__main__":
    report.run(main)
