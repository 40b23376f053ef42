"""The same operations, as users of other libraries write them."""
