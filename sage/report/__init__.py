"""Reports: compare runs in tables, a CSV file and an HTML page with figures."""
