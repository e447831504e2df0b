"""What people see: texts, reports of errors, pages on this machine. Knows nothing of the API."""
