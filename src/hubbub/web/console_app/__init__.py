"""The live page for operators: `hubbub.web.console`, and `hubbub console`."""
