"""`hospital index`: what lies on the disk, what was set aside and why, as a table and as a page."""
