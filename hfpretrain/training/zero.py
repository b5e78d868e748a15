"""DeepSpeed's ZeRO (Rajbhandari et al. 2020), within the process group that Accelerate has opened.

Stage 1 shares the optimizer's state out among the processes, stage 2 the gradients too, stage 3 the weights too. Each
process keeps a stretch of the flattened weights in float32, the masters, with AdamW's moments beside them; the model
computes in what is made of all masters. DeepSpeed moves and reduces. What is learnt is settled here as elsewhere: the
norm, clipping, which step is left out, and what a checkpoint holds.

DeepSpeed is an optional extra, and what is used of it beyond its documented engine is in this room alone: `averaged_
gradients`, `_hp_mapping` and `grad_position` of its optimizers, and how they bring masters to the model.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import OPTIMIZER_NAME
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import PreTrainedModel

from hfpretrain.errors import RecipeError
from hfpretrain.hardware import Precision
from hfpretrain.modeling.loss import Loss, Shortcuts
from hfpretrain.modeling.parameters import SHARED, count_parameters, layers_of
from hfpretrain.recipe import Parallel
from hfpretrain.training.zero_library import imported, quiet

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of every number, and how it calls them; with `step`, how many updates they are of."""
BUCKET = 50_000_000
"""Numbers that are reduced at once, at most: 200 MB."""


def computes_in_half(settings: Parallel, precision: Precision) -> bool:
    """Whether the model's own weights are bfloat16, made of masters; of stage 1 they stay float32, under autocast."""
    return precision == "bf16" and settings.zero_stage > 1


def fitting(shortcuts: Shortcuts, model: PreTrainedModel, settings: Parallel) -> Shortcuts:
    """Those of the shortcuts that go with the stage.

    Stage 3 gathers by the passes through a model's parts, and loses count where a part is run whose output nobody looks
    at: as a head is, that holds the output embedding and more, when only what goes into that embedding is looked at.
    What it hands on to the parts of a layer are other tensors, in which those at targets cannot be known again.
    """
    if settings.zero_stage < 3:
        return shortcuts
    fused = shortcuts.fused and model.get_output_embeddings() in model.children()
    return replace(shortcuts, fused=fused, last_layer=False)


@dataclass(frozen=True)
class Share:
    """Which numbers of a weight this process keeps: `count` of its flattened ones from `first` on."""

    group: int
    """The flat master that they are in, `at` a place of it."""
    at: int
    first: int
    count: int


