"""A serverless-style handler for ComfyUI: a request with a few fields in, a video and a receipt out."""
