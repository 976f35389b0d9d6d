"""A package's C module without the package's Python half.

`msgpack` and `pybase64` do their work in one extension module each.  Their `__init__` brings datetime, collections and the
text of a license, 6 ms of a start that is counted in tens; nothing of it is used here.  `load` executes the extension alone,
under its own name in an empty package, and leaves no trace of that package: an `import` of the real one still works.
"""

from __future__ import annotations

import sys
from _frozen_importlib_external import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType


def load(package: str, name: str, stand_ins: Mapping[str, ModuleType] | None = None) -> ModuleType:
    """The module `package.name`; `stand_ins` (full name: module) are what it finds instead of modules not imported yet.

    Where the package is imported already that one's module is used.  Raises ImportError."""
    full = f"{package}.{name}"
    if package in sys.modules:
        __import__(full)
        return sys.modules[full]
    spec = PathFinder.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    bare = type(sys)(package)
    bare.__path__ = spec.submodule_search_locations
    lent = {package: bare, **{n: m for n, m in (stand_ins or {}).items() if n not in sys.modules}}
    sys.modules.update(lent)
    try:
        __import__(full)
        return sys.modules[full]
    finally:
        for loaded in [m for m in sys.modules if m in lent or m.startswith(package + ".")]:
            del sys.modules[loaded]
