"""Which models and versions a folder holds; needs no TensorFlow, so the command line can ask at once."""

from pathlib import Path

MAX_VERSION = 2**63 - 1


def find_models(root: Path) -> dict[str, dict[int, Path]]:
    """Lists the exports `root/<name>/<version>/saved_model.pb`; names that begin with a dot are no models.

    Args:
        root: folder that holds one folder per model.

    Returns:
        For each model with at least one version: version number to folder.

    Raises:
        OSError: `root` cannot be read.
    """
    models = {}
    for model in sorted(root.iterdir()):
        if model.name.startswith(".") or not model.is_dir():
            continue
        if versions := find_versions(model):
            models[model.name] = versions
    return models


def find_versions(base_path: Path) -> dict[int, Path]:
    """Lists the exports `base_path/<version>/saved_model.pb`.

    A version is a folder with an integer name, so that a half-written or temporary export stays unseen until
    its writer renames it.

    Args:
        base_path: folder that holds one folder per version of a model.

    Returns:
        Version number to folder.

    Raises:
        OSError: `base_path` cannot be read.
    """
    return {
        int(folder.name): folder
        for folder in sorted(base_path.iterdir())
        if _is_version(folder.name) and (folder / "saved_model.pb").is_file()
    }


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 20 and int(name) <= MAX_VERSION
