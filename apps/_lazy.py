"""Lets a command line be parsed before Keras and TensorFlow are imported, which takes seconds."""

import ast
import gc
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

HEAVY = ("keras", "numpy", "tensorflow")
FLOORS = ("blocks", "data", "decoding", "fast", "figures", "metrics", "models", "training")
PACKAGES = tuple(f"kerasdl.{floor}" for floor in FLOORS)
LIGHT = (
    "kerasdl.command_line",
    "kerasdl.errors",
    "kerasdl.files",
    "kerasdl.interruptions",
    "kerasdl.startup",
    *PACKAGES,
)


class _StandIn(ModuleType):
    """Stands for a module in the names of whoever imported it; the first look-up ends all deferral.

    `importlib.util.LazyLoader` does not serve: it wakes up for `__file__`, which `inspect` asks of every module, and
    it lets a package's submodules run before the package.
    """

    def __getattr__(self, name: str) -> Any:
        if name in ("__cached__", "__file__", "__path__", "__wrapped__"):
            raise AttributeError(name)
        _finder.stop()
        return getattr(importlib.import_module(self.__name__), name)


class _StandInLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the real module is imported later."""


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in HEAVY or (fullname.startswith("kerasdl.") and fullname not in LIGHT):
            return ModuleSpec(fullname, _StandInLoader())
        return None

    def stop(self) -> None:
        """From here on imports are real."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            for name in [name for name, module in sys.modules.items() if type(module) is _StandIn]:
                del sys.modules[name]


_finder = _Finder()


def defer_heavy_imports() -> None:
    """Defers Keras, TensorFlow, NumPy and the modules of kerasdl; for `__main__` modules only."""
    if "keras" not in sys.modules:
        sys.meta_path.insert(0, _finder)


def sketch(name: str) -> ModuleType:
    """The module of an application; while imports are deferred, as much of it as a command line needs.

    That is all but its decorators and the classes that extend others, which would import Keras. It goes by another
    name: the real module is still to be imported when something is computed.
    """
    path = Path(__file__).with_name(f"{name}.py")
    if _finder not in sys.meta_path or not path.is_file():
        return importlib.import_module(f"{__package__}.{name}")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in [*tree.body]:
        if isinstance(node, ast.ClassDef) and not any("dataclass" in ast.unparse(one) for one in node.decorator_list):
            tree.body.remove(node)
        elif isinstance(node, ast.FunctionDef):
            node.decorator_list.clear()
    module = ModuleType(f"{__package__}._sketch_of_{name}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and type hints look for their names
    exec(compile(tree, str(path), "exec"), vars(module))
    return module


def start_keras(*, inference: bool = False) -> None:
    """Imports Keras and TensorFlow without their greetings, set up for training or for inference."""
    _finder.stop()
    from kerasdl.startup import import_keras

    import_keras(inference=inference)
    gc.freeze()  # looking for garbage passes over the 370,000 objects of the imports, which takes a tenth of the time
