"""Starting from another run: its weights and, where asked for, its optimizer's state; and what is remembered of it.

The new run's data order begins anew, from the first place and the new recipe's seed; so do dropout and averages.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from hfpretrain.errors import HFPretrainError, RecipeError, RunError
from hfpretrain.files import damage, json_object
from hfpretrain.hub import first_line
from hfpretrain.modeling.tokenizer import load_tokenizer
from hfpretrain.recipe import Amount, Base, Recipe, from_mapping, load, to_mapping
from hfpretrain.recipe_stages import training_sources
from hfpretrain.run import FINISHED, PROGRESS, Run, checkpoint_damage, list_checkpoints, newest_whole
from hfpretrain.training.optimizer import settings_kept
from hfpretrain.training.sharding import load_optimizers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What is known of the run that weights are from."""

    recipe: Recipe
    step: int
    tokens: int | None
    """That it had seen. A checkpoint of an earlier version does not say."""
    base_model: str | None
    """The model on the Hub that it began with itself, if it did."""
    lineage: tuple[dict[str, Any], ...]
    """The runs before it, the first one first."""

    def known(self, key: str) -> dict[str, Any] | None:
        """The block `model` or `tokenizer` of the run that made it; None if that is not known."""
        own = to_mapping(self.recipe)[key]
        if own.get("algorithm") or own.get("architecture") or (own.get("from") and key == "tokenizer"):
            return dict(own)
        found = [each[key] for each in reversed(self.lineage) if each.get(key)]
        return dict(found[0]) if found else None


def load_from_run(
    path: Path, overrides: Sequence[str], name: str, *, with_optimizer: bool = False, resume: bool = False
) -> Recipe:
    """The recipe in `path` for a run that starts from `name`: a run, or one of its checkpoints.

    Of a finished run the model is taken, of an unfinished one, or with its optimizer, the newest whole checkpoint. With
    `resume` a run that has begun already keeps what it began from, whatever became of that meanwhile. Raises RunError
    or RecipeError where there is nothing to start from, or where the recipe names another model or tokenizer.
    """

    def loaded(place: str, origin: Origin | None = None, folder: Path | None = None) -> Recipe:
        base = Base(place, name, with_optimizer)
        return load(path, overrides, base=base if origin is None else compared(base, origin, folder or Path(place)))

    begun = Run(Path(loaded(name).output_dir))
    if resume and begun.recipe_file.is_file():
        before = load(begun.recipe_file).model.from_
        place = before if before and _within(before, name) else name
        for folder in [*list_checkpoints(begun.checkpoints), Path(place)]:
            if origin := origin_of(folder):
                return loaded(place, origin, folder)
        return loaded(place)
    weights, found = find_origin(name, with_optimizer=with_optimizer)
    if _within(str(begun.path), name) or _within(name, str(begun.path)):
        raise RunError(
            f"output_dir: {begun.path} is the run that this one would start from",
            hint="choose another one for the new run, e.g. output_dir=runs/NAME or name=NAME",
        )
    recipe = loaded(str(weights), found)
    _require_its_tokenizer(recipe, weights, name)
    held_out = recipe.data.validation
    if recipe.seed != found.recipe.seed and isinstance(held_out, Amount) and held_out.value:
        what = f"seed: {recipe.seed} holds other documents out than {found.recipe.seed} did, with which"
        log.warning("%s %s was trained: it may have learnt them", what, name)
    return recipe


def find_origin(name: str, *, with_optimizer: bool) -> tuple[Path, Origin]:
    """The folder of the weights to start from, and what is known of them. Raises RunError where there are none."""
    given = Path(name).expanduser()
    if not given.is_dir():
        raise RunError(f"{name}: there is no such run", hint="give a run directory, or one of its checkpoints")
    if (given / PROGRESS).is_file():
        place, what = given, checkpoint_damage(given)
    elif Run(given).report_file.is_file() and not with_optimizer:
        place, what = given, damage(given, of=FINISHED, covers=lambda file: file.endswith((".safetensors", ".json")))
    elif newest := newest_whole(Run(given).checkpoints):
        place, what = newest, None
    else:
        raise RunError(
            f"{name} is {'a run without a checkpoint' if Run(given).recipe_file.is_file() else 'no run'}",
            hint="give a run directory, or one of its checkpoints; other weights go under model.from",
        )
    if what:
        raise RunError(f"{place} is damaged: {what}", hint="give another checkpoint")
    origin = origin_of(place)
    if origin is None:
        raise RunError(f"{place}: what it was trained with cannot be read", hint="give its path as model.from")
    return place, origin


def origin_of(folder: Path) -> Origin | None:
    """What a checkpoint, or a finished run, says of itself; None for any other folder, or what cannot be read."""
    run = Run(folder)
    try:
        if (folder / PROGRESS).is_file():
            said = json_object((folder / PROGRESS).read_text(encoding="utf-8"))
            recipe, bases = from_mapping(said["recipe"]), said.get("bases") or {}
            tokens = said.get("tokens") or None
            return Origin(recipe, said["step"], tokens, bases.get("base_model"), tuple(bases.get("lineage") or ()))
        if run.report_file.is_file() and run.recipe_file.is_file():
            said = run.report()
            recipe, lineage = load(run.recipe_file), tuple(said.get("lineage") or ())
            return Origin(recipe, said["steps"], said["tokens"], said.get("base_model"), lineage)
    except (HFPretrainError, OSError, ValueError, KeyError, TypeError, AttributeError):
        log.debug("what %s was trained with cannot be read", folder, exc_info=True)
    return None


