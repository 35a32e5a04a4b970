"""What people look at: self-contained HTML pages, one file a page, and their charts and style."""
