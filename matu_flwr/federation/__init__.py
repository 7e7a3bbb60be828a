"""What every strategy shares on the server: who takes part, what was sent, what came back."""