def lineage_of(recipe: Recipe, describe: Any) -> list[dict[str, Any]]:
    """The runs that the weights come from, the first one first: what each was called, where it was, what it had read.

    `describe` says what a source is without any local path.
    """
    origin = origin_of(Path(recipe.model.from_).expanduser()) if recipe.model.from_ else None
    if origin is None:
        return []
    model, tokenizer = (to_mapping(origin.recipe)[key] for key in ("model", "tokenizer"))
    return [
        *origin.lineage,
        {
            "run": origin.recipe.name,
            "step": origin.step,
            "tokens": origin.tokens,
            "data": sorted({describe(source)["name"] for _, source in training_sources(origin.recipe.data)}),
            "base_model": origin.base_model,
            "optimizer": recipe.optimizer.from_checkpoint,
            "model": None if model.get("from") else model,
            "tokenizer": tokenizer if tokenizer.get("algorithm") else None,
        },
    ]


def told(lineage: Sequence[dict[str, Any]]) -> str:
    """Where the weights come from, in a sentence."""
    parts = []
    for each in reversed(lineage):
        read = f", which had seen {each['tokens']:,} tokens" if each["tokens"] is not None else ""
        parts.append(f"{each['run']} at step {each['step']:,}{read} of {' and '.join(each['data'])}")
    return "; before that ".join(parts)


def compared(base: Base, origin: Origin, folder: Path) -> Base:
    """The base with all that a recipe's model and tokenizer are compared to."""
    config = AutoConfig.from_pretrained(folder)
    names = {**config.to_dict(), **{alias: getattr(config, alias, None) for alias in config.attribute_map}}
    tokenizer = origin.known("tokenizer")
    own = tokenizer if tokenizer and tokenizer.get("algorithm") else {}
    model = origin.known("model") or {}
    return Base(
        base.place,
        base.name,
        base.with_optimizer,
        objective=origin.recipe.objective,
        architecture=config.model_type,
        config=names | (model.get("config") or {}),
        size=model.get("size"),
        tokenizer=own,
    )


def check_carried(recipe: Recipe) -> None:
    """Raises RecipeError where the optimizer cannot start with the state that optimizer.from_checkpoint asks for."""
    key, place = "optimizer.from_checkpoint", Path(str(recipe.model.from_)).expanduser()
    origin = origin_of(place) if (place / PROGRESS).is_file() else None
    if origin is None:
        where = next(iter(list_checkpoints(Run(place).checkpoints)), None)
        hint = f"set model.from to {where}" if where else "set model.from to a checkpoint of a run, or remove the key"
        raise RecipeError(f"{key}: {place} is no checkpoint, and holds no optimizer's state", hint=hint)
    if what := checkpoint_damage(place):
        raise RecipeError(f"{key}: {place} is damaged ({what})", hint="set model.from to another checkpoint")
    before, now = origin.recipe.optimizer, recipe.optimizer
    for name, one, other in (
        ("name", before.name, now.name),
        ("lr_factors", before.lr_factors, now.lr_factors),
    ):
        if one != other:
            said = f"{place} was trained with optimizer.{name}: {one}, and now it is {other}"
            raise RecipeError(f"{key}: {said}", hint=f"set optimizer.{name} to what it was, or start without its state")


def carry_over(recipe: Recipe, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Gives the optimizers the state that the checkpoint under model.from holds, bit for bit.

    Moments and the number of steps that they are of are carried over; learning rates, decay and the like are the
    recipe's. Raises RecipeError where they do not fit, as after a change of the model's vocabulary.
    """
    place = Path(str(recipe.model.from_)).expanduser()
    try:
        with settings_kept(optimizers):
            load_optimizers(place, model, optimizers)
    except Exception as error:
        said = f"the optimizer's state in {place} does not fit this model ({first_line(error)})"
        raise RecipeError(f"optimizer.from_checkpoint: {said}", hint="start without its state") from error
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                for name, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameter.shape:
                        of = f"{list(value.shape)}, and the weights of {list(parameter.shape)}"
                        said = f"{name} in {place} is of {of}"
                        raise RecipeError(f"optimizer.from_checkpoint: {said}", hint="start without its state")


def _require_its_tokenizer(recipe: Recipe, place: Path, name: str) -> None:
    """Raises RecipeError where the recipe names a tokenizer that is another one than the weights were trained with."""
    if recipe.tokenizer.from_ is None:
        return
    own, named = (load_tokenizer(str(each), recipe.objective).get_vocab() for each in (place, recipe.tokenizer.from_))
    if own != named:
        raise RecipeError(
            f"tokenizer.from: {recipe.tokenizer.from_} is another tokenizer than that of {name}",
            hint="remove the key: the run's own is taken",
        )


def _within(path: str, folder: str) -> bool:
    """Whether a path is this folder, or in it."""
    one, other = (Path(os.path.realpath(Path(each).expanduser())) for each in (path, folder))
    return one.is_relative_to(other)
