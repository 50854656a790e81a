"""Figures of tables, studies and photographs."""
