"""Scripts that look at the project itself."""
