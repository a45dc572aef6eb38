"""Values of a recipe that hold no settings: numbers, texts, lists. Internal: use :mod:`genrec.recipes`."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from genrec.errors import MissingExtra
from genrec.recipe_text import Place

MAPPINGS = (dict, Mapping)
Leaf = Callable[[Any, Any], Any]


class Mismatch(Exception):
    """A leaf value is not what its type says: ``problems`` are (place below the leaf, message)."""

    def __init__(self, *problems: tuple[Place, str]) -> None:
        super().__init__(problems)
        self.problems = problems


def short(value: Any) -> str:
    """A value for an error message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def bare(tp: Any) -> Any:
    """The type without Annotated."""
    while get_origin(tp) is Annotated:
        tp = get_args(tp)[0]
    return tp


def members_of(tp: Any) -> tuple[Any, ...]:
    """The alternatives of a union; a type that is none is its own only alternative."""
    tp = bare(tp)
    if get_origin(tp) in (Union, types.UnionType):
        return tuple(member for arg in get_args(tp) for member in members_of(arg))
    return (tp,)


def element(tp: Any, index: int) -> Any:
    """Type of element ``index`` of a sequence type."""
    args = get_args(bare(tp))
    if get_origin(bare(tp)) is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        return args[index] if index < len(args) else Any
    return args[0] if args else Any


def pydantic_leaf() -> Leaf:
    """Strict checking of values that hold no settings. Raises MissingExtra without pydantic."""
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError as error:
        raise MissingExtra(f"recipes need pydantic ({error})", hint="pip install pydantic") from error

    def leaf(tp: Any, value: Any) -> Any:
        try:
            text = json.dumps(value, default=_jsonable)
        except (TypeError, ValueError) as error:
            raise Mismatch(((), f"expected plain values, got {short(value)}")) from error
        try:
            # as JSON: strict about 3 and "3", but a list may become a tuple and a text a path
            return TypeAdapter(tp).validate_json(text, strict=True)
        except ValidationError as error:
            found = error.errors()
            wanted = [e["msg"].replace("Input should be ", "") for e in found]
            if len(members_of(tp)) > 1 or any(e["loc"] == () for e in found):
                nullable = ["null"] if type(None) in members_of(tp) else []
                expected = " or ".join(dict.fromkeys([*wanted, *nullable]))
                raise Mismatch(((), f"expected {expected}, got {short(value)}")) from None
            both = zip(found, wanted, strict=True)
            raise Mismatch(*((e["loc"], f"expected {want}, got {short(e['input'])}") for e, want in both)) from None

    return leaf


def _jsonable(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(type(value).__name__)


def plain_leaf(tp: Any, value: Any) -> Any:
    """What :func:`pydantic_leaf` does for values written by us: only the types that settings use."""
    tp = bare(tp)
    origin, args = get_origin(tp), get_args(tp)
    wrong = Mismatch(((), f"expected {getattr(tp, '__name__', tp)}, got {short(value)}"))
    if tp in (Any, object):
        return value
    if origin in (Union, types.UnionType):
        return _first_that_fits(args, value, wrong)
    if origin is Literal:
        fits = [arg for arg in args if arg == value and type(arg) is type(value)]
        if not fits:
            raise wrong
        return fits[0]
    if (origin or tp) in (list, tuple, set, frozenset, Sequence):
        return _plain_sequence(tp, value, wrong)
    if (origin or tp) in MAPPINGS:
        if not isinstance(value, Mapping):
            raise wrong
        return {plain_leaf((*args, Any)[0], k): plain_leaf((*args, Any, Any)[1], v) for k, v in value.items()}
    return _plain_scalar(tp, value, wrong)


def _first_that_fits(members: Sequence[Any], value: Any, wrong: Mismatch) -> Any:
    for member in members:
        try:
            return plain_leaf(member, value)
        except Mismatch:
            continue
    raise wrong


def _plain_sequence(tp: Any, value: Any, wrong: Mismatch) -> Any:
    if not isinstance(value, (list, tuple)):
        raise wrong
    args, make = get_args(tp), get_origin(tp) or tp
    if make is tuple and args and Ellipsis not in args and len(args) != len(value):
        raise wrong
    built = [plain_leaf(element(tp, i), child) for i, child in enumerate(value)]
    return built if make is Sequence else make(built)


def _plain_scalar(tp: Any, value: Any, wrong: Mismatch) -> Any:
    if tp in (None, type(None)) and value is None:
        return None
    if tp is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if tp in (int, str, bool) and type(value) is tp:
        return value
    if isinstance(tp, type) and issubclass(tp, PurePath) and isinstance(value, (str, PurePath)):
        return (Path if tp is PurePath else tp)(value)
    if isinstance(tp, type) and issubclass(tp, Enum):
        try:
            return tp(value)
        except ValueError:
            raise wrong from None
    raise wrong
