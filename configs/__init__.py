"""Configs: data with a story. `base.py` lists every key with its default; every other file is an edit of it."""
