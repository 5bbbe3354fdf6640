"""What is memorised: secrets, prompts, answers, channels and episodes, in numpy alone."""
