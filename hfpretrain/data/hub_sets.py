"""Data sets of the Hub: which commit of each a run reads, and what `datasets` makes of that commit."""

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from hfpretrain import hub
from hfpretrain.data.formats import Row, check_columns, fail
from hfpretrain.errors import DataError, HFPretrainError
from hfpretrain.hub import Commit
from hfpretrain.recipe import Recipe, Source
from hfpretrain.recipe_stages import with_sources

log = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------------------- commits


def keep_commits(recipe: Recipe, before: Recipe) -> Recipe:
    """The recipe, with the commits that a run began with for the data sets that it names as it did then."""
    known: dict[str, str] = {}

    def note(source: Source) -> Source:
        if source.hub is not None and source.commit is not None:
            known.setdefault(source.hub, source.commit)
        return source

    def kept(source: Source) -> Source:
        commit = known.get(source.hub or "")
        return source if commit is None or source.commit else dataclasses.replace(source, commit=commit)

    with_sources(before.data, note)
    return dataclasses.replace(recipe, data=with_sources(recipe.data, kept))


def at_commits(recipe: Recipe) -> Recipe:
    """The recipe, with the commit at which each data set of the Hub is now, so that all of a run reads the same.

    Of one that has its commit already it is said where the Hub has another by now. Raises DataError, or HFPretrainError
    where the Hub failed.
    """
    known: dict[str, str] = {}

    def at_commit(source: Source) -> Source:
        name = source.hub
        if name is None or hub.local_folder(name, kind="dataset"):
            return source
        if source.commit:
            if name not in known:
                known[name] = source.commit
                _say_where_it_moved(name, source.commit)
            return source
        if name not in known:
            known[name] = hub.find_commit(name, or_cached=not source.streaming).sha
        return dataclasses.replace(source, commit=known[name])

    return dataclasses.replace(recipe, data=with_sources(recipe.data, at_commit))


def _say_where_it_moved(name: str, commit: str) -> None:
    try:
        now = hub.find_commit(name, or_cached=False).sha
    except HFPretrainError:
        return  # whether it matters, opening it says
    if now != commit:
        said = "the Hub has another commit of %s by now, %.10s: the run goes on with its own, %.10s"
        log.info(said, name, now, commit)


def place_of(source: Source, key: str) -> str | Commit:
    """Where the data set is: the path of a folder, or a commit on the Hub, its own or the present one.

    A stream needs the Hub; else the cache may do. Raises DataError, or HFPretrainError where the Hub failed.
    """
    name = str(source.hub)
    folder = hub.local_folder(name, kind="dataset")
    if folder is None:
        repo_id = hub.split_revision(name)[0]
        return hub.find_commit(f"{repo_id}@{source.commit}" if source.commit else name, or_cached=not source.streaming)
    if source.commit is not None:
        raise DataError(f"{key}.commit: {name} is a folder here, which has none", hint="remove it")
    return folder


# ------------------------------------------------------------------------------------------------------------- rows


def load(place: str | Commit, source: Source, columns: Row, key: str) -> Any:
    """The rows of the split, as a `datasets.Dataset`: from its cache, or downloaded and kept there.

    Raises what `datasets` does; DataError for a split or column that is seen to be missing before the download.
    """
    import datasets

    if isinstance(place, str):
        return datasets.load_dataset(place, source.subset, split=source.split)
    if place.away:
        return _kept_builder(place, place.away, source, key).as_dataset(split=source.split)
    builder = datasets.load_dataset_builder(place.repo_id, source.subset, revision=place.sha)
    if builder.hash != place.sha:
        # Where anything fails, `datasets` takes the newest that its cache has, of whatever commit.
        raise HFPretrainError(f"{key}: the Hub failed while {source.hub} was looked at", hint="try again later")
    _require_split(source, builder.info.splits or builder.config.data_files or (), key)
    if builder.info.features is not None:
        check_columns(columns, builder.info.features, f"{key}: {source.hub}", fail)
    builder.download_and_prepare()
    hub.remember_commit(str(source.hub), place)
    return builder.as_dataset(split=source.split)


def load_stream(place: str | Commit, source: Source) -> Any:
    """The rows of the split, as a `datasets.IterableDataset`. Raises what `datasets` does."""
    import datasets

    if isinstance(place, str):
        return datasets.load_dataset(place, source.subset, split=source.split, streaming=True)
    # With a cache that holds nothing `datasets` cannot go over to another commit where the Hub fails.
    with tempfile.TemporaryDirectory(prefix="hfpretrain-") as empty:
        return datasets.load_dataset(
            place.repo_id, source.subset, split=source.split, revision=place.sha, streaming=True, cache_dir=empty
        )


def _kept_builder(place: Commit, away: Exception, source: Source, key: str) -> Any:
    """What `datasets` prepared of that commit before."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache
    from huggingface_hub.errors import RevisionNotFoundError

    gone = isinstance(away, RevisionNotFoundError)
    why = "the Hub has this commit no more" if gone else "the Hub cannot be reached"
    *namespace, name = place.repo_id.split("/")
    folder = Path(config.HF_DATASETS_CACHE) / "___".join([*namespace, camelcase_to_snakecase(name)])
    found = {path.parts[-3]: path for path in folder.glob(f"*/*/{place.sha}") if path.is_dir()}
    if not found:
        asked_for = f"{place.repo_id}@{place.sha}" if gone else str(source.hub)
        raise hub.explain(away, asked_for, kind="dataset") from away
    subset = source.subset or ("default" if "default" in found or len(found) > 1 else next(iter(found)))
    if subset not in found:
        there = ", ".join(sorted(found))
        raise DataError(
            f"{key}: {why}, and of {source.hub} the cache has no subset {subset!r}, but {there}",
            hint=f"set {key}.subset" if gone else f"set {key}.subset, or check the connection",
        ) from away
    log.info("%s: the data set %s is taken from the cache", why, source.hub)
    version = found[subset].parts[-2]
    return Cache(repo_id=place.repo_id, dataset_name=name, config_name=subset, version=version, hash=place.sha)


def _require_split(source: Source, there: Sequence[Any], key: str) -> None:
    """Raises DataError for a split that is not there, before all of the others are downloaded."""
    names = [str(name) for name in there]
    for part in source.split.split("+"):
        split = part.partition("[")[0].strip()  # of train[:10%]
        if names and split not in (*names, "all"):
            raise DataError(
                f"{key}: {source.hub} has no split {split!r}; the splits are: {', '.join(names)}",
                hint=f"set {key}.split",
            )


def not_loaded(error: Exception, key: str, name: str) -> HFPretrainError:
    """What an error of `datasets` means, in a sentence."""
    from datasets.exceptions import SplitsVerificationError

    if isinstance(error, HFPretrainError):
        return error
    if isinstance(error, SplitsVerificationError):
        return DataError(
            f"{key}: the card of {name} promises other splits or numbers of rows than its files hold",
            hint="name another commit behind the @, or tell its authors; streaming: true does not compare them",
        )
    cause = error.__cause__
    if isinstance(error, ValueError) and not isinstance(error, pa.ArrowException | UnicodeDecodeError):
        # An unknown subset or split; the message lists those there are.
        return DataError(f"{key}: {name}: {_one_line(error)}", hint=f"set {key}.subset or {key}.split")
    for found in (error, cause):
        if isinstance(found, ValueError):  # what a reader says about a damaged file
            return DataError(f"{key}: {name} cannot be read: {_one_line(found)}")
    return hub.explain(error, name, kind="dataset")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
