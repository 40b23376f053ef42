"""The same operations with other libraries, written in their usual way."""
