"""Examples: sources, preparation, edges, tokens, and the batches made of them."""
