"""The API's words, in and out: replies become values or errors, requests become bytes. Pure."""
