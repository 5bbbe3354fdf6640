"""memrl measures how many bits a LoRA policy absorbs per episode."""
