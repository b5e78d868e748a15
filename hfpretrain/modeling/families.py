"""The published sizes of common families of models: what `model.size` takes their proportions from.

Each row is a model that its authors published, by the sizes in its config.json. Rows go from small to large by the
weights of their layers, and a family's other sizes lie between them (see sizing.py). Where a family begins late, its
line goes on down to a small model of 4 layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Published(NamedTuple):
    """A published model. Zero: as many key-value heads as heads, or a head as wide as the width over the heads."""

    depth: int
    width: int
    heads: int
    feed_forward: int
    kv_heads: int = 0
    head_dim: int = 0


@dataclass(frozen=True, kw_only=True)
class Family:
    """The sizes of a family, and how its configuration calls them."""

    sizes: tuple[Published, ...]
    feed_forward: str | None = "intermediate_size"
    """The key of the feed-forward width; None where it follows from the width."""
    feed_forward_default: int = 0
    """The feed-forward width is so many times the width where the key is left out; 0: it is always written."""
    tied_below: float = 0
    """Smaller models have one table for input and output embeddings, whatever the default is; 0: by default."""
    follows: Mapping[str, str] = field(default_factory=dict)
    """Other keys that have to move with a size, as the Gemmas' scale of attention with the width of a head."""


_GPT2 = (  # Radford et al. 2019; below them nanoGPT's for characters
    Published(4, 128, 4, 512),
    Published(6, 384, 6, 1536),
    Published(12, 768, 12, 3072),
    Published(24, 1024, 16, 4096),
    Published(36, 1280, 20, 5120),
    Published(48, 1600, 25, 6400),
)
_LLAMA = (  # llama2.c's stories15M to 110M, TinyLlama (Zhang et al. 2024), Llama 1 and 2 (Touvron et al. 2023)
    Published(6, 288, 6, 768),
    Published(8, 512, 8, 1376),
    Published(12, 768, 12, 2048),
    Published(22, 2048, 32, 5632, 4),
    Published(32, 4096, 32, 11008),
    Published(40, 5120, 40, 13824),
    Published(80, 8192, 64, 28672, 8),
)
_BERT = (  # Turc et al. 2019: tiny, mini, medium; Devlin et al. 2019: base, large
    Published(2, 128, 2, 512),
    Published(4, 256, 4, 1024),
    Published(8, 512, 8, 2048),
    Published(12, 768, 12, 3072),
    Published(24, 1024, 16, 4096),
)
_ETTIN = (  # ModernBERT (Warner et al. 2024): 22 and 28 layers; Ettin (Weller et al. 2025): the others
    Published(7, 256, 4, 384),
    Published(10, 384, 6, 576),
    Published(19, 512, 8, 768),
    Published(22, 768, 12, 1152),
    Published(28, 1024, 16, 2624),
    Published(28, 1792, 28, 3840),
)

