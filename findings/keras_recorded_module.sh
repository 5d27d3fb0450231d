#!/usr/bin/env bash
# Keras 3.15.1: a .keras file names the module of a registered class, and load_model no longer imports it, not even
# with safe_mode=False; Keras 3.8.0 does.
#
# Expected: the module stands in the file, is installed and registers the class when it is imported, so the model opens,
# as it did before; or safe_mode=False, which is said to trust the file, opens it.
# Seen: "could not be deserialized properly", unless the caller imports the module first. A service that opens people's
# files has to know from elsewhere which package wrote them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/mine.py" <<'PYTHON'
import keras


@keras.saving.register_keras_serializable(package="mine")
class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x
PYTHON
cat > "$folder/save.py" <<'PYTHON'
import keras
from mine import Twice

x = keras.Input((3,))
keras.Model(x, Twice()(x)).save("model.keras")
PYTHON
cat > "$folder/load.py" <<'PYTHON'
import json
import zipfile

import keras

with zipfile.ZipFile("model.keras") as file:
    layer = json.loads(file.read("config.json"))["config"]["layers"][1]
print(keras.__version__, "file:", layer["module"], layer["registered_name"])


def attempt(what, **options):
    try:
        keras.saving.load_model("model.keras", **options)
    except TypeError as error:
        print(what, "TypeError", "could not be deserialized" in str(error))
    else:
        print(what, "opens")


if keras.__version__.startswith("3.15"):
    attempt("as it is:")
    attempt("safe_mode=False:", safe_mode=False)
    import mine  # noqa: F401

    attempt("after import mine:")
else:
    attempt("as it is:")
PYTHON
cd "$folder"
for version in 3.8.0 3.15.1; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet "keras==$version" jax==0.7.1
  KERAS_BACKEND=jax "venv-$version/bin/python" save.py
  KERAS_BACKEND=jax "venv-$version/bin/python" load.py
done | tee seen
# Output seen (Keras 3.8.0 and 3.15.1, JAX 0.7.1, Python 3.11, x86-64):
diff seen - <<'SEEN'
3.8.0 file: mine mine>Twice
as it is: opens
3.15.1 file: mine mine>Twice
as it is: TypeError True
safe_mode=False: TypeError True
after import mine: opens
SEEN
echo "as described"
