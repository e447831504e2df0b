"""What people see: names of packages, texts, reports of errors, pages on this machine. Knows nothing of the API."""
