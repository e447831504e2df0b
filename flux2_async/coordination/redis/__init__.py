"""Processes of many hosts: one Redis."""
