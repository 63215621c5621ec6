"""From a corpus to batches: order (pure) -> reader (shards to arrays) -> transforms -> loader (tensors)."""
