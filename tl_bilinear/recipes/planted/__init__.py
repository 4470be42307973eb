"""Knowledge that only fine-tuning puts into a bundled story model, so that a gold model exists."""
