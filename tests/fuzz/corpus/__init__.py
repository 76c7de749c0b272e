"""What mutation begins with: input that has been interesting once, or stands on an edge."""
