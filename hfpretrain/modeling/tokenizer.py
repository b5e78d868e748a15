"""The tokenizer of a run: an existing one, or trained on the recipe's own data."""

import logging
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hfpretrain import hub, recipe
from hfpretrain.data import filters, sources
from hfpretrain.errors import ModelError
from hfpretrain.files import json_object
from hfpretrain.modeling.fim import SPELLINGS
from hfpretrain.modeling.kept import forget_loading, kept_tokenizer
from hfpretrain.modeling.tokenizer_training import (
    MAX_TRAINING_BYTES,
    TRAINING,
    Objective,
    check_reload,
    train_tokenizer,
)
from hfpretrain.recipe_stages import training_sources

log = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model", "tekken.json", "*.tiktoken")


def build_tokenizer(recipe: recipe.Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer that the recipe asks for, which its model can have.

    Raises ModelError, RecipeError or DataError in a sentence.
    """
    tokenizer, architecture = tokenizer_of_data(recipe), recipe.model.architecture
    if recipe.tokenizer.from_ and recipe.model.from_:
        _say_other_words(tokenizer, recipe)
        architecture = _architecture(recipe.model.from_)
    if architecture:
        check_reload(tokenizer, architecture)
    return tokenizer


def tokenizer_of_data(recipe: recipe.Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer by itself: `tokenizer.from`, else the one of `model.from`, else a trained one.

    It is all that text needs to become tokens, without torch where it is one that was trained here. Raises what
    `build_tokenizer` does, but for a tokenizer that the model cannot have.
    """
    existing = recipe.tokenizer.from_ or recipe.model.from_
    if existing:
        return load_tokenizer(existing, recipe.objective)

    opened = sources.open_sources(training_sources(recipe.data), on_bad_rows=recipe.data.on_bad_rows)
    more_special = SPELLINGS[0] if recipe.objective == "clm" and recipe.fim.rate else ()

    def train() -> PreTrainedTokenizerFast:
        # In turns, so that every source has its share where the text is cut. Texts are kept once, as for the model.
        seen = filters.Digests()
        turns = zip_longest(*(each.documents(seen) for each in opened))
        texts = (document.text for turn in turns for document in turn if document is not None)
        settings = recipe.tokenizer, recipe.objective
        return train_tokenizer(*settings, texts, more_special=more_special)

    identity = {
        "made by": [tokenizers.__version__, TRAINING, MAX_TRAINING_BYTES],
        "settings": [asdict(recipe.tokenizer), recipe.objective, more_special],
        "sources": [each.fingerprint for each in opened],
    }
    return kept_tokenizer(identity, train)


def _say_other_words(tokenizer: PreTrainedTokenizerBase, recipe: recipe.Recipe) -> None:
    """Warns where tokens have other ids than in the model's own tokenizer: its embeddings are of other words then."""
    own = load_tokenizer(str(recipe.model.from_), recipe.objective).get_vocab()
    words = tokenizer.get_vocab()
    other = sum(own.get(word) != number for word, number in words.items())
    if other:
        log.warning(
            "tokenizer.from: tokens that are not what model.from learnt under their ids: %d of %d", other, len(words)
        )


def _architecture(name: str) -> str | None:
    """The architecture of an existing model; None where there is no telling, which is an error later."""
    from transformers import PreTrainedConfig  # which imports torch

    folder = Path(hub.locate(name, kind="tokenizer"))
    if not (folder / "config.json").is_file():
        return None
    architecture: str | None = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    return architecture


def load_tokenizer(name: str, objective: Objective) -> PreTrainedTokenizerBase:
    """An existing tokenizer: of a folder, a run, or org/name on the Hub. No code of a repository is run.

    Raises ModelError where there is none, or where it has no mask token and the objective is mlm.
    """
    location = hub.locate(name, kind="tokenizer")
    folder = Path(location)
    # Without any file some classes of transformers come up empty instead of failing.
    if folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in _TOKENIZER_FILES):
        raise ModelError(f"{name} holds no tokenizer", hint="set tokenizer.from to a folder or org/name that has one")
    try:
        tokenizer = _class_of(folder).from_pretrained(location, trust_remote_code=False)
    except Exception as error:  # a broken file raises anything, a plain Exception from Rust included
        raise hub.explain(error, name, kind="tokenizer") from error
    forget_loading(tokenizer)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"the tokenizer of {name} has no words", hint="check that its files are complete")
    if objective == "mlm" and tokenizer.mask_token_id is None:
        raise ModelError(
            f"the tokenizer of {name} has no mask token, and objective mlm needs one",
            hint="give the tokenizer of a masked model, train one (no tokenizer.from), or set objective: clm",
        )
    return tokenizer


def _class_of(folder: Path) -> Any:
    """Who loads the tokenizer in a folder: AutoTokenizer, or the plain class where it would take that one anyway.

    It would where the folder names the plain class and has no model, whose type may decide otherwise. AutoTokenizer
    imports torch: a second or two and 160 MB, which making tokens does without.
    """
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and not (folder / "config.json").exists():
        said = json_object(settings.read_text(encoding="utf-8"))
        if said.get("tokenizer_class") == PreTrainedTokenizerFast.__name__ and "auto_map" not in said:
            return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer
