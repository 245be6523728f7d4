"""How the locks are made, and where what they name is fetched."""
