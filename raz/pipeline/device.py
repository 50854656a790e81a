"""The device that stages compute on: which one, why not a GPU, and giving its memory back. Imports torch when called.

A process that Ray gave no GPU hides all of them (`hide_gpus`), so that `gpus: 0` means the CPU. One that holds a GPU
asks `cuda_problem` first: without CUDA, PyTorch computes on the CPU without a word, a hundred times slower.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

from raz.store.failures import Device

if TYPE_CHECKING:
    import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"
# Of a GPU's memory: other processes that hold more, and more than OWN, may be why it is full.
SHARED = 0.1
OWN = 1 << 30  # bytes that CUDA's context and a desktop may take of a small GPU


def compute_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def hardware() -> Device:
    """The device that this process computes on, as failures record it."""
    import torch

    on = compute_device()
    if on.type != "cuda":
        return Device("cpu")
    return Device(torch.cuda.get_device_name(), torch.cuda.get_device_properties(on).total_memory)


def half_precision() -> torch.dtype:
    """The format of mixed precision on the GPU: bfloat16 where it has that, else float16, which needs a scaler."""
    import torch

    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def hide_gpus() -> None:
    """Let this process, and those that it starts, compute on the CPU alone. Call it before torch uses a GPU."""
    os.environ[VISIBLE] = ""


def cuda_problem() -> str:
    """Why this process cannot compute on a GPU, in one line; '' if it can."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # `is_available` gives no reason
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(" Please ")[0].strip().rstrip(".")
        visible = os.environ.get(VISIBLE)
        hidden = "" if visible is None else f" ({VISIBLE} is {visible!r})"
        return f"{reason}; this PyTorch ({torch.__version__}) is built for CUDA {torch.version.cuda}{hidden}"
    return ""


def release_device_memory() -> None:
    """Give back the GPU memory that PyTorch keeps for later. Does nothing where no GPU was used."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()  # a traceback or a cycle may still hold tensors
        torch.cuda.empty_cache()


def memory_is_shared() -> bool:
    """Whether other processes hold so much of this process's GPU that its memory may be full because of them."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    free, total = torch.cuda.mem_get_info()
    return bool(total - free - torch.cuda.memory_reserved() > max(OWN, SHARED * total))
