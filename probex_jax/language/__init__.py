"""Text encoders: what turns class names and queries into vectors."""
