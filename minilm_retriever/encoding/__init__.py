"""Bulk encoding: text files to shards of vectors, streamed and resumable."""
