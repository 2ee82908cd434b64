"""Checkpoints in S3: safetensors shards, a JSON manifest as the commit, verified at load."""