@dataclass
class Zero:
    """A model that DeepSpeed runs."""

    engine: Any
    stage: int
    half: bool
    """Whether the model computes in bfloat16 weights."""
    groups: list[list[str]]
    """The names of the weights that are trained, in the order of the optimizer's groups before they were shared out."""
    shares: dict[str, Share] = field(default_factory=dict)

    @staticmethod
    def of(model: nn.Module) -> "Zero | None":
        """What was made of a model, or of its engine, if it was."""
        found: Zero | None = getattr(model, SHARED, None)
        return found

    @property
    def optimizer(self) -> Any:
        """DeepSpeed's, which shares out; the one that updates is its `optimizer`."""
        return self.engine.optimizer

    @property
    def masters(self) -> list[Tensor]:
        """This process's flat float32 weights, [numbers] each."""
        own = self.optimizer
        flat = own.fp32_partitioned_groups_flat if self.stage == 3 else own.single_partition_of_fp32_groups
        return list(flat)

    @property
    def parameters(self) -> dict[str, Any]:
        """Every weight by its name, tied ones once."""
        return dict(self.engine.module.named_parameters())

    def own(self, name: str, key: str | None = None) -> Tensor:
        """This process's stretch of a weight, or of one of its moments, [numbers], in the memory of the optimizer."""
        share = self.shares[name]
        master = self.masters[share.group]
        flat = master if key is None else self.optimizer.optimizer.state[master][key]
        stretch: Tensor = flat.detach()[share.at : share.at + share.count]
        return stretch

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """This process's stretch of a tensor that is as large as a weight."""
        share = self.shares[name]
        if whole.numel() != _numel(self.parameters[name]):
            raise ValueError(f"{name} is of {list(whole.shape)}, and the weights of {list(self.shape(name))}")
        return whole.flatten()[share.first : share.first + share.count].to(self.masters[share.group].device)

    def shape(self, name: str) -> torch.Size:
        """Of a whole weight."""
        parameter = self.parameters[name]
        return torch.Size(getattr(parameter, "ds_shape", parameter.shape))

    def whole(self, name: str, key: str | None = None, *, at: int = 0) -> Tensor | None:
        """A whole weight, or one of its moments, on the process `at`; None on the others. Every process calls it."""
        share, own = self.shares[name], self.own(name, key)
        gathered = torch.zeros(self.shape(name).numel(), dtype=own.dtype, device=own.device)
        gathered[share.first : share.first + share.count] = own
        dist.reduce(gathered.view(torch.int32), at)  # as integers the sum with zeros has the very bits
        return gathered.view(self.shape(name)) if dist.get_rank() == at else None

    @torch.no_grad()
    def clip(self, most: float) -> Tensor:
        """The norm of the common gradient, which is then no longer than `most`: as torch's clip_grad_norm_, []."""
        gradients = [each for group in self.optimizer.averaged_gradients.values() for each in group]
        squares = torch.stack(torch._foreach_norm(gradients)).square().sum()
        dist.all_reduce(squares)
        norm = squares.sqrt()
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def forget(self) -> None:
        """Lets go of the gradients of a backward pass."""
        optimizer = self.optimizer
        self.engine.zero_grad()
        optimizer.zero_grad()
        optimizer.averaged_gradients = {}
        if self.stage < 3:
            optimizer.all_grad_tensors = {}

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """The gradients of a backward pass inside are added to those of a later one."""
        self.engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self.engine.set_gradient_accumulation_boundary(True)

    @torch.no_grad()
    def spread(self) -> None:
        """Has the model compute with what is in the masters now. Every process calls it."""
        optimizer = self.optimizer
        if self.stage < 3:
            optimizer.update_lp_params()
            return
        optimizer._partition_all_parameters()
        for group in range(len(self.masters)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        self.gather_small()

    def gather_small(self) -> None:
        """Has every process hold what of stage 3 stays whole."""
        if kept := self.optimizer.persistent_parameters:
            kept[0].all_gather(kept)

    def weights(self) -> dict[str, Tensor]:
        """All of the model's state with whole float32 weights, in main memory, on the first process; else nothing."""
        found = {}
        for name in self.shares:
            if (gathered := self.whole(name)) is not None:
                found[name] = gathered.cpu()
        if not found:
            return {}
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        module = self.engine.module
        tied = {name: names[id(each)] for name, each in module.named_parameters(remove_duplicate=False)}
        return {
            name: found[tied[name]] if name in tied else tensor.cpu() for name, tensor in module.state_dict().items()
        }

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Gives the model whole weights, which every process has."""
        for name in self.shares:
            self.own(name).copy_(self.cut(name, weights[name]))
        buffers = dict(self.engine.module.named_buffers())
        for name in weights.keys() & buffers.keys():
            buffers[name].copy_(weights[name])
        self.spread()

    def saved_bytes(self, *, with_optimizer: bool) -> int:
        """About how many bytes the weights take on the disk, and the optimizer's state."""
        return sum(4 * self.shape(name).numel() for name in self.shares) * (3 if with_optimizer else 1)

    def state(self) -> dict[str, Tensor]:
        """Of the optimizer's state what this process is to write: all of some weights', by `<name>:<key>`.

        Each weight's goes to the process that has the fewest numbers so far. Every process calls it.
        """
        found: dict[str, Tensor] = {}
        loads = [0] * dist.get_world_size()
        for name, share in self.shares.items():
            writer = loads.index(min(loads))
            loads[writer] += self.shape(name).numel()
            for key in MOMENTS:
                if (gathered := self.whole(name, key, at=writer)) is not None:
                    found[f"{name}:{key}"] = gathered.cpu()
            if writer == dist.get_rank():
                steps = self.optimizer.optimizer.state[self.masters[share.group]]["step"]
                found[f"{name}:step"] = steps.detach().cpu().clone()
        return found

    def load_optimizer(self, folder: Path, shards: Path) -> None:
        """Reads the optimizer's state of a checkpoint: what any strategy has shared out into `shards`, or a whole one.

        Raises what torch raises, or ValueError, where it is of another model.
        """
        if shards.is_dir():
            self._load_shards(shards)
        else:
            self._load_whole(folder / f"{OPTIMIZER_NAME}.bin")

    def _load_shards(self, folder: Path) -> None:
        """Weight by weight, so that no more than one is whole at a time."""
        saved: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        steps: dict[int, set[float]] = {}
        for name, share in self.shares.items():
            state = {
                key: torch.empty(saved[f"{name}:{key}"].size) for key in (*MOMENTS, "step") if f"{name}:{key}" in saved
            }
            named = {f"{name}:{key}": tensor for key, tensor in state.items()}
            load(named, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
            self._take(name, share, state, steps)
        self._count(steps)

    def _load_whole(self, file: Path) -> None:
        """What an optimizer of whole tensors has saved, by the weights' numbers in its groups."""
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["state"]
        steps: dict[int, set[float]] = {}
        for number, name in enumerate(name for group in self.groups for name in group):
            self._take(name, self.shares[name], saved.get(number, {}), steps)
        self._count(steps)

    @torch.no_grad()
    def _take(self, name: str, share: Share, state: dict[str, Tensor], steps: dict[int, set[float]]) -> None:
        for key in MOMENTS:
            if key in state:
                self.own(name, key).copy_(self.cut(name, state[key]))
            else:
                self.own(name, key).zero_()
        steps.setdefault(share.group, set()).add(float(state["step"]) if "step" in state else 0.0)

    @torch.no_grad()
    def _count(self, steps: dict[int, set[float]]) -> None:
        """Sets how many updates the moments are of: one number for all that are flattened together."""
        for group, found in steps.items():
            if len(found) > 1:
                raise ValueError("the moments are not of equally many updates, which DeepSpeed has one number for")
            self.optimizer.optimizer.state[self.masters[group]]["step"].fill_(found.pop())


def open_zero(
    model: PreTrainedModel,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    settings: Parallel,
    precision: Precision,
) -> Zero:
    """Shares out what the stage says, on the device, in place. `optimizer` is AdamW, and updates this process's share.

    Raises what DeepSpeed raises of a model that it cannot run.
    """
    stage, half = settings.zero_stage, computes_in_half(settings, precision)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(each)] for each in group["params"]] for group in optimizer.param_groups]
    if untrained := names.keys() - {id(each) for group in optimizer.param_groups for each in group["params"]}:
        raise RecipeError(
            f"parallel.strategy: {names[min(untrained)]} is not trained, and deepspeed does not keep such weights",
            hint="set parallel.strategy: fsdp",
        )
    # Masters are made of the model's own weights, which are rounded by then.
    exact = {name: each.detach().cpu().clone() for name, each in model.named_parameters()} if half else {}
    # It uses torch's older names of collectives.
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)
    with quiet():
        deepspeed = imported()
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=_config(model, stage, half=half), dist_init_required=False
        )
    zero = Zero(engine, stage, half, groups)
    engine.set_gradient_accumulation_boundary(True)
    zero.shares = {name: _share(zero, index, name) for index, group in enumerate(groups) for name in group}
    for master in zero.masters:  # as AdamW begins it, so that it is there before the first step
        state = {key: torch.zeros_like(master, requires_grad=False) for key in MOMENTS}
        engine.optimizer.optimizer.state[master] = {"step": torch.zeros((), device=master.device), **state}
    setattr(model, SHARED, zero)
    if stage == 3 and loss.shortcuts.fused:
        _keep_gathered(zero, loss.output)
    if half:
        zero.load_weights(exact)
    return zero


