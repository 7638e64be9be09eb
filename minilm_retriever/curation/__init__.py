"""Know your data: inspect it, find duplicates and paraphrases, mine hard negatives."""
