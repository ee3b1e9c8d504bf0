"""Records: pack, verify, compare and rank submissions. `python -m records --help`."""
