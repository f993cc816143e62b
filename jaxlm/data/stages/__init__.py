"""Stages before the tokenizer, on datatrove: collect, clean, dedup, decontaminate."""
