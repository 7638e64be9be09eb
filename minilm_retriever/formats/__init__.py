"""Files and objects in any format: their rows, one at a time."""
