"""Divide the tests into shards of about equal length, whole modules to a shard.

Modules stay whole because their tests share what takes long to make. The division
depends on the tests alone, so shards on several machines are parts of the same whole.
"""

from collections import Counter

import pytest

# Minutes of measurements say: a tenth of the tests takes nine tenths of the time.
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
    """Return about how long a test takes, in units of a fast one."""
    return max(
        (weight for name, weight in WEIGHTS.items() if item.get_closest_marker(name)),
        default=1,
    )


def divide(weights: dict, count: int) -> dict:
    """Return the shard, 1 to `count`, of each name: heaviest first to the lightest."""
    loads = dict.fromkeys(range(1, count + 1), 0)
    shards = {}
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        lightest = min(loads, key=loads.__getitem__)
        shards[name] = lightest
        loads[lightest] += weights[name]
    return shards
