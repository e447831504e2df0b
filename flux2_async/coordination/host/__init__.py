"""Processes of one host: a file of SQLite, and sockets."""
