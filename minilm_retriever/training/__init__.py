"""What a training run is around the core."""
