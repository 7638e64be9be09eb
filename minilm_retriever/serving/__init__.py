"""A page to search and compare, and an API: `minilm-retriever serve`."""
