"""Micro-batches: labels and masks are where they belong, and a document's logits depend on no other document."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import BERT, LLAMA, tiny_recipe, tiny_run
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hfpretrain.data.batches import Batches, Row, open_batches
from hfpretrain.data.blocks import PADDING, Block
from hfpretrain.modeling.attention import prove_document_masking
from hfpretrain.modeling.loss import Loss
from hfpretrain.modeling.model import build_model
from hfpretrain.modeling.objective import IGNORED, Collator
from hfpretrain.recipe import Masking, Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objective")


@pytest.fixture(scope="module")
def masked(folder: Path) -> tuple[Recipe, PreTrainedTokenizerBase, Batches]:
    return opened(folder, "mlm")


@pytest.fixture(scope="module")
def causal(folder: Path) -> tuple[Recipe, PreTrainedTokenizerBase, Batches]:
    return opened(folder, "clm")


def opened(folder: Path, objective: str) -> tuple[Recipe, PreTrainedTokenizerBase, Batches]:
    run = tiny_run(folder, objective, "train.duration=1", name=objective)
    recipe = tiny_recipe(folder, objective)
    tokenizer = AutoTokenizer.from_pretrained(run.path)
    return recipe, tokenizer, open_batches(recipe, tokenizer)


def test_each_token_is_predicted_from_the_one_before_it(
    causal: tuple[Recipe, PreTrainedTokenizerBase, Batches],
) -> None:
    recipe, tokenizer, batches = causal
    blocks = batches.parts[0].blocks
    rows = [Row(block, 0) for block in blocks]
    plain = Collator(recipe, tokenizer, isolated=False)(rows)
    stream = [int(token) for block in blocks for token in block.token_ids[:-1][block.documents[:-1] != PADDING]]
    labels = [label for label in plain["labels"].flatten().tolist() if label != IGNORED]
    assert labels == stream[1:], "every token but the very first is a target, also across the ends of blocks"
    isolated = Collator(recipe, tokenizer, isolated=True)(rows)["labels"]
    assert tokenizer.bos_token_id not in isolated, "no document's start is guessed from another's end"
    assert (isolated == tokenizer.eos_token_id).sum() == (plain["labels"] == tokenizer.eos_token_id).sum()


def test_masks_are_drawn_as_the_recipe_says(masked: tuple[Recipe, PreTrainedTokenizerBase, Batches]) -> None:
    recipe, tokenizer, batches = masked
    rows = [batches.row(position) for position in range(600)]
    collator = Collator(recipe, tokenizer, isolated=True, masking=Masking(rate=0.3, mask=0.8, random=0.1))
    batch = collator(rows)
    original = torch.from_numpy(np.stack([row.block.token_ids[:-1] for row in rows]))
    chosen = batch["labels"] != IGNORED
    special = torch.isin(original, torch.tensor(tokenizer.all_special_ids))
    assert not (chosen & special).any(), "special tokens and padding are never targets"
    assert torch.equal(batch["labels"][chosen], original[chosen])
    assert torch.equal(batch["input_ids"][~chosen], original[~chosen])
    assert chosen.sum() / (~special).sum() == pytest.approx(0.3, abs=0.02)
    replaced = batch["input_ids"][chosen] == tokenizer.mask_token_id
    kept = batch["input_ids"][chosen] == original[chosen]
    assert replaced.float().mean() == pytest.approx(0.8, abs=0.03)
    assert kept.float().mean() == pytest.approx(0.1, abs=0.03)


def test_masks_do_not_depend_on_how_a_batch_is_cut(masked: tuple[Recipe, PreTrainedTokenizerBase, Batches]) -> None:
    recipe, tokenizer, batches = masked
    collator = Collator(recipe, tokenizer, isolated=True)
    whole = collator(batches.rows(3))
    parts = [collator(batches.rows(3, range(place, place + 1))) for place in range(4)]
    for batch in (whole, *parts):
        labels, places = batch["labels"].flatten(), batch.pop("targets")
        assert torch.equal(labels[places][labels[places] != IGNORED], labels[labels != IGNORED])
    for name in whole:
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    epoch = len(batches.parts[0].blocks)
    first, again = [collator([batches.row(p)]) for p in (0, position_of_the_same_block(batches, epoch))]
    assert not torch.equal(first["labels"], again["labels"]), "another epoch masks other tokens"


def position_of_the_same_block(batches: Batches, epoch: int) -> int:
    wanted = batches.row(0).block.token_ids
    return next(p for p in range(epoch, 2 * epoch) if np.array_equal(batches.row(p).block.token_ids, wanted))


def test_an_epoch_holds_every_block_once_and_another_order_follows(
    masked: tuple[Recipe, PreTrainedTokenizerBase, Batches],
) -> None:
    _, _, batches = masked
    size = len(batches.parts[0].blocks)
    epochs = [[batches.row(p).block.token_ids.tobytes() for p in range(e * size, (e + 1) * size)] for e in range(2)]
    everything = sorted(block.token_ids.tobytes() for block in batches.parts[0].blocks)
    assert sorted(epochs[0]) == sorted(epochs[1]) == everything
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("objective", ["clm", "mlm"])
@pytest.mark.parametrize("packing", ["documents", "concat"])
def test_logits_of_a_document_depend_on_no_other_one(
    objective: str, packing: str, request: pytest.FixtureRequest
) -> None:
    recipe, tokenizer, _ = request.getfixturevalue("causal" if objective == "clm" else "masked")
    architecture, config = ("llama", LLAMA) if objective == "clm" else ("bert", BERT)
    recipe = tiny_recipe(
        Path(recipe.output_dir).parent.parent, objective, f"model={{architecture: {architecture}, config: {config}}}"
    )
    model = build_model(recipe, tokenizer).eval()
    how = prove_document_masking(model, recipe.objective) if packing == "documents" else None
    loss, collator = Loss(model, how), Collator(recipe, tokenizer, isolated=how is not None)
    documents = np.array([0] * 5 + [1] * 6 + [2] * 4 + [PADDING] * 2)
    tokens = np.arange(20, 37)
    other = np.where(documents == 1, tokens + 50, tokens)

    def logits(token_ids: np.ndarray) -> torch.Tensor:
        batch = collator([Row(Block(token_ids, documents != PADDING, documents), seed=0)])
        batch["input_ids"] = torch.from_numpy(token_ids[:-1])[None]
        with torch.no_grad():
            found: torch.Tensor = model(**loss.inputs(batch)).logits[0]
        return found

    one, two = logits(tokens), logits(other)
    changed = torch.from_numpy(documents[:-1] == 1)
    outside = ~changed & torch.from_numpy(documents[:-1] != PADDING)
    assert not torch.allclose(one[changed], two[changed])
    assert torch.allclose(one[outside], two[outside], atol=1e-6) == (packing == "documents")
