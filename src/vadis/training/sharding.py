"""Weights, gradients and optimiser state split over processes (FSDP2), for models too large for one GPU.

Files hold whole tensors whatever the number of processes, so a training may go on with another, or unsplit. Every process
builds the whole model in its own memory first and then keeps its share; steps are those of data-parallel training.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(objective: nn.Module, device: torch.device) -> None:
    """Split the parameters of `objective`, in place: every block of a list of blocks is a group of its own, gathered when it
    is used; the rest (embeddings, head) is one group, whole while a forward or backward pass of `objective` lasts."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks(objective):
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules that hold parameters."""
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            found += [block for block in child if any(True for _ in block.parameters())]
        else:
            found += blocks(child)
    return found


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor, keep: bool = True) -> Tensor:
    """All of a split tensor, on the CPU; every process must ask, and gets nothing (0,) without `keep`. Others are returned
    as they are."""
    if not isinstance(tensor, DTensor):
        return tensor
    gathered = tensor.full_tensor()
    return gathered.cpu() if keep else gathered.new_empty(0)


def split_as(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, on the device of `like` and split as it is."""
    tensor = tensor.to(like.device, like.dtype)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def whole_model(model: nn.Module, keep: bool = True, write_back: bool = False) -> Iterator[None]:
    """Inside, split parameters of `model` are whole tensors on the CPU, for files; every process must enter.

    Processes without `keep` help and hold nothing: they must not touch the model inside. With `write_back` the values are
    kept afterwards.
    """
    places = [(module, name, p) for module in model.modules() for name, p in module._parameters.items()]
    split = [(module, name, p) for module, name, p in places if isinstance(p, DTensor)]
    made: dict[int, nn.Parameter] = {}
    for _, _, p in split:
        if id(p) not in made:  # tied ones stay tied
            made[id(p)] = nn.Parameter(whole(p.detach(), keep).clone(), p.requires_grad)
    for module, name, p in split:
        module._parameters[name] = made[id(p)]
    try:
        yield
    finally:
        for module, name, p in split:
            module._parameters[name] = p
        if write_back:
            with torch.no_grad():
                for p in {id(p): p for _, _, p in split}.values():
                    p.copy_(split_as(made[id(p)].detach(), p))


def whole_optimizer(optimizer: Any, keep: bool = True) -> dict[str, Any]:
    """The state of an optimiser with whole tensors; every process must ask, and gets empty ones without `keep`."""
    page = optimizer.state_dict()
    state = {
        i: {k: whole(v, keep) if isinstance(v, Tensor) else v for k, v in own.items()}
        for i, own in page["state"].items()
    }
    return {"state": state, "param_groups": page["param_groups"]}


def load_optimizer(optimizer: Any, page: Mapping[str, Any]) -> None:
    """Load what `whole_optimizer` gave, split as the parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {}
    for i, own in page["state"].items():
        p = parameters[i]
        fits = {k: isinstance(v, Tensor) and v.shape == p.shape and isinstance(p, DTensor) for k, v in own.items()}
        state[i] = {k: split_as(v, p) if fits[k] else v for k, v in own.items()}
    optimizer.load_state_dict({"state": state, "param_groups": page["param_groups"]})
