"""The `genrec` command. Only this package prints; the library logs."""
