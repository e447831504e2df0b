"""Processes of many hosts: one Postgres."""
