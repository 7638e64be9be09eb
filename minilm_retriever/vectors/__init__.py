"""Stored vectors: shards on disk, folders of them, quantization."""
