"""What the servers say of themselves and of the chat: figures that change, and problems with their remedies."""
