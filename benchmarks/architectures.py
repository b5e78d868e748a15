"""Which shortcut to the loss holds on which architecture: every masked and causal one that can be built small.

Each is built with two layers, proven as a run proves it, and trained two steps with its shortcuts and two without
them; the largest difference between the losses is shown. Prints a table and what could not be built.

    python benchmarks/architectures.py > benchmarks/ARCHITECTURES.md
"""

import copy
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from architectures import recipe_for, tokenizer_for

from hfpretrain.errors import HFPretrainError
from hfpretrain.modeling.architecture import MODEL_NAMES, declared_keys
from hfpretrain.modeling.attention import proof_batch, prove_document_masking
from hfpretrain.modeling.loss import Loss, Shortcuts
from hfpretrain.modeling.model import build_model
from hfpretrain.modeling.objective import IGNORED, target_places
from hfpretrain.modeling.passes import faster_passes
from hfpretrain.modeling.proof import prove_shortcuts

SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "emb_dim", "embedding_size", "model_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("decoder_attention_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size"), 32),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    "head_dim": 16,
    "max_position_embeddings": 128,
}
COLUMNS = {
    "on_targets": "head on targets",
    "last_layer": "last layer on targets",
    "fused": "fused cross-entropy",
    "norms": "fused norms",
    "rotations": "fused rotary positions",
}
"""The shortcuts, and what the table calls them."""
SECONDS = 40
"""For one architecture; some have sizes that cannot be guessed."""


def small_config(architecture: str) -> dict[str, Any]:
    config_class = CONFIG_MAPPING[architecture]
    names = set(declared_keys(config_class))
    own: dict[str, str] = config_class.attribute_map
    return {key: value for key, value in SMALL.items() if key in names and own.get(key, key) == key}


def two_steps(model: Any, how: Any, shortcuts: Shortcuts, batch: dict[str, torch.Tensor]) -> list[float]:
    """The losses of two steps and of what they lead to, in nats per target."""
    loss = Loss(model, how, shortcuts)
    model.eval()  # dropout would differ
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    count = int((batch["labels"] != IGNORED).sum())
    for _ in range(3):
        with faster_passes(model, shortcuts):
            total = loss(model, batch)
            (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item() / count)
    return losses


def row(objective: Any, architecture: str) -> list[str]:
    """A row of the table. Raises what the plain model raises."""
    model = build_model(recipe_for(architecture, objective, small_config(architecture)), tokenizer_for(objective))
    found = proof_batch(model)
    if found is None:
        raise ValueError("it takes too few tokens")
    how = prove_document_masking(model, objective)
    documents, input_ids = found
    labels = input_ids.roll(-1, 1)
    if objective == "mlm":
        labels[torch.arange(labels.numel()).view_as(labels) % 7 != 0] = IGNORED
    batch = {"input_ids": input_ids, "labels": labels, "document_ids": documents, "targets": target_places(labels)}
    plain = two_steps(copy.deepcopy(model), how, Shortcuts(), batch)
    shortcuts = prove_shortcuts(model, how, on_targets=objective == "mlm", elementwise=True)
    difference = 0.0
    if shortcuts != Shortcuts():
        short = two_steps(model, how, shortcuts, batch)
        difference = max(abs(one - other) for one, other in zip(plain, short, strict=True))
    used = [getattr(shortcuts, name) for name in COLUMNS] + [how is not None]
    return [architecture, *("yes" if each else "" for each in used), f"{difference:.0e}" if difference else "0"]


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    print(f"Measured by `python benchmarks/architectures.py` with transformers {transformers.__version__}, ", end="")
    print(f"torch {torch.__version__}.\nLosses differ at most by what the last column says (nats per token).")

    def too_long(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    for objective in ("mlm", "clm"):
        rows, failed = [], []
        for architecture in sorted(MODEL_NAMES[objective]):
            signal.alarm(SECONDS)
            try:
                rows.append(row(objective, architecture))
            except (HFPretrainError, Exception) as error:
                failed.append(f"{architecture} ({' '.join(str(error).split())[:80]})")
            finally:
                signal.alarm(0)
            print(objective, architecture, file=sys.stderr)
        names = [*COLUMNS.values(), "documents kept apart"]
        for number, name in enumerate(names, 1):
            print(f"\n{name}, {objective}: {sum(each[number] == 'yes' for each in rows)} of {len(rows)}", end="")
        print(f"\n\n| {objective} | {' | '.join(names)} | difference |\n|" + "---|" * (len(names) + 2))
        print("\n".join("| " + " | ".join(each) + " |" for each in rows))
        print(f"\nNot built from such sizes: {'; '.join(failed)}.")


if __name__ == "__main__":
    main()
