"""Arithmetic that a user writes in a spec, such as ``days * agents``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_BUILTIN: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs}


@dataclass(frozen=True)
class Expression:
    """Numbers, names, ``+ - * / // % **``, brackets, and ``min``, ``max``, ``abs``."""

    text: str

    @property
    def names(self) -> frozenset[str]:
        """The parameters that the expression reads."""
        found = (n.id for n in ast.walk(self._tree()) if isinstance(n, ast.Name))
        return frozenset(found) - _BUILTIN.keys()

    def check(self) -> None:
        """Raise ValueError, with the reason, where the text is no such arithmetic."""
        for node in ast.walk(self._tree()):
            _refuse_foreign(node)

    def value(self, parameters: Mapping[str, Any]) -> float:
        """Evaluate with the given parameters; ValueError where that is impossible."""
        try:
            return float(_evaluate(self._tree(), parameters))
        except (ArithmeticError, KeyError, TypeError) as error:
            raise ValueError(f"{self.text!r} has no value: {error}") from error

    def _tree(self) -> ast.expr:
        try:
            return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            raise ValueError(f"{self.text!r} is no arithmetic expression") from error


_ALLOWED = (
    *(ast.BinOp, ast.UnaryOp, ast.Name, ast.Call, ast.expr_context),
    *(*_BINARY, *_UNARY),
)


def _refuse_foreign(node: ast.AST) -> None:
    match node:
        case ast.Constant(value=value):
            known = type(value) in (int, float)
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            known = name in _BUILTIN
        case ast.Call():
            known = False
        case _:
            known = isinstance(node, _ALLOWED)
    if not known:
        raise ValueError(
            f"{ast.unparse(node)!r} is not arithmetic on parameters, "
            "with min, max and abs"
        )


def _evaluate(node: ast.AST, parameters: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return parameters[name]
        case ast.BinOp(left=left, op=op, right=right):
            both = _evaluate(left, parameters), _evaluate(right, parameters)
            return _BINARY[type(op)](*both)
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_evaluate(operand, parameters))
        case ast.Call(func=ast.Name(id=name), args=args):
            return _BUILTIN[name](*(_evaluate(a, parameters) for a in args))
    raise TypeError(f"{ast.unparse(node)!r} is not arithmetic")
