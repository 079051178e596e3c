"""Where results are kept: one `ResultStore` each."""
