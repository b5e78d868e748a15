"""Sharded training: each process holds a share of every weight, of its gradient and of the optimizer's state.

FSDP2 (Zhao et al. 2023) as torch has it, `fully_shard`: a layer is gathered while it runs. Or DeepSpeed's ZeRO, in
`zero`. Or `tensor_parallel`, whose groups FSDP2 makes replicas of each other, or shares the rest out among. What of a
run needs whole tensors, or has all processes do alike what otherwise each does for itself, asks here; with DDP, or one
process, these functions do the plain thing.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import OPTIMIZER_NAME
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from hfpretrain.errors import RecipeError
from hfpretrain.evaluation.looking import few_tokens
from hfpretrain.hardware import Precision
from hfpretrain.hub import first_line
from hfpretrain.modeling.loss import Loss
from hfpretrain.modeling.parameters import is_sharded, layers_of
from hfpretrain.place import Place
from hfpretrain.recipe import Parallel
from hfpretrain.training.tensor_parallel import chunks, split
from hfpretrain.training.zero import Zero, open_zero

log = logging.getLogger(__name__)

SHARDS = "optimizer"
"""The folder of a checkpoint with the optimizer's state, each process's share in a file of its own."""


def class_of(model: nn.Module) -> Any:
    """The model's own class, of which a sharded one has a subclass made by torch."""
    return type(model).__mro__[2] if isinstance(model, FSDPModule) else type(model)


