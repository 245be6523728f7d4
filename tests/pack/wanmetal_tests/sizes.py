"""Sizes of the tests' models where ComfyUI knows but one, the full size."""

TEXT_ENCODER = {"num_layers": 1, "num_heads": 2, "d_ff": 64, "vocab_size": 256}
IMAGE_ENCODER = {"num_hidden_layers": 2, "intermediate_size": 64}
VAE_22 = {"dim": 8, "dec_dim": 8}
