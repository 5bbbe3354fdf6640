"""Parquet tables: their schemas, and the only writer of results/."""
