#!/usr/bin/env bash
# Keras Tuner 1.4.8: random searches whose seeds differ by the number of hyperparameters, or a multiple of it, try the
# same configurations, one place (or that many) further on.
#
# Expected: seeds 1 and 5 of a space of four parameters give unrelated trials, so that two machines with seeds 1 and 5
# search twice as much, and a comparison over seeds 1, 5, 9 has three independent runs.
# Seen: the second trial of seed 1 is the first of seed 5, and so on: nine of ten trials are common. Each value is drawn
# by a new random.Random(state), and the state that the seed begins with is raised by one for each value. Hyperband and
# the random points of Bayesian search draw alike.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > search.py <<'PYTHON'
import keras_tuner

NAMES = ("learning_rate", "dropout", "momentum", "decay")


def trials(seed, count=10):
    space = keras_tuner.HyperParameters()
    for name in NAMES:
        space.Float(name, 0.0, 1.0)
    space.values = {}
    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=keras_tuner.Objective("val_loss", "min"), max_trials=count, seed=seed, hyperparameters=space
    )
    oracle.verbose = 0
    oracle._set_project_dir("searches", str(seed))
    found = []
    for number in range(count):
        trial = oracle.create_trial(f"worker {number}")
        found.append(tuple(trial.hyperparameters.values[name] for name in NAMES))
    return found


print("keras-tuner", keras_tuner.__version__)
first = trials(1)
for seed in (2, 3, 4, 5, 9):
    other = trials(seed)
    common = len(set(first) & set(other))
    shifted = any(first[shift:] == other[: 10 - shift] for shift in range(1, 4))
    print(f"seeds 1 and {seed}: {common} of 10 trials in common{', in the same order' if shifted else ''}")
PYTHON
python3 -m venv venv
venv/bin/pip install --quiet keras-tuner==1.4.8 keras==3.15.1 jax==0.7.1 tensorboard==2.20.0 scikit-learn==1.7.2 six==1.17.0
KERAS_BACKEND=jax venv/bin/python search.py | tee seen
diff seen - <<'EXPECTED'
keras-tuner 1.4.8
seeds 1 and 2: 0 of 10 trials in common
seeds 1 and 3: 0 of 10 trials in common
seeds 1 and 4: 0 of 10 trials in common
seeds 1 and 5: 9 of 10 trials in common, in the same order
seeds 1 and 9: 8 of 10 trials in common, in the same order
EXPECTED
echo "as described"
