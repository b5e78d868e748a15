"""What a model is made of: its parameters, with and without embeddings, and its sizes in words."""

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

SHARED = "hfpretrain_zero"
"""The attribute of a model that DeepSpeed shares out, by which it is known."""
_FEED_FORWARD = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "ffn_hidden_size")


def is_sharded(model: nn.Module) -> bool:
    """Whether the processes share out what a model is trained with, so that all of them have to run it together."""
    return isinstance(model, FSDPModule) or hasattr(model, SHARED)


def count_parameters(model: nn.Module) -> int:
    """Numbers that the model learns, each once: tied weights are not counted twice."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_without_embeddings(model: PreTrainedModel) -> int:
    """Those of the layers: without the tables of words, positions and the like, and without the output embedding."""
    tables = {id(each.weight): each.weight.numel() for each in model.modules() if isinstance(each, nn.Embedding)}
    output = model.get_output_embeddings()
    if output is not None:
        tables[id(output.weight)] = output.weight.numel()
    return count_parameters(model) - sum(tables.values())


def shape_of(config: PreTrainedConfig) -> dict[str, int]:
    """The sizes of a model, of those that it has: layers, width, heads, key_value_heads, feed_forward."""
    text = config.get_text_config()
    keys = {"layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads"}
    found: dict[str, Any] = {name: getattr(text, key, None) for name, key in keys.items()}
    groups = getattr(text, "num_key_value_heads", None)
    found["key_value_heads"] = groups if groups != found["heads"] else None
    wide = next((value for key in _FEED_FORWARD if isinstance(value := getattr(text, key, None), int)), None)
    found["feed_forward"] = wide or (4 * found["width"] if text.model_type in ("gpt2", "bloom") else None)
    return {name: value for name, value in found.items() if isinstance(value, int)}


def in_words(shape: dict[str, int]) -> str:
    """`12 layers x 768 wide, 12 heads (4 key-value), feed-forward 3072`, of what is known."""
    said = []
    if "layers" in shape and "width" in shape:
        said.append(f"{shape['layers']} layers x {shape['width']} wide")
    if "heads" in shape:
        groups = f" ({shape['key_value_heads']} key-value)" if "key_value_heads" in shape else ""
        said.append(f"{shape['heads']} heads{groups}")
    if "feed_forward" in shape:
        said.append(f"feed-forward {shape['feed_forward']}")
    return ", ".join(said)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that are gathered, or computed again, one at a time; none where the model has no list of them.

    One layer may be all, which runs many times, as ALBERT's.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    own = [each for each in lists if all(isinstance(layer, GradientCheckpointingLayer) for layer in each)]
    largest = max(own or lists, key=count_parameters, default=None)
    return [] if largest is None else list(largest)
