"""Data: sources, preparation, edges, tokens and batches."""
