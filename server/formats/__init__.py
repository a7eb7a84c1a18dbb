"""What a file holds: adapter folders, safetensors headers, templates, the base model's folder. No torch."""
