"""Everything about faces as files: reading and checking tables, drawing faces, photographs."""
