"""`hfpretrain data`: the tokenizer and the tokens of a recipe, made ahead of training, alone or in shares."""

from collections.abc import Iterator
from typing import Any

from hfpretrain.data.parts import Shard
from hfpretrain.data.sources import open_source
from hfpretrain.data.tokens import end_of_document, prepare, prepare_shard
from hfpretrain.errors import UserError
from hfpretrain.modeling.tokenizer import build_tokenizer
from hfpretrain.recipe import Amount, Recipe, Source


def prepare_data(recipe: Recipe, shard: str | None = None) -> list[dict[str, Any]]:
    """Prepares each source of the recipe as training would, and returns what there is: the counts of each.

    The tokenizer comes first; the same data gives the same one on every machine. With `shard`, e.g. 3/16, only that
    share is made; the counts of what is not whole yet are None.
    """
    share = None if shard is None else parse_shard(shard)
    tokenizer = build_tokenizer(recipe)
    end_id = end_of_document(tokenizer, recipe.objective)
    lines = []
    for key, source in _sources(recipe):
        opened = open_source(source, on_bad_rows=recipe.data.on_bad_rows, key=key)
        store = (
            prepare_shard(opened, tokenizer, share, end_id=end_id)
            if share
            else prepare(opened, tokenizer, end_id=end_id)
        )
        counts = ("documents", "tokens", "text_bytes", "skipped", "blank")
        line = {name: store.manifest[name] if store else None for name in counts}
        if store:
            line["bytes_per_token"] = round(store.text_bytes / len(store.tokens), 3)
        lines.append({"source": key} | line)
    return lines


def parse_shard(text: str) -> Shard:
    """The share that `3/16` names. Raises UserError."""
    number, _, of = text.partition("/")
    if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
        return Shard(int(number), int(of))
    raise UserError(f"--shard {text}: that is no share", hint="write for example 3/16, the third of sixteen")


def _sources(recipe: Recipe) -> Iterator[tuple[str, Source]]:
    """Every source that training reads, with its key."""
    for number, source in enumerate(recipe.data.sources):
        yield f"data.sources.{number}", source
    validation = recipe.data.validation
    for number, source in enumerate(() if isinstance(validation, Amount) else validation):
        if source not in recipe.data.sources:
            yield f"data.validation.{number}", source
