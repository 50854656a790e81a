"""`derive:` of a search space: a parameter computed from others, `counting.train.lr * 0.5`.

The text is parsed and never executed. It may hold numbers, dotted names, + - * / // % ** and `FUNCTIONS`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raz.config import Leaf, TrialConfig, configure, parameter_types, parameters
from raz.errors import RazError
from raz.utils.json_types import Json
from raz.utils.ordering import in_order_of_needs
from raz.utils.suggestions import did_you_mean

LONGEST = 500  # characters
DEEPEST = 50  # levels of nested operations
LARGEST = 1e300

OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: float(a) ** float(b),  # whole numbers could grow without bound
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
# Name -> function, fewest and most arguments.
FUNCTIONS: dict[str, tuple[Callable[..., float], int, int]] = {
    "min": (min, 2, 16),
    "max": (max, 2, 16),
    "abs": (abs, 1, 1),
    "round": (round, 1, 2),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "exp": (math.exp, 1, 1),
    "log": (math.log, 1, 2),
    "log2": (math.log2, 1, 1),
    "log10": (math.log10, 1, 1),
}


@dataclass(frozen=True)
class Derived:
    """A parameter that is computed from others."""

    name: str  # dotted
    text: str  # the arithmetic
    reads: tuple[str, ...]  # dotted names in it

    def evaluate(self, values: Mapping[str, Json]) -> Leaf:
        """Its value, given the values of a configuration. Raises ValueError saying what cannot be computed, or why the
        result is no legal value."""
        tree = ast.parse(self.text.strip(), mode="eval").body
        dotted = _dotted(tree)
        value = _read(dotted, values) if dotted else _evaluate(tree, values)  # a name alone may have any type
        of = parameter_types()[self.name]
        try:
            return of.coerce(value)
        except ValueError as error:
            if isinstance(value, float) and value.is_integer():
                return of.coerce(int(value))
            tail = f" (round({self.text}) is one)" if of.kind == "int" else ""
            raise ValueError(f"{self.text} is {value!r}, expected {error}{tail}") from None


def parse_derived(name: str, text: str) -> Derived:
    """A derived parameter from its arithmetic. Raises RazError, without a place, for a text that is no arithmetic."""
    if len(text) > LONGEST:
        raise RazError("", f"the arithmetic of {name} is longer than {LONGEST} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise RazError("", f"{name} is {text!r}, expected arithmetic", f"{name}: counting.train.lr * 0.5") from None
    reads: dict[str, None] = {}
    _check(name, tree, reads, 0)
    return Derived(name, text, tuple(reads))


def _check(name: str, node: ast.expr, reads: dict[str, None], depth: int) -> None:
    """Collect the names that a node reads. Raises RazError for what is not allowed in arithmetic."""
    if depth > DEEPEST:
        raise RazError("", f"the arithmetic of {name} is more than {DEEPEST} levels deep")
    dotted = _dotted(node)
    if dotted is not None:
        if dotted not in parameter_types():
            if dotted in FUNCTIONS:
                raise RazError("", f"{name} names the function {dotted} alone", f"{dotted}(counting.train.lr)")
            raise RazError("", f"{name} reads unknown parameter {dotted!r}", did_you_mean(dotted, parameter_types()))
        reads[dotted] = None
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return
    elif isinstance(node, (ast.BinOp, ast.UnaryOp)) and type(node.op) in OPERATORS:
        for part in (node.left, node.right) if isinstance(node, ast.BinOp) else (node.operand,):
            _check(name, part, reads, depth + 1)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        called = node.func.id
        if called not in FUNCTIONS:
            raise RazError("", f"{name} calls unknown function {called!r}", did_you_mean(called, FUNCTIONS))
        _, fewest, most = FUNCTIONS[called]
        if not fewest <= len(node.args) <= most:
            wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            raise RazError("", f"{name} calls {called} with {len(node.args)} values, expected {wanted}")
        for part in node.args:
            _check(name, part, reads, depth + 1)
    else:
        raise RazError(
            "", f"{name} has {ast.unparse(node)!r}, expected numbers, dotted names, + - * / // % ** and functions",
            "functions are " + ", ".join(FUNCTIONS),
        )  # fmt: skip


def _dotted(node: ast.expr) -> str | None:
    """The dotted name that a node is; None for any other node."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _evaluate(node: ast.expr, values: Mapping[str, Json]) -> float:
    dotted = _dotted(node)
    if dotted is not None:
        value = _read(dotted, values)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{dotted} is {value!r}, which is no number")
        return value
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, (int, float))
        return node.value
    function: Callable[..., float]
    if isinstance(node, ast.BinOp):
        function, parts = OPERATORS[type(node.op)], [node.left, node.right]
    elif isinstance(node, ast.UnaryOp):
        function, parts = OPERATORS[type(node.op)], [node.operand]
    else:
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        function, parts = FUNCTIONS[node.func.id][0], node.args
    arguments = [_evaluate(part, values) for part in parts]
    try:
        result = function(*arguments)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(f"{ast.unparse(node)} cannot be computed of {', '.join(map(str, arguments))}") from error
    if isinstance(result, complex) or abs(result) > LARGEST:
        raise ValueError(f"{ast.unparse(node)} of {', '.join(map(str, arguments))} is out of range")
    return result


def _read(name: str, values: Mapping[str, Json]) -> Json:
    if name not in values:  # a leaf of a part for which a word stands, as in raz.regions: same
        raise ValueError(f"{name} has no value of its own in this configuration")
    return values[name]


def topological_order(derived: Mapping[str, Derived]) -> tuple[Derived, ...]:
    """Each derived parameter after those it reads. Raises CycleError."""
    return in_order_of_needs(derived, lambda parameter: parameter.reads)


def derive(config: TrialConfig, derived: tuple[Derived, ...], where: str) -> TrialConfig:
    """The configuration with its derived parameters set, in the given order. Raises RazError for one that cannot be
    computed, or whose value is illegal."""
    for one in derived:
        try:
            value = one.evaluate(parameters(config))
        except ValueError as error:
            raise RazError(f"{where}, derive {one.name}", str(error), parameter=one.name) from None
        config = configure(config, {one.name: value}, f"{where}, derive {one.name}")
    return config
