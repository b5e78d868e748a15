"""The architectures that every part has to work with, at two layers and 32 wide, and a tokenizer for them."""

from typing import Any, Literal

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfpretrain.recipe import Data, Model, Recipe, Source

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

MASKED: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "modernbert": SIZES,
    "electra": SIZES,
    "albert": SIZES,
    "deberta-v2": SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
}
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "llama": SIZES,
    "qwen3": SIZES,
    "gemma3_text": SIZES,
    "gpt_neox": SIZES,
    "olmo2": SIZES,
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "mixtral": SIZES,
}
ARCHITECTURES: list[tuple[str, Literal["clm", "mlm"]]] = [
    *((name, "mlm") for name in MASKED),
    *((name, "clm") for name in CAUSAL),
]


def tokenizer_for(objective: str, size: int = 100, *, pad_first: bool = False) -> PreTrainedTokenizerFast:
    """`size` words; the pad token's id is 2, or 0."""
    special = ["[PAD]", "[UNK]", "[EOS]"] if pad_first else ["[EOS]", "[UNK]", "[PAD]"]
    words = [*special, "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(size - 6))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    own = {"eos_token": "[EOS]"}
    if objective == "mlm":
        own = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **own)


def recipe_for(
    architecture: str | None,
    objective: Literal["clm", "mlm"],
    config: dict[str, Any] | None = None,
    *,
    from_: str | None = None,
    block_size: int = 32,
    seed: int = 0,
) -> Recipe:
    if config is None:
        config = (MASKED | CAUSAL).get(architecture or "", {})
    return Recipe(
        objective=objective,
        data=Data(sources=(Source(builtin="everyday"),), block_size=block_size),
        model=Model(architecture=architecture, config=config, from_=from_),
        seed=seed,
    )
