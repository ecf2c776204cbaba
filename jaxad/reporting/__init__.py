"""What users see of results: report.html, charts, sample grids, heatmap files and tables."""
