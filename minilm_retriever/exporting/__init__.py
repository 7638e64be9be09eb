"""A model for other runtimes: `minilm-retriever export`."""
