"""Put a method into one T5 model and take it out again."""
