"""The server's work that all strategies share: which clients take part, what is sent, and what comes back."""
