"""naysay: align language models from the answers people said no to."""
