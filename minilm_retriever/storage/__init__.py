"""Atomic, durable files and folders, and the manifests that verify them."""
