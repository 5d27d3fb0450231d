import numpy as np
import pytest
from scipy.linalg import sqrtm

from kerasdl.metrics import generated_pictures
from kerasdl.metrics.generated_pictures import frechet_distance, modes_hit, nearest_neighbours, precision_and_recall


def rng(seed=0):
    return np.random.default_rng(seed)


def sample(mean, covariance, examples=200, seed=0):
    """Examples whose mean and covariance are exactly the given ones."""
    drawn = rng(seed).standard_normal((examples, len(mean)))
    drawn -= drawn.mean(axis=0)
    drawn = np.linalg.solve(np.linalg.cholesky(np.cov(drawn, rowvar=False)), drawn.T).T
    return mean + drawn @ np.linalg.cholesky(covariance).T


def random_covariance(size, seed):
    root = rng(seed).standard_normal((size, size + 2))
    return root @ root.T


# --- Fréchet distance ----------------------------------------------------------------------------


def test_distance_of_one_feature_is_that_of_means_and_deviations():
    a = np.array([[1.0], [3.0]])  # mean 2, deviation sqrt(2)
    b = np.array([[2.0], [5.0], [8.0]])  # mean 5, deviation 3
    assert frechet_distance(a, b) == pytest.approx((2 - 5) ** 2 + (np.sqrt(2) - 3) ** 2)


def test_distance_of_independent_features_is_the_sum():
    a = sample([0, 1, 2], np.diag([1.0, 4.0, 9.0]))
    b = sample([1, 1, 0], np.diag([4.0, 4.0, 25.0]), examples=50, seed=1)
    assert frechet_distance(a, b) == pytest.approx((1 + 0 + 4) + (1 + 0 + 4))


def test_distance_of_correlated_features_equals_the_equation():
    mean_a, mean_b = rng(1).standard_normal((2, 6))
    cov_a, cov_b = random_covariance(6, 2), random_covariance(6, 3)
    difference = cov_a @ cov_b - cov_b @ cov_a
    assert np.abs(difference).max() > 1  # else the root would be that of the separate ones
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    a, b = sample(mean_a, cov_a), sample(mean_b, cov_b, seed=1)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_a_set_has_no_distance_to_itself_in_any_order():
    features = rng().standard_normal((300, 40)).astype(np.float32) ** 3
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-9)


def test_constant_and_dependent_features_and_few_examples_do_no_harm():
    a, b = rng(0).standard_normal((12, 3)), 1 + 2 * rng(1).standard_normal((15, 3))
    expected = frechet_distance(a, b)
    turn = np.linalg.qr(rng(2).standard_normal((40, 40)))[0]
    wide_a, wide_b = (np.pad(x, ((0, 0), (0, 37)), constant_values=7) @ turn for x in (a, b))
    assert frechet_distance(wide_a, wide_b) == pytest.approx(expected, rel=1e-9)


def test_a_far_mean_does_not_drown_the_distance():
    a, b = rng(0).standard_normal((50, 4)), 2 * rng(1).standard_normal((50, 4))
    assert frechet_distance(a + 1e5, b + 1e5) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_distance_grows_with_damage_and_has_a_floor():
    real, other, noise = rng(0).standard_normal((3, 2000, 8))
    floor = frechet_distance(real, other)
    damaged = [frechet_distance(real, other + strength * noise) for strength in (0.5, 1, 2)]
    assert 0 < floor < 0.2 * damaged[0] < damaged[0] < damaged[1] < damaged[2]
    collapsed = np.tile(real[:1], (2000, 1))
    assert frechet_distance(real, collapsed) > 8


# --- precision and recall ------------------------------------------------------------------------


def covered_oracle(points, by, k):
    """Kynkäänniemi et al. 2019, equation 1, point by point."""
    radius = [sorted(np.linalg.norm(by - own, axis=1))[k] for own in by]  # the first is its own distance, 0
    inside = [
        any(np.linalg.norm(point - own) <= r for own, r in zip(by, radius, strict=True)) for point in np.float64(points)
    ]
    return np.mean(inside)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("generated_examples", [60, 45])
def test_precision_and_recall_equal_the_equations(monkeypatch, k, generated_examples):
    monkeypatch.setattr(generated_pictures, "_WORKING_MEMORY", 0.004)  # some ten rows at once
    real = rng(0).standard_normal((60, 3)).astype(np.float32)
    generated = (1 + 0.8 * rng(1).standard_normal((generated_examples, 3))).astype(np.float32)
    expected = {"precision": covered_oracle(generated, real, k), "recall": covered_oracle(real, generated, k)}
    assert expected["recall"] != expected["precision"]
    assert all(0.1 < share < 1 for share in expected.values())
    assert precision_and_recall(real, generated, num_neighbours=k) == pytest.approx(expected)


def test_precision_and_recall_by_hand():
    real = np.array([[0.0], [1.0], [3.0], [10.0]])  # radii with one neighbour: 1, 1, 2, 7
    generated = np.array([[-0.9], [5.5], [17.1], [30.0]])  # radii: 6.4, 6.4, 11.6, 12.9
    assert precision_and_recall(real, generated, num_neighbours=1) == {"precision": 2 / 4, "recall": 4 / 4}
    assert precision_and_recall(generated, real, num_neighbours=1) == {"precision": 4 / 4, "recall": 2 / 4}


