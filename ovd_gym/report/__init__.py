"""What a run leaves for a reader: episodes as one HTML file, learning curves as one picture."""
