"""GGUF, the file of llama.cpp: names, numbers and tokenizer of it by the `gguf` package, read back by transformers.

Only what can be read back is written: the architectures below, with a tokenizer that llama.cpp has the like of.
"""

import importlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfpretrain import hub
from hfpretrain.errors import HFPretrainError, ModelError
from hfpretrain.export_check import Batch, save_tokenizer
from hfpretrain.inference import CausalLM, MaskedLM
from hfpretrain.inference.words import rows_of

log = logging.getLogger(__name__)

MAGIC = b"GGUF"

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
"""What llama.cpp calls the model types of transformers that are written."""
_LLAMA = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
_GPT2 = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
# Settings that llama.cpp knows in one form only.
_FIXED: dict[str, dict[str, Any]] = {"gpt2": _GPT2}
# What transformers' reader leaves at its default, though the file says it.
_UNREAD = {"qwen3": ("head_dim",), "gpt2": ("n_positions", "n_inner")}
# How byte-level BPE splits text, by llama.cpp's names, and whether a whole word of the vocabulary needs no merges.
_SPLITS = {"gpt-2": False, "qwen2": False, "llama-bpe": True}
# Contractions, numbers, runs of spaces, other alphabets: where two ways to split text would differ.
_HARD_TEXTS = (
    "It's 12345 o'clock; they'll say \"no\" — don't!\n\n\tTabs,  two   spaces \r\nand 3.14159",
    "Ünïcödé ñandú 日本語 Привет 👩‍👩‍👧 العربية",
)


def check_gguf(llm: CausalLM | MaskedLM) -> None:
    """Raises ModelError, in a sentence that names it, for what a GGUF file cannot hold."""
    if isinstance(llm, MaskedLM):
        raise ModelError(
            f"{llm.name} is a masked language model, and GGUF is for models that continue a text", hint="use --to onnx"
        )
    config, kind = llm.model.config, llm.model.config.model_type
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(
            f"{llm.name} is of architecture {kind}, which is not written as GGUF",
            hint=f"these are: {known}; or use --to onnx",
        )
    for key, only in _FIXED.get(kind, _LLAMA).items():
        if getattr(config, key, only) != only:
            value = json.dumps(getattr(config, key))
            raise ModelError(f"{llm.name} has {key}: {value}, and llama.cpp's {kind} has {json.dumps(only)} only")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ModelError(f"{llm.name} has positions of rope_type {rope['rope_type']}, which is not written as GGUF")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise ModelError(
            f"{llm.name} attends to the last {window:,} tokens only, and llama.cpp's {kind} to all of them",
            hint="train it with sliding_window: null in model.config, or use --to onnx",
        )
    _split_of(llm)
    _around(llm)
    if llm.tokenizer.backend_tokenizer.normalizer is not None:
        log.warning("the tokenizer composes characters first (NFC), which llama.cpp does not: give it composed text")


