"""Every private name of torch that raz-sweep uses, and why. Other modules use torch's public names only.

Each private name has a case in `tests/test_internals.py`, which fails by that name when torch changes it.

- `TorchDispatchMode`, which sees each operator that runs, `OpOverload._overloadpacket`, by which operators have their
  formula in torch's own counter of FLOP, and `TorchDispatchMode._should_skip_dynamo`. That counter, `FlopCounterMode`,
  counts the same and imports the compiler to do so: a second and 100 MB in each process that scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type its hook for subclasses
    """Adds up the FLOP of the operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        flop = flop_registry.get(func._overloadpacket)
        if flop is not None:
            self.total += int(flop(*args, **(kwargs or {}), out_val=out))
        return out


def count_flop(run: Callable[[], object]) -> int:
    """FLOP of all that `run` does; a multiply-add counts as two."""
    counted = FlopCount()
    with counted, torch.no_grad():  # in inference mode whole layers would be seen, not their operators
        run()
    return counted.total
