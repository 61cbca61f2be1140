"""What plans say, compared with the card."""
