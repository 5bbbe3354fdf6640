"""Using episodes: advantages, losses, updates."""
