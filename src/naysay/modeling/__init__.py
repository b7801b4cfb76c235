"""Models, tokens, adapters, the group forward."""
