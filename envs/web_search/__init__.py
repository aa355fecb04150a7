"""Web search: multi-turn question answering over an index, pages and search engines."""
