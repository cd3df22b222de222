"""The measures tell classes that stand apart from classes that do not, and leakage."""

import numpy as np
import pytest

from medjax.errors import UserError
from medjax.evaluation.separation import classifier_accuracy, silhouettes

pytest.importorskip("sklearn")


def clouds(count, distance, seed, classes=2, dimensions=8):
    """Return points of classes whose centres lie on axes, `distance` from 0."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = distance * np.eye(classes, dimensions)
    # One dimension has another unit, which must not count for more.
    scale = np.ones(dimensions)
    scale[-1] = 1e4
    points = (centres[labels] + rng.normal(size=(count, dimensions))) * scale
    return points.astype(np.float32), labels


def test_perfect_images_are_classified_as_held_out_ones():
    measures = classifier_accuracy(*clouds(300, 2, 0), *clouds(3000, 2, 1))
    real, generated = (measures[f"classifier_accuracy{x}"] for x in ("_real", ""))
    assert real == pytest.approx(generated, abs=0.05)
    assert 0.85 < generated < 1
    assert measures["classifier_accuracy_chance"] == 0.5


def test_a_class_that_was_not_obeyed_is_at_chance():
    generated, labels = clouds(600, 3, 1, classes=3)
    shuffled = np.random.default_rng(0).permutation(labels)
    measures = classifier_accuracy(*clouds(300, 3, 0, classes=3), generated, shuffled)
    assert measures["classifier_accuracy"] == pytest.approx(1 / 3, abs=0.07)
    assert measures["classifier_accuracy_real"] > 0.9
    assert measures["classifier_accuracy_chance"] == pytest.approx(1 / 3)


def test_rare_classes_count_as_much_as_frequent_ones():
    # Without a difference to see, the frequent class is always the answer.
    real, _ = clouds(300, 0, 0)
    labels = (np.arange(300) % 10 == 0).astype(int)
    measures = classifier_accuracy(real, labels, real, labels)
    assert measures["classifier_accuracy_real"] < 0.6


def test_slices_of_a_held_out_patient_are_not_learned():
    # The patient can be seen, the class cannot: it is drawn for each patient.
    rng = np.random.default_rng(0)
    patients = np.arange(400) // 10
    own = 5 * rng.normal(size=(40, 60))
    features = own[patients] + rng.normal(size=(400, 60))
    labels = (rng.permutation(40) % 2)[patients]
    leaking = classifier_accuracy(features, labels, features, labels)
    names = [f"patient {number}" for number in patients]
    honest = classifier_accuracy(features, labels, features, labels, names)
    assert leaking["classifier_accuracy_real"] > 0.9
    assert honest["classifier_accuracy_real"] < 0.7


def test_the_same_seed_gives_the_same_numbers():
    data = (*clouds(100, 1, 0), *clouds(50, 1, 1))
    first, again = (classifier_accuracy(*data, seed=3) for _ in range(2))
    assert first == again
    assert first != classifier_accuracy(*data, seed=4)


@pytest.mark.parametrize(
    ("labels", "generated", "message"),
    [
        ([0, 0, 0, 1], [0, 1], "two classes of at least two groups"),
        ([0, 0, 0, 0], [0, 0], "two classes of at least two groups"),
        ([0, 0, 1, 1], [0, 7], r"classes \[7\], but no real image"),
    ],
)
def test_what_cannot_be_divided_is_an_error(labels, generated, message):
    with pytest.raises(UserError, match=message):
        classifier_accuracy(
            np.zeros((4, 2)), np.array(labels), np.zeros((2, 2)), np.array(generated)
        )


def test_silhouettes_rise_as_classes_part():
    apart = [silhouettes(*clouds(200, d, 0))["silhouette_real"] for d in (0, 3, 30)]
    assert apart == sorted(apart)
    assert abs(apart[0]) < 0.05
    measures = silhouettes(*clouds(200, 3, 0), *clouds(100, 3, 1))
    assert measures["silhouette"] == pytest.approx(
        measures["silhouette_real"], abs=0.03
    )


def test_silhouettes_are_by_hand_for_four_points():
    points = np.array([[0.0], [1.0], [10.0], [11.0]])
    # a = 1 for all; b = 10.5, 9.5, 9.5, 10.5.
    expected = np.mean([1 - 1 / 10.5, 1 - 1 / 9.5])
    measures = silhouettes(points, np.array([0, 0, 1, 1]))
    assert measures["silhouette_real"] == pytest.approx(expected)


def test_one_class_has_no_silhouette():
    points = np.arange(4.0).reshape(4, 1)
    for labels in ([0, 0, 0, 0], [0, 1, 2, 3]):
        assert np.isnan(silhouettes(points, np.array(labels))["silhouette_real"])
