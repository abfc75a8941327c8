"""How PyTorch runs what is timed: as it stands, compiled, or from a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from .contenders import check
from .results import COMPILED, EAGER
from .timing import Call


def prepared(how: str, module: nn.Module, call_of: Callable[[nn.Module], Call]) -> Call:
    """A call that is ready to be timed. Compiled ones and graphs have been made and checked.

    Args:
        how: `EAGER`, `COMPILED` or `GRAPH`.
        module: What runs.
        call_of: Makes the call of a module; calls return a tensor.

    Raises:
        WrongResult: It returns something else than the call as it stands.
    """
    plain = call_of(module)
    if how == EAGER:
        return plain
    expected = plain().detach().clone()
    gpu = expected.is_cuda
    if how == COMPILED:
        torch._dynamo.reset()
        # On a CPU only a rehearsal runs this: it sees whether the program can be captured.
        backend = "inductor" if gpu else "aot_eager"
        compiled = torch.compile(module, dynamic=False, backend=backend)
        call = call_of(cast(nn.Module, compiled))
    elif gpu:
        call = _graph(plain)
    else:
        raise NotImplementedError("CUDA graphs need a GPU")
    check(how, "results", call().detach(), expected)
    call()
    return call


def _graph(call: Call) -> Call:
    """Captures a call, and returns one that replays it."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        call()
        torch.cuda.set_sync_debug_mode("error")  # rather than fail while capturing
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result: Tensor = call()
    torch.cuda.synchronize()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
