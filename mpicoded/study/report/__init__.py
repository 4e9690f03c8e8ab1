"""Report: a table and a picture of a results file, from the file alone."""
