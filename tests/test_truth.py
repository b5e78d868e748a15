"""What is reported is true: losses against what the data allows, a step against a loop in torch alone."""

import dataclasses
import itertools
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import LLAMA, tiny_recipe, tiny_run, weights
from torch import nn

from hfpretrain.data import everyday
from hfpretrain.modeling.objective import IGNORED
from hfpretrain.recipe import Recipe, from_mapping
from hfpretrain.run import Run
from hfpretrain.training.loop import train, train_step, upcoming
from hfpretrain.training.optimizer import set_learning_rate
from hfpretrain.training.session import Session, open_accelerator, prepare_session

LETTERS = "abcdefgh"


def markov_chain(length: int) -> tuple[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Letters that depend on the one before, and the probabilities of each after each."""
    numbers = np.random.default_rng(0)
    chances = numbers.dirichlet(np.full(len(LETTERS), 0.5), size=len(LETTERS))
    letters = [0]
    while len(letters) < length:
        letters.append(int(numbers.choice(len(LETTERS), p=chances[letters[-1]])))
    return "".join(LETTERS[letter] for letter in letters), chances


def test_the_loss_comes_to_the_entropy_of_a_known_source(tmp_path: Path) -> None:
    text, chances = markov_chain(60_000)
    (tmp_path / "chain.txt").write_text(text)
    run = train(
        from_mapping(
            {
                "objective": "clm",
                "output_dir": str(tmp_path / "run"),
                "model": {"architecture": "llama", "config": LLAMA},
                "tokenizer": {"algorithm": "char"},
                "data": {"sources": [{"files": str(tmp_path / "chain.txt")}], "validation": "15%", "block_size": 32},
                "train": {"duration": 200, "batch_size": 16, "precision": "fp32"},
                "optimizer": {"lr": 1e-2},
            }
        )
    )
    report = run.report()
    held_out = [LETTERS.index(letter) for letter in text[-report["validation_tokens"] :]]
    assert report["validation_targets"] == len(held_out) - 1  # all but the first, which follows nothing
    truth = -np.log([chances[one, other] for one, other in itertools.pairwise(held_out)]).mean()
    assert truth - 0.002 < report["validation_loss"] < 1.01 * truth


def test_masked_letters_that_their_neighbours_give_away_cost_nothing(tmp_path: Path) -> None:
    """Texts that go round the alphabet from anywhere: whoever sees one letter and its place knows all."""
    chance = random.Random(0)
    with (tmp_path / "round.jsonl").open("w") as file:
        for _ in range(150):
            first, length = chance.randrange(len(LETTERS)), chance.randrange(100, 200)
            file.write(json.dumps({"text": (LETTERS * 30)[first : first + length]}) + "\n")
    run = train(
        from_mapping(
            {
                "objective": "mlm",
                "output_dir": str(tmp_path / "run"),
                "model": {"architecture": "modernbert", "config": LLAMA},
                "tokenizer": {"algorithm": "char"},
                "data": {"sources": [{"files": str(tmp_path / "round.jsonl")}], "validation": "10%", "block_size": 32},
                "masking": {"mask": 1.0, "random": 0.0},
                "train": {"duration": 250, "batch_size": 32, "precision": "fp32"},
                "optimizer": {"name": "muon", "lr": 2e-2},
            }
        )
    )
    assert run.report()["validation_targets"] > 200
    assert run.report()["validation_loss"] < 0.06  # of log 8 = 2.1: a piece of a text may be masked whole


def without_dropout(folder: Path, objective: str, *overrides: str) -> Recipe:
    recipe = tiny_recipe(folder, objective, *overrides)
    quiet = (
        {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        if objective == "clm"
        else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    )
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, config={**recipe.model.config, **quiet}))


def opened(folder: Path, recipe: Recipe) -> Session:
    return prepare_session(recipe, Run(folder / "truth"), open_accelerator(recipe))


def plain_loss(model: nn.Module, session: Session, step: int, z_loss: float = 0.0) -> torch.Tensor:
    """The mean over all targets of a step: each document by itself through the model, one after another."""
    rows = session.batches.rows(step)
    total, targets = torch.zeros(()), 0
    for row in rows:
        batch = session.collator([row])
        inputs, labels, documents = (batch[key][0] for key in ("input_ids", "labels", "document_ids"))
        for number in sorted(set(documents.tolist())):
            own = documents == number
            if number < 0 or not (labels[own] != IGNORED).any():
                continue
            logits = model(input_ids=inputs[own][None]).logits[0]
            counted = labels[own] != IGNORED
            logs = logits[counted].log_softmax(-1)
            total = total - logs[torch.arange(int(counted.sum())), labels[own][counted]].sum()
            total = total + z_loss * logits[counted].logsumexp(-1).square().sum()
            targets += int(counted.sum())
    return total / targets


@pytest.mark.parametrize("shortcuts", ["auto", "none"])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_the_gradient_of_a_step_is_that_of_a_plain_loop(
    tmp_path: Path, objective: str, z_loss: float, shortcuts: str
) -> None:
    """Several documents in a block, several micro-batches in a step, each with another number of targets."""
    settings = ["train.gradient_clip=0", "train.micro_batch_size=2", f"train.z_loss={z_loss}"]
    session = opened(tmp_path, without_dropout(tmp_path, objective, *settings, f"train.shortcuts={shortcuts}"))
    assert (session.facts["shortcuts"] == "none") == (shortcuts == "none")
    assert session.facts["packing"] == "documents"
    model = session.accelerator.unwrap_model(session.model)
    plain_loss(model, session, 0, z_loss).backward()  # type: ignore[no-untyped-call]
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    value = plain_loss(model, session, 0).item()
    model.zero_grad()

    found: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.clone()

    session.optimizers[0].optimizer.register_step_pre_hook(keep)  # type: ignore[attr-defined]
    micro_batches, targets = next(iter(upcoming(session, 0)))
    assert len(micro_batches) == 2
    outcome = train_step(session, 0, micro_batches, targets, 1e-3)
    assert outcome[0].item() / targets == pytest.approx(value, rel=1e-6)  # whatever the z-loss
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name


def test_five_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """AdamW with clipping, no decay on norms, biases and embeddings, and the warm-up's rates, all by hand."""
    recipe = without_dropout(tmp_path, "clm", "train.gradient_clip=0.5", "schedule.warmup=5", "schedule.decay=0%")
    session = opened(tmp_path, recipe)
    model = session.accelerator.unwrap_model(session.model)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    rates = [1e-3 * number / 5 for number in range(1, 6)]
    for step, rate in enumerate(rates):
        plain_loss(model, session, step).backward()  # type: ignore[no-untyped-call]
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        norm = math.sqrt(sum(float(each.double().square().sum()) for each in gradients.values() if each is not None))
        assert norm > 0.5, "nothing would be clipped"
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gradient = gradients[name]
                assert gradient is not None
                gradient = gradient * 0.5 / norm
                decays = parameter.ndim == 2 and not name.endswith(("wte.weight", "wpe.weight"))
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.95 * second[name] + 0.05 * gradient.square()
                mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.95 ** (step + 1))
                parameter *= 1 - rate * (recipe.optimizer.weight_decay if decays else 0)
                parameter -= rate * mean / (square.sqrt() + recipe.optimizer.eps)
        model.zero_grad()
    by_hand = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    for step, (micro_batches, targets) in zip(range(5), upcoming(session, 0), strict=False):
        train_step(session, step, micro_batches, targets, rates[step])
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, by_hand[name], rtol=0, atol=2e-5), name
        assert (parameter - weights[name]).abs().max() > 1e-4, name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_parts_of_the_model_have_learning_rates_of_their_own(tmp_path: Path, optimizer: str) -> None:
    factors = "optimizer.lr_factors={embeddings: 0, '*.h.0.*': 0.5, vectors: 3}"
    session = opened(tmp_path, without_dropout(tmp_path, "clm", f"optimizer.name={optimizer}", factors))
    model = session.accelerator.unwrap_model(session.model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    set_learning_rate(session.optimizers, 1e-3)
    rate = {
        id(parameter): group["lr"]
        for each in session.optimizers
        for group in each.param_groups
        for parameter in group["params"]
    }
    named = dict(model.named_parameters())
    assert rate[id(named["transformer.h.0.attn.c_attn.bias"])] == 5e-4  # the first that it is in
    assert rate[id(named["transformer.h.1.attn.c_attn.bias"])] == 3e-3
    assert rate[id(named["transformer.h.1.attn.c_attn.weight"])] == 1e-3
    micro_batches, targets = next(iter(upcoming(session, 0)))
    train_step(session, 0, micro_batches, targets, 1e-3)
    moved = {name for name, parameter in named.items() if not torch.equal(parameter, before[name])}
    assert set(named) - moved == {"transformer.wte.weight", "transformer.wpe.weight"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_allowed_to_change_does_change(tmp_path: Path, optimizer: str) -> None:
    """A checkpoint holds the optimizer's settings of its time; those of the recipe count."""
    settings = [f"optimizer.name={optimizer}", "checkpoints.every=1", "checkpoints.keep=20"]
    for name, decay in (("as-it-was", 0.1), ("changed", 50.0)):
        recipe = tiny_recipe(tmp_path, "clm", *settings, f"optimizer.weight_decay={decay}", name=name)
        if name == "changed":
            shutil.copytree(tmp_path / "runs" / "as-it-was", recipe.output_dir)
            Run(Path(recipe.output_dir)).report_file.unlink()
            for step in (10, 11, 12):
                shutil.rmtree(Path(recipe.output_dir) / "checkpoints" / f"step-{step:08d}")
        train(recipe, resume=name == "changed", allow_changes=name == "changed")
    before, after = (weights(Run(tmp_path / "runs" / name)) for name in ("as-it-was", "changed"))
    key = "transformer.h.1.mlp.c_fc.weight"
    assert after[key].norm() < 0.95 * before[key].norm()


def test_the_builtin_corpus_has_a_floor(tmp_path: Path) -> None:
    """Nobody predicts the grammar's texts better than the grammar; a model that has learnt some is not far above."""
    builtin = "data.sources=[{builtin: everyday, size: 300kB}]"
    settings = [builtin, "tokenizer.algorithm=char", "data.block_size=64", "data.validation=3%", "optimizer.lr=1e-2"]
    run = tiny_run(tmp_path, "clm", *settings, "train.batch_size=16", "train.duration=40")
    floor, report = run.report()["validation_floor"], run.report()
    texts = list(everyday.documents(300_000))
    usual = sum(everyday.surprise(index) for index in range(len(texts))) / sum(len(text) + 1 for text in texts)
    assert floor == pytest.approx(usual, rel=0.15)  # of all texts, in characters and the end of each
    assert floor < report["validation_loss"]
    assert tiny_run(tmp_path, "clm", name="other").report()["validation_floor"] is None
    filtered = [*settings, "data.sources.0.min_chars=20", "train.duration=1"]
    assert tiny_run(tmp_path, "clm", *filtered, name="filtered").report()["validation_floor"] is None
