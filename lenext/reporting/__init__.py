"""From figures to what people read: records of sums, tables, pictures, pages."""
