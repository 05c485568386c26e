"""Before a long run: everything that it leans on, looked at and tried, each finding with its remedy."""
