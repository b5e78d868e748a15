"""ONNX, by transformers' own exporter: one graph, from token ids to logits, for any number and length of texts."""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfpretrain import hub
from hfpretrain.export_check import Batch, save_tokenizer
from hfpretrain.inference import CausalLM, MaskedLM

MODEL = "model.onnx"
FILES = (MODEL, f"{MODEL}.data", "export.json")
"""What an export holds beside config and tokenizer."""
_INPUTS = ("input_ids", "attention_mask")


def write_onnx(llm: CausalLM | MaskedLM, folder: Path, example: Batch) -> None:
    """Writes `model.onnx`, its weights beside it, config and tokenizer into `folder`.

    The graph takes `input_ids` and `attention_mask`, int64 [batch, sequence], and gives `logits`; it has no cache of
    keys and values. `example` is what it is traced with. Raises whatever the exporter raises for what it cannot do.
    """
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    # Free, and tied to each other where the model needs it; an axis that came out fixed fails the check.
    model, free = llm.model, torch.export.Dim.AUTO
    config = OnnxConfig(dynamic=True, dynamic_shapes={name: {0: free, 1: free} for name in _INPUTS})
    use_cache = getattr(model.config, "use_cache", None)
    with _quiet():
        try:
            model.config.use_cache = False
            exported = OnnxExporter().export(model, dict(example), config)
        finally:
            if use_cache is None:
                del model.config.use_cache
            else:
                model.config.use_cache = use_cache
        exported.save_pretrained(folder)
        _without_traces(folder / MODEL)
        save_tokenizer(llm, folder)
        if isinstance(llm, CausalLM):
            model.generation_config.save_pretrained(folder)


def _without_traces(file: Path) -> None:
    """Takes out what the exporter notes of each node: the lines of Python that it came from, with this machine's paths.

    They are nine tenths of the file, too.
    """
    onnx: Any = importlib.import_module("onnx")
    model = onnx.load(file, load_external_data=False)
    for node in chain(_nodes(model.graph), *map(_nodes, model.functions)):
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.save(model, file)


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph, and those of the graphs that are in them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def run_onnx(folder: Path, batches: list[Batch]) -> Iterator[Tensor]:
    """The logits of each batch, by onnxruntime on the CPU."""
    session = importlib.import_module("onnxruntime").InferenceSession(
        folder / MODEL, providers=["CPUExecutionProvider"]
    )
    taken = [each.name for each in session.get_inputs()]  # what a graph does not look at is not among them
    for batch in batches:
        yield torch.from_numpy(session.run(["logits"], {name: batch[name].numpy() for name in taken})[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what the exporter says of its own progress, on stdout too, and of operators nobody uses here."""
    loud = logging.getLogger("torch.onnx")
    before = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with hub.quiet(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        loud.setLevel(before)
