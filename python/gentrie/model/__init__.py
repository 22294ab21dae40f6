"""Runs a model of ``transformers`` on trees of tokens: each prefix once, its keys and values kept once."""
