"""Competitors that take no time, for tests of the turns in their processes."""

import itertools
import time

from bench.workers import Counted


def make_ours(settings):
    return Counted(lambda: float(settings.batch), lambda: 4e9)


def make_without_compiler(settings):
    if settings.torch_mode != "eager":
        raise ValueError("no compiler was found")
    return lambda: 2.0


def make_large(settings):
    raise MemoryError("CUDA out of memory")


def make_endless(settings):
    return lambda: time.sleep(600)


def make_stalling(settings):
    steps = itertools.count()

    def step():
        if next(steps) == 3:
            time.sleep(600)
        return float(settings.batch)

    return step
