"""What a run leaves to read: model card, HTML report."""
