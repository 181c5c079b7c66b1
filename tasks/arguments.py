"""Checks the arguments of tasks that people and other programs send against the task's type hints."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin, get_type_hints

from daycap.errors import InvalidInput
from daycap.formats import shown


def checked(work: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Wrap `work`: arguments that do not match its signature and hints are answered with `InvalidInput`."""
    signature, hints = inspect.signature(work), get_type_hints(work)

    @functools.wraps(work)
    def run(*args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
            for name, value in arguments.items():
                if not _fits(value, hints[name]):
                    raise InvalidInput(f"{name} is not {signature.parameters[name].annotation}: {shown(value, 80)}")
        except (TypeError, InvalidInput) as error:
            return {"error": InvalidInput.__name__, "message": str(error)}
        return work(**arguments)

    return run


def _fits(value: object, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        return any(_fits(value, each) for each in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if hint is str:
        # No NUL and no lone surrogate: not every database can store them, and no log should contain them.
        return isinstance(value, str) and value.isprintable()
    return type(value) is hint
