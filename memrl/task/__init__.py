"""What is memorized: secrets, prompts, answers, channels and episodes, using only numpy."""
