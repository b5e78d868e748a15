"""Tensor parallelism: the processes of a group hold each matrix of a layer together, and multiply with it together.

By the plan that transformers has for an architecture (Shoeybi et al. 2019): a process has some heads of the attention
and some units of the feed-forward, and what they make is added up, once for each of the two and direction. Embeddings,
norms and the output embedding are whole on each; the hooks of the loss look at the last from outside.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from hfpretrain.errors import RecipeError
from hfpretrain.modeling.parameters import shape_of

SUMMED = "replicated_with_grad_allreduce"
"""transformers' word for weights that are whole on each process but see only its heads, as the norms of queries."""


def split(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Makes every weight a tensor of the group, in place: those of the plan cut, the others whole on each process.

    `mesh` is that of the group. The model's modules compute with plain tensors, as before. Raises RecipeError where
    transformers has no plan, or heads and units do not divide.
    """
    size = mesh.size()
    plan = plan_of(model, size)
    cut = {name: style for name, style in plan.items() if style != SUMMED}
    apply_tensor_parallelism(model, mesh, cut)
    whole: dict[nn.Parameter, nn.Parameter] = {}
    for name, module in model.named_modules():
        left = {key: each for key, each in module.named_parameters(recurse=False) if not isinstance(each, DTensor)}
        for key, parameter in left.items():
            if parameter not in whole:  # a tied weight stays one
                placed = distribute_tensor(parameter.detach(), mesh, [Replicate()], src_data_rank=None)
                whole[parameter] = nn.Parameter(placed, requires_grad=parameter.requires_grad)
                vars(whole[parameter]).update(vars(parameter))  # Mamba marks what does not decay
            module._parameters[key] = whole[parameter]
        if left:
            _computes_alone(module, _adder(mesh) if plan.get(name) == SUMMED else None)
    # A norm over weights on two dimensions of the mesh is one sum after the other, which it takes for worth a warning.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


def plan_of(model: PreTrainedModel, size: int) -> dict[str, str]:
    """What is done with which module and weight, by transformers' words; nothing with embeddings and the head.

    Raises RecipeError where there is no plan, or it does not divide into `size`.
    """
    name = model.config.model_type
    if not model.tp_plan:
        raise RecipeError(
            f"parallel.tensor: transformers has no plan by which to cut the matrices of {name}",
            hint="set parallel.tensor: 1, and parallel.strategy: fsdp for a large model",
        )
    shape = shape_of(model.config)
    for key, called in (("heads", "heads"), ("key_value_heads", "key-value heads"), ("feed_forward", "units")):
        if shape.get(key, size) % size:
            raise RecipeError(
                f"parallel.tensor: the {shape[key]} {called} of {name} do not divide by {size}",
                hint="set a divisor of them, or 1",
            )
    plan, _, _ = model._resolve_parallel_plans(DistributedConfig(tp_size=size))
    modules = dict(model.named_modules())
    outside = {id(each) for each in modules.values() if isinstance(each, nn.Embedding)}
    outside.add(id(model.get_output_embeddings()))
    return {
        key: style
        for key, style in plan.items()
        if not {id(modules.get(key)), id(modules.get(key.rpartition(".")[0]))} & outside
    }


def chunks(tensor: Tensor) -> Tensor:
    """A tensor of which each process holds one piece, as a checkpoint is made of: of the fused matrices of experts it
    holds two, and gets another one here. Every process asks."""
    if not isinstance(tensor, DTensor) or _is_piece(tensor):
        return tensor
    last: Any
    *others, last = tensor.placements
    return tensor.redistribute(placements=[*others, Shard(last.dim)])


def _is_piece(tensor: DTensor) -> bool:
    """Whether what the group has cut is one piece on each process."""
    last, names = tensor.placements[-1], tensor.device_mesh.mesh_dim_names or ()
    return names[-1:] != ("tensor",) or last.is_shard() or last.is_replicate()


def _computes_alone(module: nn.Module, add: Callable[[Tensor], Tensor] | None) -> None:
    """Has a module's forward see its own weights as plain tensors; `add` makes a weight's gradient that of all."""
    plain = module.forward

    def forward(*inputs: Any, **named: Any) -> Any:
        placed = {key: each for key, each in module.named_parameters(recurse=False) if isinstance(each, DTensor)}
        for key, parameter in placed.items():
            own: Any = parameter.to_local()
            if add is not None and own.requires_grad:
                own.register_hook(add)
            module._parameters[key] = own
        try:
            return plain(*inputs, **named)
        finally:
            module._parameters.update(placed)

    module.forward = forward


def _adder(mesh: DeviceMesh) -> Callable[[Tensor], Tensor]:
    """Adds up the processes' gradients of a weight. (transformers adds up what was accumulated, which counts the
    gradients of earlier micro-batches again.)"""
    group = mesh.get_group()

    def add(gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total, group=group)
        return total

    return add
