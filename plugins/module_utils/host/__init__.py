"""What a host is and has: its state, its GPUs, and files that other users own."""
