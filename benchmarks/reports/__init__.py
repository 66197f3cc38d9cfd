"""From records to words, tables, plots and grids."""
