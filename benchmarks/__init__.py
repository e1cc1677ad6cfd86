"""What measures; METHODOLOGY.md says how."""
