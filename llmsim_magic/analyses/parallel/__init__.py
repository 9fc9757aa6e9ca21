"""What each rank holds, and what ranks exchange."""
