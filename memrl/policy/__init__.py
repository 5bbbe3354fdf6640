"""The network: a base model, and adapters packed over it."""
