"""Documents, tokens, blocks, order, batches: data flows through this package in that order."""
