"""From files of rejected answers to prompts, negatives and acceptable answers, split by prompt."""
