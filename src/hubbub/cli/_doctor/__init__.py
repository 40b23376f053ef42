"""What `hubbub doctor` looks at."""
