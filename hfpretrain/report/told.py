"""What a run tells of itself, whatever state it is in: its facts, its recipe and its curves.

Texts of a run's data are in its metrics. A page may be handed on, so it shows those that the card would show, and
prompts that the recipe names; it holds no path, host or user name.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfpretrain import recipe as recipes
from hfpretrain import strict_yaml
from hfpretrain.card import LOCAL, shareable
from hfpretrain.errors import HFPretrainError, RunError
from hfpretrain.files import json_object
from hfpretrain.hub import split_revision
from hfpretrain.recipe_stages import validation_sources
from hfpretrain.report.chart import embedded
from hfpretrain.report.curves import Curves
from hfpretrain.run import Run

log = logging.getLogger(__name__)

State = Literal["running", "stopped", "finished"]
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "objective", "architecture", "packing", "shortcuts", "precision", "device"), (str,)),
    **dict.fromkeys(("data_fingerprint", "base_model", "base_tokenizer"), (str,)),
    **dict.fromkeys(("shape", "versions", "averaged"), (dict,)),
    **dict.fromkeys(("mixing", "sources", "validation_datasets", "lineage", "changes", "samples"), (list,)),
    **dict.fromkeys(("parameters", "parameters_without_embeddings", "training_tokens", "validation_tokens"), (int,)),
    **dict.fromkeys(("processes", "nonfinite_steps", "loss_spikes", "overflow_steps", "peak_memory_bytes"), (int,)),
    **dict.fromkeys(("steps", "tokens", "words", "planned_steps", "planned_seconds", "pairs"), (int, float)),
    **dict.fromkeys(("learning_rate", "flops_per_token", "hardware_flops_per_second", "done"), (int, float)),
    **dict.fromkeys(("epochs", "seconds", "tokens_per_second", "mfu", "flops", "loss"), (int, float)),
    **dict.fromkeys(("validation_floor", "validation_targets"), (int, float)),
}
"""The facts that are looked at, and what each has to be; what a file of a stranger says otherwise is not taken."""
MEASURED = ("validation_", "pairs_accuracy")
_FACTS = re.compile(r'<script type="application/json" id="facts">(.*?)</script>', re.DOTALL)


@dataclass
class Told:
    """All that a page is made from."""

    name: str
    state: State
    facts: dict[str, Any]
    """As report.json has them; of an unfinished run what was known when it began."""
    curves: Curves
    recipe: recipes.Recipe | None = None
    """None where this version cannot read it."""
    problems: list[str] = field(default_factory=list)
    """What could not be read."""

    @staticmethod
    def of(run: Run, *, curves: Curves | None = None) -> "Told":
        """What is in a run directory. RunError where it is none, or where nothing is known of it yet."""
        problems: list[str] = []
        if not run.recipe_file.is_file():
            what = "is not a run: it has no recipe.yaml" if run.path.exists() else "is not there"
            raise RunError(f"{run.path} {what}", hint="give run directories; hfpretrain runs lists those in runs/")
        finished = run.state == "finished"
        facts = run.report() if finished else facts_in(run.page_file)
        recipe = None
        try:
            recipe = recipes.load(run.recipe_file)
        except (HFPretrainError, OSError, UnicodeDecodeError):
            problems.append("its recipe cannot be read by this version of hfpretrain")
        if curves is None:
            curves = Curves()
        try:
            curves.read(run.metrics_file)
        except OSError as error:
            raise RunError(f"{run.metrics_file} cannot be read ({error.strerror or error})") from error
        if curves.unreadable:
            problems.append(f"lines of metrics.jsonl that cannot be read: {curves.unreadable}")
        state: State = "finished" if finished else "running" if run.in_use else "stopped"
        return Told.from_facts(run.path.absolute().name, state, facts, curves, recipe, problems)

    @staticmethod
    def from_facts(
        name: str,
        state: State,
        facts: Mapping[str, Any],
        curves: Curves,
        recipe: recipes.Recipe | None,
        problems: list[str] | None = None,
    ) -> "Told":
        known = {key: value for key, value in facts.items() if _fits(key, value)}
        known["sources"] = [each for each in known.get("sources", []) if _is_source(each)]
        known["validation_datasets"] = [each for each in known.get("validation_datasets", []) if isinstance(each, str)]
        known["changes"] = [_change(each) for each in known.get("changes", []) if isinstance(each, dict)]
        named = recipe.name if recipe else name
        return Told(named, state, known, curves, recipe, problems or [])

    def number(self, key: str) -> float | None:
        """A fact, or else the last value of a curve."""
        value = self.facts.get(key)
        if isinstance(value, int | float):
            return value
        series = self.curves.series.get(key)
        return series.newest if series else None

    def text(self, key: str, otherwise: str = "") -> str:
        return str(self.facts.get(key) or otherwise)

    def mapping(self) -> dict[str, Any]:
        """The recipe without what belongs to one machine; empty where it is not known."""
        if self.recipe is None:
            return {}
        bases = {"base_model": None, "base_tokenizer": None}
        return shareable(bases | self.facts, self.recipe)

    def recipe_text(self) -> str:
        mapping = self.mapping()
        return strict_yaml.write(mapping) if mapping else ""

    def kept(self) -> str:
        """The facts, for the page of an unfinished run to carry: `facts_in` finds them again."""
        kept = {key: value for key, value in self.facts.items() if key != "samples"}
        return f'<script type="application/json" id="facts">{embedded(kept)}</script>'

    def samples(self) -> tuple[dict[str, list[tuple[float, dict[str, Any]]]], bool]:
        """By their texts, the samples over time that may be shown, as (step, sample), oldest first.

        And whether there are some that may not.
        """
        allowed = self._allowed_texts()
        found: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        hidden = False
        for moment in self.curves.chosen_moments(MOMENTS):
            for sample in _samples(moment.get("samples")):
                if allowed is None or sample["text"] in allowed:
                    found.setdefault(sample["text"], []).append((moment["step"], sample))
                else:
                    hidden = True
        if not found:
            for sample in _samples(self.facts.get("samples")):
                found.setdefault(sample["text"], []).append((self.facts.get("steps") or self.curves.last_step, sample))
        return found, hidden

    def _allowed_texts(self) -> set[str] | None:
        """The texts that may be shown; None for all, as the data is there for everyone."""
        if self.recipe is None:
            return set()
        given = {*(self.recipe.evaluation.prompts or ()), *self.recipe.hub.examples}
        public = {source["name"] for source in self.facts["sources"]}
        held_out = [source for _, source in validation_sources(self.recipe.data)]
        everyones = all(
            source.builtin or (source.hub and split_revision(source.hub)[0] in self.facts["validation_datasets"])
            for source in held_out
        )
        if public and LOCAL not in public and everyones and not self.facts["changes"]:
            return None
        return given


MOMENTS = 8
"""Evaluations whose samples are shown."""


def facts_in(page: Path) -> dict[str, Any]:
    """The facts that the page of an unfinished run carries; none where there is no such page."""
    try:
        found = _FACTS.search(page.read_text(encoding="utf-8")) if page.is_file() else None
        return json_object(found[1]) if found else {}
    except (OSError, ValueError):
        return {}


def _fits(key: str, value: Any) -> bool:
    kinds = KINDS.get(key, (int, float) if key.startswith(MEASURED) else ())
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return not isinstance(value, int | float) or -1e300 < value < 1e300


def _is_source(source: Any) -> bool:
    return (
        isinstance(source, dict)
        and isinstance(source.get("name"), str)
        and isinstance(source.get("dataset"), str | None)
        and all(isinstance(source.get(key), int | None) for key in ("documents", "tokens", "words", "text_bytes"))
    )


def _change(change: dict[str, Any]) -> dict[str, Any]:
    """When and what was changed on the way; not to what, as that may be a path."""
    step, changed = change.get("after_step"), change.get("changed")
    names = [str(each).split(":")[0] for each in changed] if isinstance(changed, list) else []
    return {"after_step": step if isinstance(step, int) else 0, "changed": names}


def _samples(found: Any) -> list[dict[str, Any]]:
    """Those that are what this version writes."""
    if not isinstance(found, list):
        return []
    good = [each for each in found if isinstance(each, dict) and isinstance(each.get("text"), str)]
    return [each for each in good if isinstance(each.get("continuation"), str) or _fills(each)]


def _fills(sample: dict[str, Any]) -> bool:
    fills = sample.get("fills")
    return isinstance(fills, list) and all(
        isinstance(each, list) and len(each) == 2 and isinstance(each[0], str) and _fits("done", each[1])
        for each in fills
    )
