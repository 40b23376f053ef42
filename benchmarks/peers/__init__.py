"""The same operations with other libraries, as their users write them."""
