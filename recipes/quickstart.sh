#!/bin/sh
# What `make quickstart` does after the installation: trains a masked and a next-word model on the builtin
# corpus, then fills and generates with them. A second time it goes on, or finds them finished.
set -eu

say() { printf '\n$ %s\n' "$*"; "$@"; }

say hfpretrain train recipes/quickstart-mlm.yaml --resume
say hfpretrain train recipes/quickstart-clm.yaml --resume
say hfpretrain fill "The quick [MASK] fox jumps over the lazy dog."
say hfpretrain fill "The quick [MASK] fox"
say hfpretrain generate "I love to eat pizza with" --words 1
say hfpretrain generate "The quick brown" --words 1
say hfpretrain generate "The quick brown fox" --words 1
say hfpretrain generate "I love to eat pizza with" --top-k-next 7
