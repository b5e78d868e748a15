"""Using a trained model: filling masks, continuing a text, and the probabilities of the next words.

`load` takes a run, a checkpoint folder, any local model folder or a Hub id, and gives a `MaskedLM` or a `CausalLM`,
by what the model is. Both never predict special tokens: their logits, and those of rows without a token, are set to
minus infinity, so probabilities are a softmax over the ordinary tokens (and the end of the text, for a CausalLM).
"""

from hfpretrain.inference.causal import CausalLM
from hfpretrain.inference.loading import load
from hfpretrain.inference.masked import MaskedLM
from hfpretrain.inference.words import Prediction

__all__ = ["CausalLM", "MaskedLM", "Prediction", "load"]
