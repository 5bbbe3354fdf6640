"""From tables to answers."""