FAMILIES: Mapping[str, Family] = {
    # Next words
    "gpt2": Family(sizes=_GPT2, feed_forward="n_inner", feed_forward_default=4),
    "llama": Family(sizes=_LLAMA, tied_below=1e9),
    "mistral": Family(  # Jiang et al. 2023; NeMo
        sizes=(Published(32, 4096, 32, 14336, 8, 128), Published(40, 5120, 32, 14336, 8, 128)), tied_below=1e9
    ),
    "qwen2": Family(  # Qwen2.5
        sizes=(
            Published(24, 896, 14, 4864, 2),
            Published(28, 1536, 12, 8960, 2),
            Published(36, 2048, 16, 11008, 2),
            Published(28, 3584, 28, 18944, 4),
            Published(48, 5120, 40, 13824, 8),
        ),
        tied_below=5e9,
    ),
    "qwen3": Family(  # Qwen3, dense
        sizes=(
            Published(28, 1024, 16, 3072, 8, 128),
            Published(28, 2048, 16, 6144, 8, 128),
            Published(36, 2560, 32, 9728, 8, 128),
            Published(36, 4096, 32, 12288, 8, 128),
            Published(40, 5120, 40, 17408, 8, 128),
            Published(64, 5120, 64, 25600, 8, 128),
        ),
        tied_below=6e9,
    ),
    "smollm3": Family(  # SmolLM2's 135M and 360M, SmolLM3's 3B: deep and narrow
        sizes=(
            Published(30, 576, 9, 1536, 3),
            Published(32, 960, 15, 2560, 5),
            Published(36, 2048, 16, 11008, 4),
        )
    ),
    "gemma": Family(
        sizes=(Published(18, 2048, 8, 16384, 1, 256), Published(28, 3072, 16, 24576, 16, 256)),
    ),
    "gemma2": Family(
        sizes=(
            Published(26, 2304, 8, 9216, 4, 256),
            Published(42, 3584, 16, 14336, 8, 256),
            Published(46, 4608, 32, 36864, 16, 128),
        ),
        follows={"query_pre_attn_scalar": "head_dim"},
    ),
    "gemma3_text": Family(
        sizes=(
            Published(18, 640, 4, 2048, 1, 256),
            Published(26, 1152, 4, 6912, 1, 256),
            Published(34, 2560, 8, 10240, 4, 256),
            Published(48, 3840, 16, 15360, 8, 256),
            Published(62, 5376, 32, 21504, 16, 128),
        ),
        follows={"query_pre_attn_scalar": "head_dim"},
    ),
    "opt": Family(  # Zhang et al. 2022, but for the 350M, which is another kind of network
        sizes=(
            Published(12, 768, 12, 3072),
            Published(24, 2048, 32, 8192),
            Published(32, 2560, 32, 10240),
            Published(32, 4096, 32, 16384),
            Published(40, 5120, 40, 20480),
        ),
        feed_forward="ffn_dim",
    ),
    "gpt_neox": Family(  # Pythia (Biderman et al. 2023)
        sizes=(
            Published(6, 128, 4, 512),
            Published(6, 256, 8, 1024),
            Published(6, 512, 8, 2048),
            Published(12, 768, 12, 3072),
            Published(24, 1024, 16, 4096),
            Published(16, 2048, 8, 8192),
            Published(24, 2048, 16, 8192),
            Published(32, 2560, 32, 10240),
            Published(32, 4096, 32, 16384),
            Published(36, 5120, 40, 20480),
        )
    ),
    "bloom": Family(
        sizes=(
            Published(24, 1024, 16, 4096),
            Published(24, 1536, 16, 6144),
            Published(24, 2048, 16, 8192),
            Published(30, 2560, 32, 10240),
            Published(30, 4096, 32, 16384),
        ),
        feed_forward=None,
        feed_forward_default=4,
    ),
    "olmo": Family(sizes=(Published(16, 2048, 16, 8192), Published(32, 4096, 32, 11008)), tied_below=1.5e9),
    "olmo2": Family(
        sizes=(
            Published(16, 2048, 16, 8192),
            Published(32, 4096, 32, 11008),
            Published(40, 5120, 40, 13824),
            Published(64, 5120, 40, 27648, 8),
        ),
        tied_below=1e9,
    ),
    "phi": Family(sizes=(Published(24, 2048, 32, 8192), Published(32, 2560, 32, 10240)), tied_below=1e9),
    "stablelm": Family(sizes=(Published(24, 2048, 32, 5632), Published(32, 2560, 32, 6912)), tied_below=1e9),
    "modernbert-decoder": Family(sizes=_ETTIN),
    # Masked words
    "bert": Family(sizes=_BERT),
    "roberta": Family(sizes=_BERT),
    "xlm-roberta": Family(sizes=_BERT),
    "distilbert": Family(  # Sanh et al. 2019: half of BERT's layers
        sizes=(
            Published(2, 256, 4, 1024),
            Published(4, 512, 8, 2048),
            Published(6, 768, 12, 3072),
            Published(12, 1024, 16, 4096),
        ),
        feed_forward="hidden_dim",
    ),
    "modernbert": Family(sizes=_ETTIN),
    "deberta-v2": Family(  # DeBERTa V3's xsmall, base and large, V2's xxlarge (He et al. 2021)
        sizes=(
            Published(12, 384, 6, 1536),
            Published(12, 768, 12, 3072),
            Published(24, 1024, 16, 4096),
            Published(48, 1536, 24, 6144),
        ),
    ),
    "eurobert": Family(  # Boizard et al. 2025
        sizes=(
            Published(12, 768, 12, 3072, 12),
            Published(26, 1152, 18, 4096, 6),
            Published(32, 2304, 18, 6144, 6),
        ),
    ),
}
