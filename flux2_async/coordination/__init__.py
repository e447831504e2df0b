"""Many processes, one account: a limit, a pause, keys and callbacks that all of them share."""
