"""The smallest recipe, and the lines of what is wrong with one."""

import pytest

from hfpretrain import recipe as recipes
from hfpretrain.errors import RecipeError

SMALL = "objective: mlm\ndata: {sources: [{builtin: everyday}]}\n"


def errors_of(path: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipes.load(path, overrides)
    assert caught.value.exit_status == 2
    return caught.value.message.splitlines()