def shard_proven(
    model: PreTrainedModel,
    loss: Loss,
    optimizers: list[torch.optim.Optimizer],
    accelerator: Accelerator,
    settings: Parallel,
    precision: Precision,
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Shares out the model's weights, and sees that a few tokens have the loss and the gradient that they had before.

    Returns what is run and stepped from now on: of FSDP2 the model itself, and the optimizers, which are to be built
    later; of DeepSpeed its engine and optimizer. Raises RecipeError where loss or gradient are others, as with weights
    that layers have in common.
    """
    before = _seen(model, loss, accelerator)
    run: nn.Module = model
    cannot = f"parallel: the weights of {model.config.model_type} cannot be shared out so"
    hint = "set parallel.tensor: 1" if settings.tensor > 1 else "set parallel.strategy: ddp"
    try:
        if settings.strategy == "deepspeed":
            (adamw,) = optimizers  # muon was refused
            zero = open_zero(model, loss, adamw, accelerator.device, settings, precision)
            run, optimizers = zero.engine, [zero.optimizer]
        else:
            shard(model, accelerator, settings, precision)
        after = _seen(run, loss, accelerator)
    except RecipeError:
        raise
    except Exception as error:  # whatever a library says of a model that is built in another way
        raise RecipeError(f"{cannot} ({type(error).__name__}: {first_line(error)})", hint=hint) from error
    off = max(abs(one - other) / max(abs(one), 1e-6) for one, other in zip(before, after, strict=True))
    if not off < (1e-4 if precision == "fp32" else 0.1):
        raise RecipeError(f"{cannot}: loss or gradient would be others", hint=hint)
    if settings.strategy == "fsdp" and not layers_of(model):
        log.info("%s: no layers are found, so that all weights are gathered at once", model.config.model_type)
    return run, optimizers


def _seen(model: nn.Module, loss: Loss, accelerator: Accelerator) -> tuple[float, float]:
    """The loss of a few tokens, and the norm of its gradient, without dropout. No gradients are left."""
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        with accelerator.autocast():
            total = loss(model, {name: tensor.to(device) for name, tensor in few_tokens().items()})
        backward(model, accelerator, total)
        return total.item(), clip_gradients(model, accelerator, float("inf")).item()
    finally:
        forget_gradients(model)
        model.train(was_training)


def shard(model: PreTrainedModel, accelerator: Accelerator, settings: Parallel, precision: Precision = "fp32") -> None:
    """Shares out the model's weights, on the device, in place: layer by layer, and what is left as one.

    Embeddings, norms and the head, which the loss looks at from outside, stay gathered between forward and backward.
    With bf16 they are gathered in it and everything is computed in it, as large models are trained: autocast would keep
    a copy of all weights from the forward to the backward pass. Shares, sums of gradients and updates are float32.
    Raises RecipeError where the processes cannot be grouped so.
    """
    mesh = _mesh(accelerator, settings)
    if settings.tensor > 1:
        split(model, mesh["tensor"])
        mesh = mesh[tuple(name for name in mesh.mesh_dim_names or () if name != "tensor")]
    # Nothing here changes what a model returns in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    arithmetic = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if precision == "bf16" else MixedPrecisionPolicy()
    again = settings.reshard_after_forward
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=again, mp_policy=arithmetic)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=arithmetic)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(accelerator.device)


def _mesh(accelerator: Accelerator, settings: Parallel) -> DeviceMesh:
    """The processes in up to three dimensions: replicas, those that share out the weights, and tensor groups.

    Without fsdp the groups are replicas: none but the group has a share. Raises RecipeError where they do not divide.
    """
    places = Place.in_run(accelerator, settings).of
    within = (settings.shard_within or places) if settings.strategy == "fsdp" else 1
    if places % within:
        raise RecipeError(
            f"parallel.shard_within: {places} processes are no groups of {within}",
            hint="set a divisor of the number of processes",
        )
    sizes = {"replicate": places // within, "shard": within, "tensor": settings.tensor}
    sizes = {name: size for name, size in sizes.items() if size > 1 or name == "shard"}
    return init_device_mesh(accelerator.device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor, in the same memory; of one that is not shared out, itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Where it is shared out, every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_like(tensor: Tensor, example: Tensor) -> Tensor:
    """A whole tensor, which every process has, shared out like the example."""
    if not isinstance(example, DTensor):
        return tensor.to(example.device)
    return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements, src_data_rank=None)


def joined(share: Tensor, like: Tensor) -> Tensor:
    """The whole tensor that the processes' shares make together, which are shared out as `like` is."""
    if not isinstance(like, DTensor):
        return share
    shares = DTensor.from_local(share, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return shares.full_tensor()


def settle(model: nn.Module) -> None:
    """Lets go of what a forward pass has left gathered, so that the model's parameters are the shares again."""
    for module in model.modules() if isinstance(model, FSDPModule) else ():  # averaging asks at every step
        if isinstance(module, FSDPModule):
            module.reshard()


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights by name, or this process's shares of them, float32, in the memory in which they are trained."""
    if zero := Zero.of(model):
        return {name: zero.own(name) for name in zero.shares}
    settle(model)
    return {name: local(parameter.detach()) for name, parameter in model.named_parameters()}


def own_share(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Of a whole tensor that is as large as a weight: this process's share, as `own_weights` has it."""
    if zero := Zero.of(model):
        return zero.cut(name, tensor).clone()
    return local(shared_like(tensor, dict(model.named_parameters())[name]))


def weights_written(model: nn.Module) -> None:
    """To be called by every process after writing into `own_weights`: the model computes with that from here on."""
    if zero := Zero.of(model):
        zero.spread()


def backward(model: nn.Module, accelerator: Accelerator, loss: Tensor) -> None:
    """The backward pass of a loss, whose gradients are averaged over the processes."""
    if zero := Zero.of(model):
        zero.engine.backward(loss)
    else:
        accelerator.backward(loss)


def clip_gradients(model: nn.Module, accelerator: Accelerator, most: float) -> Tensor:
    """The norm of the gradient, [], which is then no longer than `most`. Every process calls it."""
    if zero := Zero.of(model):
        return zero.clip(most)
    return whole(torch.as_tensor(accelerator.clip_grad_norm_(model.parameters(), most))).detach()


def forget_gradients(model: nn.Module) -> None:
    """Leaves no gradient of a backward pass behind."""
    if zero := Zero.of(model):
        zero.forget()
    else:
        model.zero_grad(set_to_none=True)


@contextmanager
def gradients_kept(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """The gradients of a backward pass inside stay with the process, to be added to those of a later one.

    Those of a sharded model do not, as each would be whole; but replicas add theirs only with the last ones.
    """
    if zero := Zero.of(model):
        with zero.kept():
            yield
        return
    if not isinstance(model, FSDPModule):
        with accelerator.no_sync(model):
            yield
        return
    model.set_requires_all_reduce(False)
    try:
        yield
    finally:
        model.set_requires_all_reduce(True)


def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """The whole weights of a sharded model, in memory, on the first process; nothing on the others.

    None where the model is whole anyway. Every process calls it.
    """
    if zero := Zero.of(model):
        return zero.weights()
    if not is_sharded(model):
        return None
    settle(model)
    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    names: dict[Tensor, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (first := names.setdefault(parameter, name)) != name and name in state:
            state[name] = state[first]  # a tied weight is one tensor, as those who save it look for
    return state


def save_whole(model: PreTrainedModel, folder: Path, weights: dict[str, Tensor] | None) -> None:
    """Writes the model as save_pretrained does, with its whole weights where they are given, which stay as they are."""
    # It takes out of what it is given.
    model.save_pretrained(folder, state_dict=None if weights is None else {**weights})
    if Zero.of(model):  # which computes in another precision than it keeps and saves
        model.config.dtype = "float32"
        model.config.save_pretrained(folder)


def whole_bytes(model: nn.Module, *, with_optimizer: bool) -> int | None:
    """About how many bytes a model that is in pieces takes on the disk; None of one whose tensors say it."""
    zero = Zero.of(model)
    return zero.saved_bytes(with_optimizer=with_optimizer) if zero else None


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Gives the model whole weights, which every process has, in place."""
    if zero := Zero.of(model):
        zero.load_weights(weights)
    elif is_sharded(model):
        settle(model)
        set_model_state_dict(model, {**weights}, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(weights)


def save_optimizers(folder: Path, model: nn.Module, optimizers: Iterable[Any]) -> None:
    """Writes the optimizers' state into SHARDS of a checkpoint, each process its share. Every process calls it.

    As torch's distributed checkpoint in safetensors, by the parameters' names: any number of processes reads it, and
    nothing in it is a pickle.
    """
    settle(model)
    zero = Zero.of(model)
    state = (
        zero.state()
        if zero
        else {
            f"{name}:{key}": chunks(value)
            for name, states in _states(model, optimizers)
            for key, value in states.items()
            if isinstance(value, Tensor)
        }
    )
    with _own_cause():
        save(state, storage_writer=HuggingFaceStorageWriter(str(folder / SHARDS), save_distributed=True))


def load_optimizers(folder: Path, model: nn.Module, optimizers: Iterable[Any]) -> None:
    """Reads the optimizers' state of a checkpoint, however its model and this one are shared out.

    Raises what torch raises where it is of another model.
    """
    settle(model)
    optimizers = list(optimizers)
    if zero := Zero.of(model):
        with _own_cause():
            zero.load_optimizer(folder, folder / SHARDS)
        return
    if not (folder / SHARDS).is_dir():
        for number, optimizer in enumerate(optimizers):
            file = folder / f"{OPTIMIZER_NAME}{f'_{number}' if number else ''}.bin"
            _load_whole(optimizer, torch.load(file, map_location="cpu", weights_only=True))
        return
    reader = HuggingFaceStorageReader(str(folder / SHARDS))
    saved = reader.read_metadata().state_dict_metadata
    state: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for key, described in saved.items():
        assert isinstance(described, TensorStorageMetadata)  # safetensors hold nothing else
        parameter = parameters[key.rpartition(":")[0]]
        if described.size == parameter.shape:
            state[key] = chunks(torch.zeros_like(parameter, requires_grad=False))
        else:
            state[key] = torch.zeros(described.size, dtype=described.properties.dtype, device=parameter.device)
    with _own_cause():
        load(state, storage_reader=reader)
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, what = key.rpartition(":")
        found.setdefault(name, {})[what] = value
    for name, states in _states(model, optimizers):
        states.clear()
        states |= {key: _placed(value, parameters[name]) for key, value in found.get(name, {}).items()}


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    """What was read of a parameter's shape, cut as the parameter is; anything else as it is."""
    if not isinstance(value, DTensor) or not isinstance(parameter, DTensor):
        return value
    return value if value.placements == parameter.placements else value.redistribute(placements=parameter.placements)


@contextmanager
def _own_cause() -> Iterator[None]:
    """What torch's distributed checkpoint raises on all processes becomes what was raised on the first that failed.

    It warns wherever a process reads alone, which is meant.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise (cause if isinstance(cause, Exception) else RuntimeError(str(cause))) from error


def _states(model: nn.Module, optimizers: Iterable[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the optimizers hold of each parameter, by its name, as the very dictionary that they look at."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        plain = getattr(optimizer, "optimizer", optimizer)
        for group in plain.param_groups:
            for parameter in group["params"]:
                yield names[parameter], plain.state[parameter]


def _load_whole(optimizer: Any, saved: dict[str, Any]) -> None:
    """Gives an optimizer the state that one of whole tensors has saved: tensors of a weight's shape are shared out."""
    plain = getattr(optimizer, "optimizer", optimizer)
    parameters = [parameter for group in plain.param_groups for parameter in group["params"]]
    for number, state in saved["state"].items():
        like = parameters[number]
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == like.shape:
                state[key] = shared_like(value, like)
    plain.load_state_dict(saved)
