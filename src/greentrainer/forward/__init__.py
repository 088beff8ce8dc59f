"""What of the forward pass need not be computed: see `docs/forward.md`."""
