"""What is measured, and how: one command each."""
