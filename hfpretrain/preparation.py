"""`hfpretrain data`: the tokenizer and the tokens of a recipe, made ahead of training, alone or in shares."""

from typing import Any

from hfpretrain.data.hub_sets import at_commits
from hfpretrain.data.parts import Shard
from hfpretrain.data.sources import open_sources
from hfpretrain.data.stores import store_of
from hfpretrain.data.tokens import end_of_document, prepare_shard
from hfpretrain.errors import UserError
from hfpretrain.modeling.tokenizer import tokenizer_of_data
from hfpretrain.recipe import Recipe
from hfpretrain.recipe_stages import training_sources, validation_sources


def prepare_data(recipe: Recipe, shard: str | None = None) -> list[dict[str, Any]]:
    """Prepares each source of the recipe as training would, and returns what there is: the counts of each.

    Of streamed sources there is nothing to prepare.

    The tokenizer comes first; the same data gives the same one on every machine. Whether the model can have it is for
    training and `check` to say: another architecture would get the same tokens. With `shard`, e.g. 3/16, only that
    share is made; the counts of what is not whole yet are None.
    """
    share = None if shard is None else parse_shard(shard)
    recipe = at_commits(recipe)
    tokenizer = tokenizer_of_data(recipe)
    end_id = end_of_document(tokenizer, recipe.objective)
    lines = []
    bad_rows = recipe.data.on_bad_rows
    opened = open_sources(training_sources(recipe.data), on_bad_rows=bad_rows)
    opened += open_sources(validation_sources(recipe.data), on_bad_rows=bad_rows)  # duplicates count in each by itself
    for source in opened:
        if source.stream:
            lines.append({"source": source.key, "streamed": True})
            continue
        store = (
            prepare_shard(source, tokenizer, share, end_id=end_id)
            if share and source.token_files is None
            else store_of(source, tokenizer, end_id=end_id)
        )
        counts = ("documents", "tokens", "text_bytes", "skipped", "blank", "left_out")
        line = {name: store.manifest[name] if store else None for name in counts}
        if store:
            line["bytes_per_token"] = round(store.text_bytes / len(store.tokens), 3)
        lines.append({"source": source.key} | line)
    return lines


def parse_shard(text: str) -> Shard:
    """The share that `3/16` names. Raises UserError."""
    number, _, of = text.partition("/")
    if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
        return Shard(int(number), int(of))
    raise UserError(f"--shard {text}: that is no share", hint="write for example 3/16, the third of sixteen")
