"""The published system: BERT, the loss, one training step, the loop."""
