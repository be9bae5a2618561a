"""A guest book with two faces: `public` reads and adds entries, `admin` removes them."""
