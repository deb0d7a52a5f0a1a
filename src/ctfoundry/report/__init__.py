"""Figures and self-contained HTML reports: knows tables and images only, never a model or a store."""
