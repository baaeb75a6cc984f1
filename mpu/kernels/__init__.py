"""What is faster somewhere: blocked masks, 8-bit and prepacked weights, static caches, host memory."""
