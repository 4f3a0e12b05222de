"""Which exits and settings make a given model fastest on the machine at hand."""
