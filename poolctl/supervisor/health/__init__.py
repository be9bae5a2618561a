"""What finds workers that are alive in name only, and what is done about them."""
