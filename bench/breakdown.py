r"""Measure what a training step on the CPU spends its time on, ours beside torch's.

Both take the steps of `bench.step`, under their own profilers, in turns.

    python -m bench.breakdown                             ten minutes, 13 GiB
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
from bench.competitors import make_medjax, make_torch
from bench.networks import DTYPES, UNETS, Settings, check_choices
from bench.report import Row, Spread
from bench.workers import WARM_UP
from medjax.errors import UserError

# What an operation does, by the first pattern that is found in what it is called: ours
# by the path of the modules that it comes from, torch's by the operator.
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
What the seconds of one update of a ControlNet go to, on the CPU: the steps that
`bench.step` races, here under each library's own profiler, which slows them a little.

* **medjax**, **torch**: seconds; of all steps the median (least–largest). Where several
  operations run at once, as XLA's do, each is given its part of the time.
* **products with kernels**: of dense layers and convolutions, forward and backward,
  with what is fused into them. **attention**: its two products, the softmax between
  them, and where torch has one operator for it, that. **none of these**: no operation
  ran; Python, and waiting.
* **gap**: how much longer ours takes.
"""
# Start and end in nanoseconds, and what ran.
Event = tuple[float, float, str]


def shared(threads: Iterable[Iterable[Event]]) -> dict[str, float]:
    """Return each operation's part of the time, where several may run at once.

    Args:
        threads: Events; those of one thread are within each other or apart. The
            innermost is what runs.

    Returns:
        Seconds by operation. They add up to the time in which any ran.
    """
    changes = []
    for number, events in enumerate(threads):
        for start, end, name in events:
            if end > start:
                # At the same instant ends come first, then the longest begins.
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
    """Return what each instruction of a compiled module does, by its name.

    A fusion with a product in it is a product; all else is of where its last operation
    comes from.
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
    """Return the seconds of each kind, and IDLE, in each of our steps.

    For a process of its own, in which jax has not computed yet.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XLA_FLAGS"] = (
            f"--xla_dump_to={folder}/hlo --xla_dump_hlo_as_text "
            "--xla_dump_hlo_module_re=.*sharded_step.*"
        )
        import jax

        # What was compiled before is not written out.
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
    """Return the same of torch's steps, one operator of which runs at a time."""
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
    """Return the seconds of all kinds, with what is left of the step."""
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
    """Measure as the flags say; return the page that is written."""
    flags = report.parser(__doc__)
    flags.add_argument("--network", choices=sorted(UNETS), default="sd15")
    flags.add_argument("--size", type=int, default=256, help="of images (%(default)s)")
    flags.add_argument("--steps", type=int, default=2, help="of a turn (%(default)s)")
    flags.add_argument("--turns", type=int, default=3, help="of each (%(default)s)")
    given = flags.parse_args()
    report.check_counts(given, "size", "steps", "turns")
    check_choices(given.network, given.size, DTYPES)
    report.need(("torch", "diffusers"), "the comparison")
    on = report.machine()
    if on.accelerated:
        raise UserError("this is about the CPU; JAX_PLATFORMS=cpu makes jax use it")
    tables = {}
    for dtype in DTYPES:
        settings = Settings(given.network, given.size, batch=1, dtype=dtype)
        caption = f"{given.network}, {given.size}², batch 1, {dtype}"
        tables[caption] = measure(settings, given.steps, given.turns)
    return report.write_results(
        "breakdown" if given.network == "sd15" else f"breakdown-{given.network}",
        "What the time of a training step goes to",
        ABOUT,
        tables,
        on,
        PACKAGES,
        given.out,
    )


if __name__ == "__main__":
    report.run(main)
