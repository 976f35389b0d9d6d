"""msgpack's C codec: `pack` one value, `unpack` one value.

The extension wants two classes from its package for the types that no frame may have; they get names here and nothing else.
Without the extension (or under `MSGPACK_PUREPYTHON`) it is the package's own Python codec.
"""

from __future__ import annotations

import sys

from protocol import cmodule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final


class ExtType(tuple):  # type: ignore[type-arg]
    """What an extension type would become."""

    __slots__ = ()


class Timestamp:
    """The same for extension type -1."""

    __slots__ = ()


def _codec() -> object:
    if "msgpack" not in sys.modules:
        ext = type(sys)("msgpack.ext")
        ext.ExtType = ExtType  # type: ignore[attr-defined]
        ext.Timestamp = Timestamp  # type: ignore[attr-defined]
        try:
            # It asks `datetime` for the C interface, which the C half of that module has too.
            import _datetime  # type: ignore[import-not-found]

            return cmodule.load("msgpack", "_cmsgpack", {"msgpack.ext": ext, "datetime": _datetime})
        except ImportError:
            pass
    import msgpack

    return msgpack


_found: Final = _codec()

pack: Final[Callable[[object], bytes]] = _found.Packer(use_bin_type=True, unicode_errors="surrogatepass").pack  # type: ignore[attr-defined]
unpack: Final[Callable[..., object]] = _found.unpackb  # type: ignore[attr-defined]
