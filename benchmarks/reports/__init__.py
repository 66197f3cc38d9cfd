"""From records to words, tables and pictures."""
