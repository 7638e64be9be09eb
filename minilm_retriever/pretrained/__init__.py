"""A model on disk or at the hub: weights, tokenizer, settings, prompts."""
