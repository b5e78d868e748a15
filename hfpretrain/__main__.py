"""`python -m hfpretrain`: the command line, also under `accelerate launch -m` and `torchrun -m`."""

from hfpretrain.cli import main

main()
