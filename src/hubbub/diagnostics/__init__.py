"""Figures of the servers and of the chat, and problems of the servers with their remedies."""
