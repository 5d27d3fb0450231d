"""Scores of generated pictures against real ones, in a space of features that the caller chooses and names.

    features = keras.Model(classifier.input, classifier.get_layer("features").output)
    distance = frechet_distance(features.predict(real), features.predict(generated))
    floor = frechet_distance(features.predict(real), features.predict(other_real))

A value means something only beside others of the same features and the same number of pictures, and beside that of
real pictures against other real ones. The Fréchet distance is called FID only on the 2048 features of InceptionV3.
"""

import numpy as np
from scipy.stats import entropy
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

_WORKING_MEMORY = 128  # MiB of distances held at once


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Computes the Fréchet distance of two sets of features, each taken for a sample of a normal distribution.

        d² = |mean_a - mean_b|² + trace(cov_a + cov_b - 2 (cov_a cov_b)^½)

    which is the value that papers print. The trace of the root is the sum of the singular values of A Bᵀ, where
    cov_a = AᵀA and cov_b = BᵀB: no covariance is formed and no root of a nearly singular matrix taken, so that fewer
    examples than features do no harm but to the estimate: it is too high, the more so the fewer examples there are.

    Args:
        features_a: float[examples_a, features].
        features_b: float[examples_b, features].

    Returns:
        The squared distance, at least 0, in the squared unit of the features; computed in float64.

    Raises:
        ValueError: if a set is no matrix, has fewer than two examples or a value that is not finite, or if the
            numbers of features differ.

    Source: Heusel et al. 2017, arXiv:1706.08500, equation 6; Dowson and Landau 1982, "The Fréchet distance between
    multivariate normal distributions".
    """
    a, b = _check(features_a, features_b, at_least=2)
    mean_a, factor_a = _normal(a)
    mean_b, factor_b = _normal(b)
    root_trace = np.linalg.norm(factor_a @ factor_b.T, "nuc")
    distance = np.sum((mean_a - mean_b) ** 2) + np.sum(factor_a**2) + np.sum(factor_b**2) - 2 * root_trace
    return max(float(distance), 0.0)  # rounding


def precision_and_recall(real: np.ndarray, generated: np.ndarray, *, num_neighbours: int = 3) -> dict[str, float]:
    """Measures how many generated pictures look real, and how much of the real variety is generated.

    A set covers a point that lies in the ball around one of its own points, which reaches to the `num_neighbours`-th
    nearest other point of this set.

    Args:
        real: float[examples, features].
        generated: float[examples, features], as many as of the real ones: more points make smaller balls.
        num_neighbours: of the paper, which takes 10,000 or more examples of each.

    Returns:
        `precision`, the share of generated points that the real ones cover; `recall`, the share of real points that
        the generated ones cover.

    Raises:
        ValueError: as `frechet_distance`, and if there are not more examples than `num_neighbours`.

    Source: Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative models",
    arXiv:1904.06991, equations 1 to 3.
    """
    real, generated = _check(real, generated, at_least=num_neighbours + 1)
    return {
        "precision": _share_covered(generated, real, num_neighbours),
        "recall": _share_covered(real, generated, num_neighbours),
    }


def nearest_neighbours(
    generated: np.ndarray, training: np.ndarray, *, num_neighbours: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the training examples that are nearest to generated ones, to see whether these are copies.

    Whether a distance is small shows beside that of held-out real pictures to the training ones. Shifted copies are
    far away in pixels, and near in features.

    Args:
        generated: [n, ...], pictures or features.
        training: [m, ...], of the same kind.
        num_neighbours: how many to find for each.

    Returns:
        Positions in `training`, int64[n, num_neighbours], the nearest first, and their Euclidean distances,
        float64[n, num_neighbours], in the unit of the values.

    Raises:
        ValueError: if the shapes do not fit, a value is not finite, or there are fewer training examples than
            `num_neighbours`.

    Source: own; exhaustive search by scikit-learn.
    """
    if generated.shape[1:] != training.shape[1:] or not len(generated) or len(training) < num_neighbours:
        raise ValueError(
            f"Generated examples have shape {generated.shape} and training ones {training.shape}; expected examples of"
            f" the same shape, at least 1 and {num_neighbours}; bring both to one size."
        )
    # float32 holds pixels exactly, and a training set of pictures twice as well as float64.
    flat = [x.reshape(len(x), -1).astype(np.float32, copy=False) for x in (generated, training)]
    search = NearestNeighbors(n_neighbors=num_neighbours, algorithm="brute").fit(flat[1])
    distance, index = search.kneighbors(flat[0])
    return index, distance.astype(np.float64)


def modes_hit(generated: np.ndarray, training: np.ndarray) -> dict[str, float]:
    """Counts the classes that a generator reaches, and compares their shares with those of its training data.

    Args:
        generated: int[n], the classes that a classifier sees in generated pictures.
        training: int[m], the classes of the training data.

    Returns:
        `modes_hit`, the number of training classes with at least one generated picture: noise hits some, too, and
        among many pictures a rare one counts fully, so look at the others first. `class_entropy_nats`, of the classes
        generated: 0 for a single one, log(classes) if all are equally frequent. `class_kl_nats`, the Kullback-Leibler
        divergence of the generated classes from the training ones: 0 for equal shares.

    Raises:
        ValueError: if there is no generated or no training example, or a generated class is not in the training data.

    Source: Metz et al. 2017, "Unrolled generative adversarial networks", arXiv:1611.02163, section 3.3.
    """
    classes, training_count = np.unique(training, return_counts=True)
    if not np.size(generated) or not np.all(np.isin(generated, classes)):
        raise ValueError(
            f"Of {np.size(generated)} generated classes some are none of the {len(classes)} training classes, or there"
            " are none; expected at least one, and only those; classify by the classes of the training data."
        )
    count = np.sum(np.asarray(generated).reshape(-1, 1) == classes, axis=0)
    return {
        "modes_hit": float(np.count_nonzero(count)),
        "class_entropy_nats": float(entropy(count)),
        "class_kl_nats": float(entropy(count, training_count)),
    }


def _normal(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and a factor F of the covariance FᵀF, whose divisor is one less than the number of examples."""
    mean = features.mean(axis=0)
    return mean, np.linalg.qr(features - mean, mode="r") / np.sqrt(len(features) - 1)


def _share_covered(points: np.ndarray, by: np.ndarray, num_neighbours: int) -> float:
    # Without an argument, no point is its own neighbour.
    radius = NearestNeighbors(n_neighbors=num_neighbours, algorithm="brute").fit(by).kneighbors()[0][:, -1]
    covered = pairwise_distances_chunked(
        points,
        by,
        reduce_func=lambda distance, start: np.any(distance <= radius, axis=1),
        working_memory=_WORKING_MEMORY,
    )
    return float(np.mean(np.concatenate(list(covered))))


def _check(features_a: np.ndarray, features_b: np.ndarray, *, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < at_least:
        raise ValueError(
            f"Features have shapes {a.shape} and {b.shape}; expected [examples, features] with the same features and"
            f" at least {at_least} examples; flatten them, or pass more examples."
        )
    if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
        raise ValueError(
            "Some features are not finite; expected numbers; look for pictures on which the classifier overflows."
        )
    return a, b
