"""Tokenizer, network, objective."""
