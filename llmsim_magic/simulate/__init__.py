"""The one entry that every front door calls: a request in, a report out."""
