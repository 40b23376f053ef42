"""What `hubbub demo` does: a chat on real servers, and the proof that what came back is what went in."""
