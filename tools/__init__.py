"""What a person types: parse, call, report."""
