"""Whether folders of Hugging Face transformers mean here what they mean there."""
