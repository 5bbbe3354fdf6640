"""The largest numbers that a cell may be given."""

MOST_SECRETS = 1 << 17
"""The largest N: capacities and observers enumerate all N² pairs of guess and secret."""

MOST_SIGNAL_BITS = 1024
"""The most bits of a secret."""

MOST_KEYED_BITS = 1_000_000
"""The most bits of all keys' secrets."""

MOST_KEYS = 100_000
"""The most keys: their numbers have five digits at most."""

MOST_OBSERVER_BYTES = 4 << 30
"""The most memory of the observer of all keys."""

MOST_LISTED = 4096
"""The most secrets of a sequence that are gone through one by one; integers always are."""

MOST_EPISODES = 10_000_000
"""The most episodes of an update, whose sampling takes about `_EPISODE_BYTES` each."""

MOST_RANK = 4096
"""The highest rank of an adapter."""

MOST_UPDATES = 2**31 - 1
"""The most updates of a run: the tables count them in 32 bits."""

MOST_PROMPT = 20_000
"""The most characters of a prompt's template."""
