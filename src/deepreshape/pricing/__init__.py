"""What our runtime costs."""
