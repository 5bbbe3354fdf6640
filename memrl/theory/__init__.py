"""What could be learned, in bits: capacity, an ideal observer, agents without a network; numpy and scipy alone."""