def write_gguf(llm: CausalLM, file: Path) -> None:
    """Writes the weights in float32, what llama.cpp has to know of the model, and the tokenizer."""
    gguf: Any = importlib.import_module("gguf")
    config = llm.model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name(Path(llm.name).absolute().name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_sizes(writer, config)
    _add_tokenizer(writer, llm, file.parent)
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, weights in llm.model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise ModelError(f"{llm.name} has weights {name}, which GGUF has no name for")
        writer.add_tensor(written, _laid_out(written, weights, config).contiguous().numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def run_gguf(llm: CausalLM, file: Path, batches: list[Batch]) -> Iterator[Tensor]:
    """The logits of each batch, by what transformers reads from the file.

    Raises HFPretrainError where its tokenizer reads other tokens than the model's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with hub.quiet():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        for key in _UNREAD.get(config.model_type, ()):
            setattr(config, key, getattr(llm.model.config, key))
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, config=config, dtype=torch.float32
        ).eval()
    texts = [*_HARD_TEXTS, *(llm.tokenizer.decode(row) for row in batches[-1]["input_ids"])]
    for text in texts:
        if tokenizer(text)["input_ids"] != llm.tokenizer(text)["input_ids"]:
            raise HFPretrainError(
                f"the GGUF model was removed: its tokenizer reads {text[:40]!r} as other tokens than that of {llm.name}"
            )
    for batch in batches:
        with torch.no_grad():
            yield model(**batch).logits


def _add_sizes(writer: Any, config: Any) -> None:
    """The model's shape, under llama.cpp's names."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head = _head_size(config)
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _laid_out(name: str, weights: Tensor, config: Any) -> Tensor:
    """Weights as llama.cpp wants them: float32, GPT-2's the other way round, and Llama's rotated pairs side by side."""
    weights = weights.float()
    if config.model_type == "gpt2" and weights.ndim == 2 and name.startswith("blk."):
        return weights.T
    if ARCHITECTURES[config.model_type] == "llama" and name.endswith((".attn_q.weight", ".attn_k.weight")):
        # transformers turns the first half of a head with the second, llama.cpp's llama each number with its neighbour.
        halves = weights.view(-1, 2, _head_size(config) // 2, weights.shape[1])
        return halves.transpose(1, 2).reshape(weights.shape)
    return weights


def _add_tokenizer(writer: Any, llm: CausalLM, folder: Path) -> None:
    """The vocabulary, a token for each row of the embedding, its merges, and what stands around a text."""
    gguf: Any = importlib.import_module("gguf")
    tokenizer, rows = llm.tokenizer, rows_of(llm.model)
    kinds, words = [gguf.TokenType.UNUSED] * rows, [f"[PAD{number}]" for number in range(rows)]
    for word, number in tokenizer.get_vocab().items():
        kinds[number], words[number] = gguf.TokenType.NORMAL, word
    for number, added in tokenizer.added_tokens_decoder.items():
        kinds[number] = gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split_of(llm))
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    saved = save_tokenizer(llm, folder)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=rows)
    special.add_special_token = _around(llm)
    special.add_to_gguf(writer, quiet=True)
    for path in saved:
        path.unlink(missing_ok=True)


def _around(llm: CausalLM) -> dict[str, bool]:
    """Whether the tokenizer puts its bos token before a text, and its eos token after it."""
    tokenizer = llm.tokenizer
    plain, whole = (tokenizer("a", add_special_tokens=each)["input_ids"] for each in (False, True))
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for before, after in ((0, 0), (1, 0), (0, 1), (1, 1)):
        if whole == bos * before + plain + eos * after:
            return {"bos": bool(before), "eos": bool(after)}
    raise ModelError(f"the tokenizer of {llm.name} puts more around a text than llama.cpp can: bos and eos alone")


def _split_of(llm: CausalLM) -> str:
    """llama.cpp's name for how the tokenizer splits text; ModelError, naming what it is, where there is none."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if not llm.tokenizer.is_fast:
        raise _no_tokenizer(llm, "is one without a tokenizer.json")
    said = json.loads(llm.tokenizer.backend_tokenizer.to_str())
    model, normalizer = said["model"], said["normalizer"]
    steps = said["pre_tokenizer"] or {"type": "none"}
    *before, last = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    if model["type"] != "BPE" or last["type"] != "ByteLevel" or last["add_prefix_space"]:
        raise _no_tokenizer(llm, f"is another one (model {model['type']}, pre-tokenizer {last['type']})")
    if not model["merges"]:
        raise _no_tokenizer(llm, "has no merges")
    if normalizer and normalizer["type"] != "NFC":
        raise _no_tokenizer(llm, f"changes text first ({normalizer['type']})")
    for name, whole_words in _SPLITS.items():
        if last["use_regex"]:
            fits = name == "gpt-2" and not before
        else:
            pattern = {"Regex": GGUF_PRE_TOKENIZER_SPLITS.get(name)}
            fits = len(before) == 1 and before[0].get("pattern") == pattern and before[0]["behavior"] == "Isolated"
        if fits and bool(model.get("ignore_merges")) == whole_words:
            return name
    raise _no_tokenizer(llm, "splits text in a way of its own")


def _no_tokenizer(llm: CausalLM, what: str) -> ModelError:
    return ModelError(
        f"the tokenizer of {llm.name} {what}, and GGUF is written for byte-level BPE that splits as GPT-2's, Qwen2's "
        "or Llama 3's does",
        hint="train with tokenizer.algorithm: bpe, or use --to onnx",
    )
