"""Divide the tests into shards of about equal duration, without splitting modules.

Modules are not split, because their tests share fixtures that take long to make. The
division depends only on the tests, so shards on several machines fit together.
"""

from collections import Counter

import pytest

# As measured: a tenth of the tests takes nine tenths of the time.
WEIGHTS = {"release": 30, "ci": 10}


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shard",
        type=parse,
        metavar="K/N",
        help="run the k-th of n parts of the tests, k from 1 to n",
    )


def parse(text: str) -> tuple[int, int]:
    """Return (k, n) of ``k/n``."""
    number, count = map(int, text.split("/"))
    if not 1 <= number <= count:
        raise ValueError(f"--shard={text}: expected K/N, K from 1 to N")
    return number, count


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of the other shards."""
    if config.getoption("--shard") is None:
        return
    number, count = config.getoption("--shard")
    weights = Counter()
    for item in items:
        weights[item.path] += weight(item)
    shards = divide(weights, count)
    others = [item for item in items if shards[item.path] != number]
    items[:] = [item for item in items if shards[item.path] == number]
    config.hook.pytest_deselected(items=others)


def weight(item: pytest.Item) -> int:
    """Return the approximate duration of a test, in units of a fast one."""
    return max(
        (weight for name, weight in WEIGHTS.items() if item.get_closest_marker(name)),
        default=1,
    )


def divide(weights: dict, count: int) -> dict:
    """Return each name's shard, 1 to `count`: the heaviest first, to the lightest."""
    loads = dict.fromkeys(range(1, count + 1), 0)
    shards = {}
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        lightest = min(loads, key=loads.__getitem__)
        shards[name] = lightest
        loads[lightest] += weights[name]
    return shards
