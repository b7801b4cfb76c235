"""Files of the user: rows, conversations, and what of two prompts is compared."""
