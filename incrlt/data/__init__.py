"""Images as tensors on the device: batched augmentation, batches, and the bridge from Avalanche's loaders."""
