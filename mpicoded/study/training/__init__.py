"""Training: lessons for base models and parity models, and what a code's answers are worth."""