def _config(model: nn.Module, stage: int, *, half: bool) -> dict[str, Any]:
    """DeepSpeed's configuration: sums of gradients and masters in float32, and no norm or clipping of its own.

    Of stage 3 norms and biases stay gathered (they are small), and of matrices no more than two layers, where DeepSpeed
    left to itself keeps a billion numbers.
    """
    vectors = [each.numel() for each in model.parameters() if each.ndim < 2]
    layer = max(map(count_parameters, layers_of(model) or [model]))
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": min(BUCKET, layer)}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = max(vectors, default=0)
        zero["stage3_prefetch_bucket_size"] = min(BUCKET, layer)
        zero["stage3_max_reuse_distance"] = layer
        zero["stage3_max_live_parameters"] = 2 * layer
    else:
        zero["compute_grad_norm"] = False
    return {
        "train_micro_batch_size_per_gpu": 1,  # which nothing here looks at: the loop weighs each micro-batch itself
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
        "bf16": {"enabled": half},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }


def _share(zero: Zero, group: int, name: str) -> Share:
    """Where DeepSpeed has put this process's stretch of a weight."""
    parameter = zero.parameters[name]
    if zero.stage == 3:
        flat, at, most = zero.optimizer.grad_position[zero.optimizer.get_param_id(parameter)]
        first = min(most * dist.get_rank(), parameter.ds_numel)
        return Share(flat, at, first, min(most, parameter.ds_numel - first))
    mapped = parameter._hp_mapping
    if mapped is None:
        return Share(group, 0, 0, 0)
    return Share(group, mapped.hp_fragment_address.start, mapped.lp_fragment_address.start, mapped.hp_fragment.numel())


def _keep_gathered(zero: Zero, module: nn.Module) -> None:
    """Keeps a part whole on every process, whose weights the loss looks at from outside."""
    persistent = zero.optimizer.persistent_parameters
    parameter: Any  # to which DeepSpeed has added
    for parameter in module.parameters(recurse=False):
        # Others it lets go of after the part's own pass, until it has seen in what order they are used.
        parameter.is_external_param = True
        if not parameter.ds_persist:
            parameter.ds_persist = True
            persistent.append(parameter)
    zero.gather_small()


def _numel(parameter: Any) -> int:
    """Numbers of a whole weight, which is empty while only its share is here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
