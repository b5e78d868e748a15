"""Tasks of lm-evaluation-harness (Gao et al. 2024), where it is installed."""

import importlib
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfpretrain.errors import HFPretrainError, UserError, nearest
from hfpretrain.hub import first_line
from hfpretrain.inference import load

log = logging.getLogger(__name__)


def run_tasks(
    name: str, tasks: Sequence[str], *, include_path: str | None = None, batch_size: int = 8
) -> dict[str, dict[str, float]]:
    """What a causal language model comes to on tasks, and groups of tasks, of the harness: {task: {metric: value}}.

    `include_path` is a folder with tasks of one's own. Raises UserError where the harness is not installed or knows no
    such task, HFPretrainError where a task fails.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("--tasks needs lm-evaluation-harness", hint="install it: pip install 'hfpretrain[eval]'")
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"--include-path: there is no folder {include_path}")
    llm = load(name, objective="clm")
    evaluator = importlib.import_module("lm_eval.evaluator")
    models = importlib.import_module("lm_eval.models.huggingface")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=include_path)
    for task in tasks:
        if not manager.match_tasks([task]):
            near = nearest(task, manager.all_tasks)
            raise UserError(f"--tasks: there is no task {task}", hint=f"did you mean {near}?" if near else None)
    try:
        model = models.HFLM(pretrained=llm.model, tokenizer=llm.tokenizer, batch_size=batch_size)
        found = evaluator.simple_evaluate(
            model=model, tasks=manager.match_tasks(list(tasks)), task_manager=manager, log_samples=False
        )
    except Exception as error:
        raise HFPretrainError(f"--tasks {','.join(tasks)}: {type(error).__name__}: {first_line(error)}") from error
    return {task: _numbers(values) for task, values in (found or {})["results"].items()}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The values that are numbers; the harness names each with its filter, of which `none` says nothing."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
