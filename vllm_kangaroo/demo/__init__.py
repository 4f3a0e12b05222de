"""What there is to see: models that come with this package, a comparison and a conversation."""
