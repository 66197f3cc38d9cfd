"""What would make the host wait for a CUDA device, seen on the meta device, which needs none."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# With device=..., these copy a value of the host, and CUDA's copy of it is waited for.
HOST_VALUE = (torch.tensor, torch.as_tensor)
READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "nonzero")
COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten.to)


class Waited(AssertionError):
    """Something that waits, or that runs on the wrong device."""


class _Functions(TorchFunctionMode):
    """Refuses host values as new tensors of the device, and device values read on the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in HOST_VALUE and device is not None and torch.device(device).type != "cpu":
            raise Waited(
                f"{func.__name__}(..., device={device}) copies a value of the host and waits"
            )
        if getattr(func, "__name__", "") in READS and args[0].device.type == "meta":
            raise Waited(f"{func.__name__}() waits for the device")
        if func is torch.linalg.solve and args[0].device.type == "meta":
            raise Waited("torch.linalg.solve waits for the device to say whether it could")
        return func(*args, **kwargs)


def _asynchronous(func: Any, args: tuple, kwargs: dict) -> bool:
    """The value of a copy's argument `non_blocking`."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return bool(given.get("non_blocking"))


class _Kernels(TorchDispatchMode):
    """Refuses copies between host and device that wait, and operations on tensors of both."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs, result))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        # A number of the host is an argument of the kernel, no copy.
        arrays = [tensor for tensor in tensors if tensor.dim()]
        if func.overloadpacket in COPIES:
            if len({x.device for x in tensors}) > 1 and not _asynchronous(func, args, kwargs):
                raise Waited(f"{func} between host and device waits")
        elif len({x.device for x in arrays}) > 1:
            raise Waited(f"{func} has tensors of the host and of the device")
        return result


class NoWaiting:
    """Within, `Waited` is raised where a CUDA device would be waited for.

    As `torch.cuda.set_sync_debug_mode("error")`, without a GPU.
    """

    def __enter__(self) -> None:
        self.modes = (_Functions(), _Kernels())
        for mode in self.modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)
