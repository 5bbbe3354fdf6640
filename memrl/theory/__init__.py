"""What could be learned, in bits: capacity, an ideal observer, optimal agents; numpy alone."""
