"""Raw logs: files, formats, columns, rows and their errors."""
