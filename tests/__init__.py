"""The type checker of the tests: beartype with PEP 484's numbers, where an int is a float too."""

import functools
import inspect
import threading
from collections.abc import Callable

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def share_checks_of_inner_functions() -> None:
    """Makes jaxtyping write the check of a function within a function once.

    It would at every call of the outer one, as that defines the inner one anew: each time a
    millisecond, and a sixth of the time of the tests of training.
    """
    if jaxtyping.jaxtyped.__module__ == __name__:
        return
    decorate, templates, running = jaxtyping.jaxtyped, {}, threading.local()

    def jaxtyped(fn=None, *, typechecker):
        if fn is None:
            return functools.partial(jaxtyped, typechecker=typechecker)
        code = getattr(fn, "__code__", None)
        if code is None or "<locals>" not in fn.__qualname__:
            return decorate(fn, typechecker=typechecker)
        annotations, template = templates.get(code, (None, None))
        if annotations != fn.__annotations__:
            template = decorate(_last_of(running, fn), typechecker=typechecker)
            templates[code] = fn.__annotations__, template

        @functools.wraps(fn)
        def checked(*args, **kwargs):
            before = getattr(running, "function", None)
            running.function = fn
            try:
                return template(*args, **kwargs)
            finally:
                running.function = before

        return checked

    jaxtyping.jaxtyped = jaxtyped


def _last_of(running: threading.local, fn: Callable) -> Callable:
    """Calls the function that was last said to run; of `fn` it has the signature, and no hold."""

    def call(*args, **kwargs):
        return running.function(*args, **kwargs)

    for name in ("__module__", "__name__", "__qualname__", "__annotations__"):
        setattr(call, name, getattr(fn, name))
    call.__signature__ = inspect.signature(fn)
    return call
