"""The Fyers broker, from the client's side: each file is one way of speaking with it."""
