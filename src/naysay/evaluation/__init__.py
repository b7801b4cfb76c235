"""Stage `evaluate`: what changed on held-out negatives, and what should not have changed."""
