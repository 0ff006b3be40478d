"""What a labels store is like: counts, classes, scores, agreement, findings; as typed values and as text."""
