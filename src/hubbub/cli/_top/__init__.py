"""The parts of `hubbub top`."""
