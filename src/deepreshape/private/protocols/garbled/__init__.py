"""ReLUs of which a part is garbled."""