def test_identical_sets_have_full_precision_and_recall():
    real = rng().standard_normal((100, 16))
    assert precision_and_recall(real, real[::-1].copy()) == {"precision": 1, "recall": 1}


def test_real_beside_real_is_high_and_failures_show_where_they_should():
    real, other = rng().standard_normal((2, 400, 4))
    floor = precision_and_recall(real, other)
    assert min(floor.values()) > 0.85
    collapsed = real[:1] + 1e-3 * rng(1).standard_normal((400, 4))
    assert precision_and_recall(real, collapsed) == {"precision": 1, "recall": pytest.approx(0, abs=0.01)}
    half = np.concatenate([other[other[:, 0] > 0], np.abs(rng(2).standard_normal((400, 4)))])[:400]
    scores = precision_and_recall(real, half)
    assert scores["precision"] > 0.85
    assert scores["recall"] < 0.75
    noise = 20 * rng(3).standard_normal((400, 4))
    assert precision_and_recall(real, noise)["precision"] < 0.02


@pytest.mark.parametrize("measure", [frechet_distance, precision_and_recall])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((9, 3)), np.zeros((9, 4)), "with the same features"),
        (np.zeros((9, 2, 2)), np.zeros((9, 2, 2)), "flatten them"),
        (np.zeros((9, 3)), np.zeros((1, 3)), "at least [24] examples"),
        (np.zeros((9, 3)), np.full((9, 3), np.nan), "not finite"),
        (np.full((9, 3), np.inf), np.zeros((9, 3)), "not finite"),
    ],
)
def test_features_that_do_not_fit_are_refused(measure, a, b, message):
    with pytest.raises(ValueError, match=message):
        measure(a, b)


# --- nearest neighbours --------------------------------------------------------------------------


def test_nearest_neighbours_equal_a_search_of_all():
    generated = rng(0).integers(0, 256, (7, 4, 4, 3), np.uint8)
    training = rng(1).integers(0, 256, (50, 4, 4, 3), np.uint8)
    every = np.sqrt(np.sum((generated[:, None].astype(float) - training) ** 2, axis=(2, 3, 4)))
    index, distance = nearest_neighbours(generated, training, num_neighbours=3)
    np.testing.assert_array_equal(index, np.argsort(every, axis=1)[:, :3])
    np.testing.assert_allclose(distance, np.sort(every, axis=1)[:, :3], rtol=1e-6)
    assert distance.dtype == np.float64
    index, distance = nearest_neighbours(generated, training)
    np.testing.assert_array_equal(index, every.argmin(axis=1)[:, None])
    np.testing.assert_allclose(distance, every.min(axis=1)[:, None], rtol=1e-6)


def test_a_copy_is_found_at_no_distance():
    training = rng(0).integers(0, 256, (40, 28, 28, 1), np.uint8)
    index, distance = nearest_neighbours(training[[31, 4]], training)
    assert index.tolist() == [[31], [4]]
    assert distance.tolist() == [[0], [0]]
    changed = training[[31]].copy()
    changed[0, 3, 3, 0] ^= 128
    assert nearest_neighbours(changed, training)[1].tolist() == [[128]]


@pytest.mark.parametrize(
    ("generated", "training", "count"),
    [((2, 4, 4, 1), (5, 4, 4, 3), 1), ((0, 4), (5, 4), 1), ((2, 4), (2, 4), 3), ((2, 4), (0, 4), 1)],
)
def test_examples_that_cannot_be_searched_are_refused(generated, training, count):
    with pytest.raises(ValueError, match="expected examples of the same shape"):
        nearest_neighbours(np.zeros(generated), np.zeros(training), num_neighbours=count)


# --- modes ---------------------------------------------------------------------------------------


def test_modes_by_hand():
    training = np.repeat([0, 1, 2, 5], [40, 20, 20, 20])
    generated = np.array([0, 0, 0, 5])
    assert modes_hit(generated, training) == pytest.approx(
        {
            "modes_hit": 2,
            "class_entropy_nats": -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)),
            "class_kl_nats": 0.75 * np.log(0.75 / 0.4) + 0.25 * np.log(0.25 / 0.2),
        }
    )


def test_equal_shares_have_no_divergence_and_a_collapse_has_the_largest():
    training = np.arange(1000) % 10
    assert modes_hit(np.arange(70) % 10, training) == pytest.approx(
        {"modes_hit": 10, "class_entropy_nats": np.log(10), "class_kl_nats": 0}, abs=1e-12
    )
    collapsed = modes_hit(np.full(70, 3), training)
    assert collapsed == pytest.approx({"modes_hit": 1, "class_entropy_nats": 0, "class_kl_nats": np.log(10)})


@pytest.mark.parametrize(("generated", "training"), [([1, 7], [0, 1, 2]), ([], [0, 1]), ([0], [])])
def test_classes_that_training_lacks_are_refused(generated, training):
    with pytest.raises(ValueError, match="expected at least one, and only those"):
        modes_hit(np.array(generated, int), np.array(training, int))
