"""Who may start, and when: slots, permits and what a refusal teaches. Knows no HTTP."""
