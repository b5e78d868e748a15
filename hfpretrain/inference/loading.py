"""Finding and loading a trained model: what it is, where its newest weights are, and what it cannot be used for."""

import logging
import re
from pathlib import Path
from typing import Any, Literal, overload

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from hfpretrain import hub
from hfpretrain.errors import HFPretrainError, ModelError, UserError
from hfpretrain.inference.causal import CausalLM
from hfpretrain.inference.masked import MaskedLM
from hfpretrain.model_files import check_model_files

log = logging.getLogger(__name__)

Objective = Literal["clm", "mlm"]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@overload
def load(model: str | Path, *, objective: Literal["mlm"], device: str | None = None) -> MaskedLM: ...
@overload
def load(model: str | Path, *, objective: Literal["clm"], device: str | None = None) -> CausalLM: ...
@overload
def load(
    model: str | Path, *, objective: Objective | None = None, device: str | None = None
) -> MaskedLM | CausalLM: ...
def load(model: str | Path, *, objective: Objective | None = None, device: str | None = None) -> MaskedLM | CausalLM:
    """Loads a trained model for use: a MaskedLM or a CausalLM, by what it is.

    `model` is a run directory (of an unfinished run the newest checkpoint is taken, and a log line says so), a
    checkpoint folder, any other local model folder, or a Hub id. `objective` says what it has to be. `device` is a
    torch device; by default the GPU if there is one. On a CPU weights are float32. Raises ModelError for what cannot be
    found or used, and UserError for a model of the other objective or a device that is not there.
    """
    name = str(model)
    place = hub.locate(name, kind="model")
    target = _device(device)
    folder = _model_folder(Path(place), name) if Path(place).is_dir() else None
    source = str(folder) if folder else place
    try:
        with hub.quiet():
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            kind = _kind(config, name, objective)
            auto_class = AutoModelForMaskedLM if kind == "mlm" else AutoModelForCausalLM
            tokenizer = AutoTokenizer.from_pretrained(_tokenizer_folder(folder) or source, trust_remote_code=False)
            network, report = auto_class.from_pretrained(
                source,
                config=config,
                use_safetensors=True,
                dtype=torch.float32 if target.type == "cpu" else "auto",
                output_loading_info=True,
                trust_remote_code=False,
            )
    except HFPretrainError:
        raise
    except Exception as error:
        if "ignore_mismatched_sizes" in str(error):
            raise ModelError(f"the weights of {name} have other shapes than its config.json says") from error
        raise hub.explain(error, name, kind="model") from error
    if report["missing_keys"]:
        raise ModelError(
            f"{name} has no weights for {min(report['missing_keys'])}: it was not trained to predict words",
            hint="give a model that was trained for masked or causal language modeling",
        )
    # Without any file some classes of transformers come up empty instead of failing.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"{name} holds no tokenizer", hint="save the tokenizer into the same folder")
    network = network.eval().to(target)
    return MaskedLM(network, tokenizer, name) if kind == "mlm" else CausalLM(network, tokenizer, name)


def _model_folder(place: Path, name: str) -> Path:
    """The folder that holds the model: `place` itself or, in an unfinished run, its newest whole checkpoint."""

    def holds_model(folder: Path) -> bool:
        return (folder / "config.json").is_file() and any((folder / weights).is_file() for weights in _WEIGHTS)

    if holds_model(place):
        return place
    steps = {folder: re.fullmatch(r"step-(\d+)", folder.name) for folder in place.glob("checkpoints/step-*")}
    whole = {int(step[1]): folder for folder, step in steps.items() if step and holds_model(folder)}
    if whole:
        newest = whole[max(whole)]
        check_model_files(newest)
        log.info("%s is not finished: its newest checkpoint, %s, is used", name, newest.relative_to(place))
        return newest
    if not (place / "config.json").is_file():
        raise ModelError(f"{name} holds no model: it has no config.json", hint="give a run or a model folder")
    raise ModelError(
        f"{name} has a config.json but no {_WEIGHTS[0]}", hint="weights in other formats have to be converted first"
    )


def _tokenizer_folder(folder: Path | None) -> str | None:
    """The run's own folder for a checkpoint that keeps no tokenizer."""
    if folder is None or any(folder.glob("tokenizer*")) or folder.parent.name != "checkpoints":
        return None
    return str(folder.parent.parent)


def _kind(config: Any, name: str, wanted: Objective | None) -> Objective:
    """What the model is, by the class it was saved from or else by what its type can be."""
    tables: dict[Objective, Any] = {"mlm": MODEL_FOR_MASKED_LM_MAPPING_NAMES, "clm": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    saved = set(config.architectures or [])
    kinds = [kind for kind, table in tables.items() if saved & set(table.values())]
    kinds = kinds or [kind for kind, table in tables.items() if config.model_type in table]
    if not kinds:
        what = ", ".join(sorted(saved)) or config.model_type
        raise ModelError(f"{name} is a {what}, neither a masked nor a causal language model")
    if wanted is None or wanted in kinds:
        return wanted or kinds[0]
    if wanted == "mlm":
        raise UserError(f"{name} is a causal language model, which has no mask to fill", hint="use generate with it")
    raise UserError(f"{name} is a masked language model, which does not continue a text", hint="use fill with it")


def _device(device: str | None) -> torch.device:
    """The device asked for, if it is there."""
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the device {device!r} cannot be used", hint="cpu always can") from error
    return target
