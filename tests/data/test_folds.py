"""Folds hold every group once, on one side, whatever the order."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest

from medjax.data.config import DataConfig
from medjax.data.folds import check_disjoint, fold_numbers
from medjax.data.phantoms import PhantomsConfig
from medjax.data.pipeline import open_dataset
from medjax.errors import UserError

PHANTOMS = DataConfig(image_size=16, phantoms=PhantomsConfig(count=16), folds=3)


def ids(fold, split):
    source = open_dataset(dataclasses.replace(PHANTOMS, fold=fold), split)
    return [source[i]["id"] for i in range(len(source))]


@pytest.mark.ci
def test_each_record_is_held_out_once_and_learnt_from_else():
    held_out = [ids(fold, "validation") for fold in range(3)]
    plain = dataclasses.replace(PHANTOMS, folds=0)
    all_ids = [
        open_dataset(plain, split)[i]["id"]
        for split, count in (("train", 16), ("validation", 2))
        for i in range(count)
    ]
    assert sorted(itertools.chain(*held_out)) == sorted(all_ids)
    for fold in range(3):
        assert set(ids(fold, "train")) == set(all_ids) - set(held_out[fold])
        assert len(held_out[fold]) == 6


def test_what_is_for_testing_stays():
    plain = dataclasses.replace(PHANTOMS, folds=0)
    source = open_dataset(plain, "test")
    assert ids(1, "test") == [source[i]["id"] for i in range(len(source))]


def test_a_group_is_in_one_fold_and_folds_are_alike():
    random = np.random.default_rng(0)
    groups = [f"patient {number}" for number in random.integers(0, 40, 300)]
    numbers = fold_numbers(groups, 5)
    folds = {group: set() for group in groups}
    for group, number in zip(groups, numbers, strict=True):
        folds[group].add(number)
    assert all(len(found) == 1 for found in folds.values())
    each = np.bincount([found.copy().pop() for found in folds.values()])
    assert each.max() - each.min() <= 1


def test_the_order_of_records_changes_nothing():
    groups = [f"r{number}" for number in range(20)]
    there = dict(zip(groups, fold_numbers(groups, 4), strict=True))
    back = dict(zip(groups[::-1], fold_numbers(groups[::-1], 4), strict=True))
    assert there == back


def test_folds_reach_worker_processes():
    source = open_dataset(PHANTOMS, "train")
    assert pickle.loads(pickle.dumps(source))[3]["id"] == source[3]["id"]


def test_too_many_folds_are_refused():
    with pytest.raises(UserError, match="2 groups"):
        fold_numbers(["a", "b", "a"], 3)


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (3, 3), (0, 1), (-1, 0)])
def test_folds_that_are_none_are_refused(folds, fold):
    with pytest.raises(UserError, match="fold"):
        DataConfig(folds=folds, fold=fold)


def test_a_patient_on_two_sides_is_refused():
    check_disjoint(["a", "b"], ["c"])
    with pytest.raises(UserError, match="2 groups .*: b, c; "):
        check_disjoint(["a", "c", "b", "b"], ["c", "b", "d"])
