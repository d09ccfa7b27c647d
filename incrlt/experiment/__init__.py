"""What an experiment may say: fields, files, methods asked by name, and what is said when they are wrong; no torch."""
