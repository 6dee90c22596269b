"""Length extrapolation in attention, in JAX and Flax NNX.

`attend`, `make_method`, `register` and `load_pretrained` are imported when they are asked for, so
that importing the package costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenext.attention import attend, make_method, register
    from lenext.workdirs.pretrained import load_pretrained

__version__ = "0.2.0"

__all__ = ["__version__", "attend", "load_pretrained", "make_method", "register"]


def __getattr__(name: str) -> Any:
    if name in ("attend", "make_method", "register"):
        from lenext import attention

        return getattr(attention, name)
    if name == "load_pretrained":
        from lenext.workdirs.pretrained import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
